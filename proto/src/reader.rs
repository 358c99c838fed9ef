//! A batch stream's bytes, as they come, into batches: payload goes straight to where it stays.

use bytes::{Buf, Bytes, BytesMut};
use prost::encoding::decode_varint;
use vela_types::Batch;

use crate::WireError;
use crate::assemble::Assembler;
use crate::batch::{CHUNK_DATA_TAG, CHUNK_OFFSET_TAG, GRPC_PREFIX_BYTES, PART_CHUNK_TAG};

/// Longest opening of a chunk: three tags, two lengths, an offset.
const MAX_OPENING_BYTES: usize = 3 + 2 * 5 + 10;

/// What bytes of a stream brought.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    /// A batch begins.
    Header {
        /// Bytes of its payload, at least one.
        payload_bytes: usize,
        /// Bytes that it takes without them, at most.
        header_bytes: usize,
    },
    /// So many bytes of the payload came.
    Payload(usize),
    /// The last byte of a batch came.
    Batch(Box<Batch>),
}

/// Reads a stream of `BatchPart` messages in gRPC's framing, cut anywhere. After an error it must be thrown away with its stream.
///
/// A chunk whose fields come in the order of their numbers, as every encoder writes them, is copied once, from the received bytes into the
/// batch; any other message is collected and decoded by the general rules.
#[derive(Debug)]
pub struct PartReader {
    assembler: Assembler,
    expects: Expects,
    /// Bytes of the prefix or message under way that are not payload.
    head: BytesMut,
}

#[derive(Clone, Copy, Debug)]
enum Expects {
    Prefix,
    /// A message of so many bytes, none or some of which are in `head`. `whole`: it does not open like a chunk.
    Message {
        num_bytes: usize,
        whole: bool,
    },
    /// So many bytes more of a chunk's payload.
    Payload(usize),
}

impl PartReader {
    /// Refuses batches of more than `max_batch_bytes`, wrong headers and tokens, and images with other checksums than they were written with
    /// if it `verifies_images`.
    pub fn new(max_batch_bytes: usize, verifies_images: bool) -> Self {
        let assembler = Assembler::new(max_batch_bytes, verifies_images);
        Self { assembler, expects: Expects::Prefix, head: BytesMut::new() }
    }

    /// Takes bytes off the front of `data` until they bring something; `None` once `data` is used up.
    ///
    /// # Errors
    /// Whatever is not a batch in the order and within the limits of the contract, is compressed, or came damaged.
    pub fn read(&mut self, data: &mut Bytes) -> Result<Option<Received>, WireError> {
        loop {
            if let Some(batch) = self.assembler.take_complete()? {
                return Ok(Some(Received::Batch(Box::new(batch))));
            }
            if data.is_empty() {
                return Ok(None);
            }
            let received = match self.expects {
                Expects::Prefix => self.read_prefix(data)?,
                Expects::Message { num_bytes, whole } => self.read_message(data, num_bytes, whole)?,
                Expects::Payload(left) => Some(self.read_payload(data, left)?),
            };
            if received.is_some() {
                return Ok(received);
            }
        }
    }

    fn read_prefix(&mut self, data: &mut Bytes) -> Result<Option<Received>, WireError> {
        if !self.collect(data, GRPC_PREFIX_BYTES) {
            return Ok(None);
        }
        let (compressed, num_bytes) = (self.head.get_u8(), self.head.get_u32() as usize);
        if compressed != 0 {
            return Err(WireError::value("message", "no compression", format_args!("flag {compressed}")));
        }
        let limit = self.assembler.max_message_bytes();
        if num_bytes > limit {
            return Err(WireError::value("message", format_args!("at most {limit} bytes"), num_bytes));
        }
        match num_bytes {
            0 => Err(WireError::Missing { field: "part" }),
            _ => {
                self.expects = Expects::Message { num_bytes, whole: false };
                Ok(None)
            }
        }
    }

    fn read_message(&mut self, data: &mut Bytes, num_bytes: usize, whole: bool) -> Result<Option<Received>, WireError> {
        let enough = if whole { num_bytes } else { num_bytes.min(MAX_OPENING_BYTES) };
        if !self.collect(data, enough) {
            return Ok(None);
        }
        if let Some(opening) = ChunkOpening::parse(&self.head, num_bytes).filter(|_| !whole) {
            self.assembler.open_chunk(opening.offset, opening.payload_bytes)?;
            self.expects = Expects::Payload(opening.payload_bytes);
            let mut first = self.head.split().freeze();
            first.advance(opening.num_bytes);
            // Nothing of it belongs to the next message: an opening is never longer than its message.
            return match first.is_empty() {
                true => Ok(None),
                false => self.read_payload(&mut first, opening.payload_bytes).map(Some),
            };
        }
        if enough < num_bytes {
            self.expects = Expects::Message { num_bytes, whole: true };
            return Ok(None);
        }
        self.expects = Expects::Prefix;
        let message = self.head.split().freeze();
        self.assembler.decode(message).map(Some)
    }

    fn read_payload(&mut self, data: &mut Bytes, left: usize) -> Result<Received, WireError> {
        let piece = data.split_to(left.min(data.len()));
        self.assembler.fill(&piece)?;
        self.expects = match left - piece.len() {
            0 => Expects::Prefix,
            left => Expects::Payload(left),
        };
        Ok(Received::Payload(piece.len()))
    }

    /// Moves bytes of `data` to `head` until it holds `num_bytes`; false if there are not enough yet.
    fn collect(&mut self, data: &mut Bytes, num_bytes: usize) -> bool {
        let wanted = num_bytes.saturating_sub(self.head.len()).min(data.len());
        self.head.extend_from_slice(&data.split_to(wanted));
        self.head.len() >= num_bytes
    }
}

/// Everything of a chunk's message before its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChunkOpening {
    offset: u64,
    payload_bytes: usize,
    num_bytes: usize,
}

impl ChunkOpening {
    /// The opening that `head` begins with, if the message of `message_bytes` is a chunk and nothing else, its payload last.
    fn parse(head: &[u8], message_bytes: usize) -> Option<Self> {
        let mut rest = head;
        let before = |rest: &[u8]| head.len() - rest.len();
        take_tag(&mut rest, PART_CHUNK_TAG)?;
        let chunk_bytes = take_varint(&mut rest)?;
        let offset = match take_tag(&mut rest, CHUNK_OFFSET_TAG) {
            Some(()) => take_varint(&mut rest)?,
            None => 0,
        };
        let chunk_start = message_bytes.checked_sub(usize::try_from(chunk_bytes).ok()?)?;
        take_tag(&mut rest, CHUNK_DATA_TAG)?;
        let payload_bytes = usize::try_from(take_varint(&mut rest)?).ok()?;
        let num_bytes = before(rest);
        let fills_message = num_bytes.checked_add(payload_bytes) == Some(message_bytes);
        let chunk_starts_here = chunk_start == 1 + prost::encoding::encoded_len_varint(chunk_bytes);
        (fills_message && chunk_starts_here).then_some(Self { offset, payload_bytes, num_bytes })
    }
}

fn take_tag(rest: &mut &[u8], tag: u8) -> Option<()> {
    *rest = rest.strip_prefix(&[tag])?;
    Some(())
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    decode_varint(rest).ok()
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::v1;

    #[test]
    fn an_opening_is_read_where_the_payload_is_last_and_nowhere_else() {
        let part = |offset, len| v1::BatchPart {
            part: Some(v1::batch_part::Part::Chunk(v1::BatchChunk { offset, data: vec![9; len].into() })),
        };
        for (offset, len) in [(0, 1), (5, 200), (1 << 40, 70_000)] {
            let message = part(offset, len).encode_to_vec();
            let opening = ChunkOpening::parse(&message[..message.len().min(MAX_OPENING_BYTES)], message.len());
            let num_bytes = message.len() - len;
            assert_eq!(opening, Some(ChunkOpening { offset, payload_bytes: len, num_bytes }));
            assert_eq!(ChunkOpening::parse(&message, message.len() + 1), None, "another field would follow");
        }
        // The same fields, the payload first.
        let swapped = [0x12, 5, 0x12, 1, 9, 0x08, 3];
        assert_eq!(v1::BatchPart::decode(&swapped[..]).expect("fields in any order"), {
            let data = vec![9].into();
            v1::BatchPart { part: Some(v1::batch_part::Part::Chunk(v1::BatchChunk { offset: 3, data })) }
        });
        assert_eq!(ChunkOpening::parse(&swapped, swapped.len()), None);
    }
}
