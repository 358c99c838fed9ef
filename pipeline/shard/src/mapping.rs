//! Files as memory: the one module of this crate with `unsafe`.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process may change it underneath")]

use std::fs::File;

use bytes::Bytes;
use memmap2::Mmap;

/// Maps a whole file for reading. An empty file gives no bytes.
pub(crate) fn map_file(file: &File) -> std::io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: published files are never written again (a build renames a finished file into place and removes by
    // unlinking, which keeps live mappings valid), so nobody who follows the format changes or cuts the mapped bytes.
    let mapped = unsafe { Mmap::map(file)? };
    Ok(Bytes::from_owner(mapped))
}

/// Bytes with the open file that they belong to.
struct HeldFile {
    bytes: Bytes,
    _file: File,
}

impl AsRef<[u8]> for HeldFile {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// [`map_file`]; the file stays open, and locked if it is, as long as the bytes are held.
pub(crate) fn map_held_file(file: File) -> std::io::Result<Bytes> {
    Ok(Bytes::from_owner(HeldFile { bytes: map_file(&file)?, _file: file }))
}
