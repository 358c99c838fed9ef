//! What a header would take in memory, told from its bytes before anything is made of them.

use prost::encoding::{WireType, decode_key, decode_varint};
use vela_types::{Batch, ImageSpan, SampleSlot};

use crate::batch::{HEADER_CHECKSUM_TAG, TENSORS};
use crate::checks::check_sum;
use crate::v1;
use crate::{MAX_SAMPLES, WireError};

/// Numbers of the fields that hold others: `BatchPart.header`, and of `BatchHeader` those that may repeat.
const PART_HEADER: u32 = 1;
const HEADER_TENSORS: u32 = 4;
const HEADER_SPANS: u32 = 5;
const HEADER_SAMPLES: u32 = 6;

/// The longest entry of `tensors`: role, type and eight extents take less.
const MAX_TENSOR_BYTES: usize = 128;

/// What the allocator adds to each id.
const ID_OVERHEAD: usize = 32;
/// An entry of each list: in a vector that grew by doubling, and as it is handed on.
const SLOT_BYTES: usize = 2 * size_of::<v1::SampleSlot>() + size_of::<SampleSlot>() + ID_OVERHEAD;
const SPAN_BYTES: usize = 2 * size_of::<v1::ImageSpan>() + size_of::<ImageSpan>();
/// A batch without any: itself and the shapes of its tensors, sent and decoded.
const BATCH_BYTES: usize = size_of::<v1::BatchHeader>() + size_of::<Batch>() + 4 * TENSORS.len() * MAX_TENSOR_BYTES;

/// The entries of a `BatchPart`'s header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outline {
    num_tensors: usize,
    num_spans: usize,
    num_samples: usize,
}

impl Outline {
    /// Counts without decoding.
    ///
    /// # Errors
    /// If `message` is no message of the contract's language, or has more entries than any batch.
    pub(crate) fn of(message: &[u8]) -> Result<Self, WireError> {
        let mut outline = Self::default();
        // A second header would be merged into the first.
        visit_fields(message, |field, content| match field {
            PART_HEADER => {
                check_header(content)?;
                visit_fields(content, |field, entry| outline.count(field, entry))
            }
            _ => Ok(()),
        })?;
        Ok(outline)
    }

    /// Bytes that the entries take while they are decoded and after, ids left out.
    pub(crate) fn entry_bytes(&self) -> usize {
        self.num_spans * SPAN_BYTES + self.num_samples * SLOT_BYTES
    }

    /// Bytes that a batch takes beside its payload if its header came in `message_bytes`, at most.
    pub(crate) fn header_bytes(&self, message_bytes: usize) -> usize {
        BATCH_BYTES + message_bytes + self.entry_bytes()
    }

    fn count(&mut self, field: u32, entry: &[u8]) -> Result<(), WireError> {
        let (name, count, most) = match field {
            HEADER_TENSORS if entry.len() > MAX_TENSOR_BYTES => {
                let expected = format!("at most {MAX_TENSOR_BYTES} bytes for one of them");
                return Err(WireError::value("header.tensors", expected, entry.len()));
            }
            HEADER_TENSORS => ("header.tensors", &mut self.num_tensors, TENSORS.len()),
            HEADER_SPANS => ("header.image_spans", &mut self.num_spans, MAX_SAMPLES),
            HEADER_SAMPLES => ("header.samples", &mut self.num_samples, MAX_SAMPLES),
            _ => return Ok(()),
        };
        *count += 1;
        match *count <= most {
            true => Ok(()),
            false => Err(WireError::value(name, format_args!("at most {most}"), "more")),
        }
    }
}

/// A header ends with the checksum of what stands before it.
fn check_header(header: &[u8]) -> Result<(), WireError> {
    let end = header.split_last_chunk().and_then(|(rest, sum)| Some((rest.strip_suffix(&[HEADER_CHECKSUM_TAG])?, sum)));
    let (content, sum) = end.ok_or(WireError::Missing { field: "header.header_checksum" })?;
    check_sum(|| "the header".to_owned(), u32::from_le_bytes(*sum), crc32fast::hash(content))
}

/// Shows `visit` the number and the content of each field of `message` that has a length.
fn visit_fields<'a>(
    mut message: &'a [u8],
    mut visit: impl FnMut(u32, &'a [u8]) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let malformed = |fault: &dyn ToString| WireError::value("message", "a `BatchPart`", fault.to_string());
    while !message.is_empty() {
        let (field, wire_type) = decode_key(&mut message).map_err(|fault| malformed(&fault))?;
        let length = match wire_type {
            WireType::Varint => decode_varint(&mut message).map(|_| 0).map_err(|fault| malformed(&fault))?,
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => decode_varint(&mut message).map_err(|fault| malformed(&fault))?,
            WireType::StartGroup | WireType::EndGroup => return Err(malformed(&"a group")),
        };
        let end = usize::try_from(length).unwrap_or(usize::MAX);
        let content = message.split_off(..end).ok_or_else(|| malformed(&"a field that is cut off"))?;
        if wire_type == WireType::LengthDelimited {
            visit(field, content)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::v1::batch_part::Part;

    fn part(num_spans: usize, num_samples: usize) -> Vec<u8> {
        let slot = v1::SampleSlot { row: 1, index: 300, id: "coco/17".to_owned(), valid: true };
        let header = v1::BatchHeader {
            position: Some(v1::Position { epoch: 1, step: 2, micro: 3 }),
            num_micro: 4,
            step_label_tokens: 1 << 40,
            tensors: vec![v1::TensorHeader { role: 5, dtype: 1, shape: vec![u64::MAX; 8] }; 5],
            image_spans: vec![v1::ImageSpan { row: 1, start: 2 }; num_spans],
            samples: vec![slot; num_samples],
            ..Default::default()
        };
        sealed(header)
    }

    fn sealed(mut header: v1::BatchHeader) -> Vec<u8> {
        header.header_checksum = Some(crc32fast::hash(&header.encode_to_vec()));
        v1::BatchPart { part: Some(Part::Header(header)) }.encode_to_vec()
    }

    #[test]
    fn entries_are_counted_over_all_headers_of_a_message() {
        let outline = Outline { num_tensors: 5, num_spans: 7, num_samples: 3 };
        assert_eq!(Outline::of(&part(7, 3)), Ok(outline));
        let twice = [part(7, 3), part(7, 3)].concat();
        assert!(Outline::of(&twice).expect_err("ten tensors").to_string().contains("at most 5"));
        let empty = Outline::of(&[]).expect("nothing");
        assert_eq!((empty.entry_bytes(), outline.entry_bytes()), (0, 7 * SPAN_BYTES + 3 * SLOT_BYTES));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let whole = part(2, 2);
        for bytes in [&whole[..whole.len() - 1], &[0x0b][..], &[0x0a, 0x05, 0x01][..]] {
            assert!(Outline::of(bytes).expect_err("a refusal").to_string().contains("`BatchPart`"));
        }
        for bit in 8 * 4..8 * whole.len() {
            let mut turned = whole.clone();
            turned[bit / 8] ^= 1 << (bit % 8);
            assert!(Outline::of(&turned).is_err(), "bit {bit}");
        }
        let long = v1::TensorHeader { role: 5, dtype: 1, shape: vec![u64::MAX; 20] };
        let header = v1::BatchHeader { tensors: vec![long], ..Default::default() };
        let long = sealed(header);
        assert!(Outline::of(&long).expect_err("a refusal").to_string().contains("header.tensors"));
    }
}
