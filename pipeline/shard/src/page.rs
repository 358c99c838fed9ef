//! One Parquet data page: its header, and the values of the single row it holds.
//!
//! Format: Parquet `PageHeader` in the Thrift compact protocol, data page version 1. Only the fields that the
//! writer of a shard writes are accepted; anything else is damage.

/// What a page header says, after it was found to be a plain data page without statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageHeader {
    /// Bytes of the header itself.
    pub(crate) header_bytes: usize,
    /// Bytes of the page body once decompressed.
    pub(crate) body_bytes: usize,
    /// Bytes of the page body as stored.
    pub(crate) stored_bytes: usize,
    /// Values with levels: 1 for an empty list.
    pub(crate) num_values: usize,
}

/// Why a page cannot be read.
pub(crate) type PageFault = &'static str;

const DATA_PAGE: i32 = 0;
const PLAIN: i32 = 0;
const RLE: i32 = 3;

/// Parses the header at the start of `page`, which must be exactly one page.
pub(crate) fn parse_header(page: &[u8]) -> Result<PageHeader, PageFault> {
    let mut input = Compact { bytes: page, at: 0 };
    let fields = input.int_fields::<5>(5)?;
    let [kind, body, stored, num_values] = [fields[1], fields[2], fields[3], fields[0]];
    let header = PageHeader {
        header_bytes: input.at,
        body_bytes: to_size(body)?,
        stored_bytes: to_size(stored)?,
        num_values: to_size(num_values)?,
    };
    match kind == Some(DATA_PAGE) && header.header_bytes + header.stored_bytes == page.len() {
        true => Ok(header),
        false => Err("the page header does not fit the page"),
    }
}

fn to_size(value: Option<i32>) -> Result<usize, PageFault> {
    value.and_then(|value| usize::try_from(value).ok()).ok_or("the page header lacks a size")
}

/// Reader of the Thrift compact protocol, for structs of 32-bit integers.
struct Compact<'a> {
    bytes: &'a [u8],
    at: usize,
}

const TYPE_I32: u8 = 5;
const TYPE_STRUCT: u8 = 12;

impl Compact<'_> {
    /// Reads a struct's integer fields 1..N by id; entry 0 takes the value count of the nested struct `nested`.
    fn int_fields<const N: usize>(&mut self, nested: usize) -> Result<[Option<i32>; N], PageFault> {
        let mut fields = [None; N];
        let mut id = 0;
        loop {
            let (delta, kind) = match self.byte()? {
                0 => return Ok(fields),
                head => (usize::from(head >> 4), head & 0x0F),
            };
            id += delta;
            match kind {
                _ if delta == 0 => return Err("the page header has an unknown field"),
                TYPE_I32 if id < N => fields[id] = Some(self.varint()?),
                TYPE_STRUCT if id == nested => fields[0] = Some(self.data_page_fields()?),
                _ => return Err("the page header has an unknown field"),
            }
        }
    }

    /// The nested data page header: value count, and encodings that must be those of a shard.
    fn data_page_fields(&mut self) -> Result<i32, PageFault> {
        let fields = self.int_fields::<5>(usize::MAX)?;
        match fields {
            [None, Some(num_values), Some(PLAIN), Some(RLE), Some(RLE)] => Ok(num_values),
            _ => Err("the page has an unexpected encoding"),
        }
    }

    fn byte(&mut self) -> Result<u8, PageFault> {
        let byte = self.bytes.get(self.at).ok_or("the page header is cut")?;
        self.at += 1;
        Ok(*byte)
    }

    /// A zigzag variable-length integer.
    fn varint(&mut self) -> Result<i32, PageFault> {
        let mut value = 0u32;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            value |= u32::from(byte & 0x7F).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i32 ^ -((value & 1) as i32));
            }
        }
        Err("the page header has an overlong number")
    }
}

/// The value bytes of a list page: what follows the two level runs. Empty for an empty list.
pub(crate) fn list_values(body: &[u8], num_values: usize, value_bytes: usize) -> Result<&[u8], PageFault> {
    let values = skip_levels(skip_levels(body)?)?;
    let expected = num_values.checked_mul(value_bytes);
    match values.len() {
        0 if num_values == 1 => Ok(values),
        found if Some(found) == expected => Ok(values),
        _ => Err("the page's values do not fit their count"),
    }
}

fn skip_levels(body: &[u8]) -> Result<&[u8], PageFault> {
    let (head, rest) = body.split_first_chunk::<4>().ok_or("the page is cut in its levels")?;
    rest.get(u32::from_le_bytes(*head) as usize..).ok_or("the page is cut in its levels")
}

/// Where the single value of a byte-array page lies in its body.
pub(crate) fn byte_array_value(body: &[u8]) -> Result<&[u8], PageFault> {
    let (head, value) = body.split_first_chunk::<4>().ok_or("the page is cut in its length")?;
    match u32::from_le_bytes(*head) as usize == value.len() {
        true => Ok(value),
        false => Err("the value's length does not fit the page"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// type 0, body 10, stored 10, data page header {1 value, PLAIN, RLE, RLE}.
    const HEADER: [u8; 17] = [0x15, 0, 0x15, 20, 0x15, 20, 0x2C, 0x15, 2, 0x15, 0, 0x15, 6, 0x15, 6, 0, 0];

    #[test]
    fn a_written_header_is_understood() {
        let page: Vec<u8> = HEADER.into_iter().chain([7; 10]).collect();
        let header = PageHeader { header_bytes: 17, body_bytes: 10, stored_bytes: 10, num_values: 1 };
        assert_eq!(parse_header(&page), Ok(header));
        assert!(parse_header(&page[..26]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), count in any::<usize>()) {
            let _ = (parse_header(&bytes), byte_array_value(&bytes), list_values(&bytes, count, 4));
        }
    }
}
