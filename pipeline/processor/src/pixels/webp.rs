//! The first frame of an animated WebP, as libwebp's animation decoder shows it: on a transparent canvas, the colours
//! under its transparency kept. The decoder of the `image` crate blends, and loses those.

/// The first frame as a still picture's file, and its place on the canvas.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FirstFrame {
    pub(super) still: Vec<u8>,
    pub(super) left: u32,
    pub(super) top: u32,
}

/// Bytes of a RIFF chunk's name and length (WebP container specification).
const HEADER_BYTES: usize = 8;
/// Bytes of a frame's place, extent, duration and flags before its chunks.
const FRAME_BYTES: usize = 16;
/// The flag of an extended file that says that there is alpha.
const ALPHA_FLAG: u8 = 0x10;

/// `None` if the file is no animation, or breaks off before its first frame does.
pub(super) fn first_frame(bytes: &[u8]) -> Option<FirstFrame> {
    let extended = bytes.get(12..)?.strip_prefix(b"VP8X")?;
    const ANIMATION_FLAG: u8 = 0x02;
    if extended.get(4)? & ANIMATION_FLAG == 0 {
        return None;
    }
    let frame = chunks(bytes.get(12..)?).find(|(name, _)| name == b"ANMF").map(|(_, body)| body)?;
    let number = |at: usize| Some(u32::from_le_bytes([*frame.get(at)?, *frame.get(at + 1)?, *frame.get(at + 2)?, 0]));
    // Lossy colours have their alpha in a chunk of its own; the decoder wants it where the flag is set.
    let has_alpha = chunks(frame.get(FRAME_BYTES..)?).any(|(name, _)| &name == b"ALPH" || &name == b"VP8L");
    let mut body = b"WEBPVP8X".to_vec();
    body.extend([10, 0, 0, 0, if has_alpha { ALPHA_FLAG } else { 0 }, 0, 0, 0]);
    body.extend_from_slice(frame.get(6..12)?);
    for (name, chunk) in chunks(frame.get(FRAME_BYTES..)?) {
        body.extend_from_slice(&name);
        body.extend((chunk.len() as u32).to_le_bytes());
        body.extend_from_slice(chunk);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    let mut still = b"RIFF".to_vec();
    still.extend((body.len() as u32).to_le_bytes());
    still.extend(body);
    // Places are told in steps of two pixels.
    Some(FirstFrame { still, left: number(0)? * 2, top: number(3)? * 2 })
}

/// Names and bodies of whole RIFF chunks.
fn chunks(mut rest: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (header, after) = rest.split_at_checked(HEADER_BYTES)?;
        let name = [header[0], header[1], header[2], header[3]];
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let body = after.get(..length)?;
        rest = after.get(length.next_multiple_of(2)..).unwrap_or_default();
        Some((name, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_breaks_off_has_no_first_frame() {
        let mut file = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x07\0\0\x07\0\0ANMF\x1a\0\0\0".to_vec();
        file.extend([1, 0, 0, 2, 0, 0, 3, 0, 0, 3, 0, 0, 9, 0, 0, 0]);
        file.extend(b"VP8L\x02\0\0\0ab");
        let frame = first_frame(&file).expect("whole");
        assert_eq!((frame.left, frame.top), (2, 4));
        assert!(frame.still.ends_with(b"\x03\0\0\x03\0\0VP8L\x02\0\0\0ab"));
        assert!((0..file.len()).all(|length| first_frame(&file[..length]).is_none()));
    }
}
