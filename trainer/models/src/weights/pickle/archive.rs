//! Where the entries of a zip archive lie, as `torch.save` writes one: stored, not compressed. The layout is that of
//! PKWARE's APPNOTE 6.3, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to 4.3.16 (its end).

use std::collections::BTreeMap;
use std::ops::Range;

const LOCAL: u64 = 0x0403_4B50;
const CENTRAL: u64 = 0x0201_4B50;
const END: u64 = 0x0605_4B50;
const END64: u64 = 0x0606_4B50;
const END64_LOCATOR: u64 = 0x0706_4B50;
const END_LENGTH: usize = 22;
const LOCATOR_LENGTH: usize = 20;
/// A 32-bit field that holds this has its value in the 64-bit part.
const ELSEWHERE: u64 = 0xFFFF_FFFF;
const ELSEWHERE_COUNT: u64 = 0xFFFF;

/// The bytes of each entry by name. `Err` says what is wrong with the archive.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    let cut = || "expected a whole zip archive of `torch.save`, found one that is cut or damaged".to_owned();
    let (count, mut at) = directory(bytes).ok_or_else(cut)?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        let entry = central_entry(bytes, at).ok_or_else(cut)?;
        if entry.method != 0 {
            return Err(format!("expected stored entries, found `{}` compressed", entry.name));
        }
        entries.insert(entry.name, entry.data);
        at = entry.end;
    }
    Ok(entries)
}

/// `N` bytes from `at` on, the lowest first.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..at.checked_add(N)?)?;
    Some(word.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

fn length<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(number::<N>(bytes, at)?).ok()
}

/// Number of entries of the central directory, and where it begins.
fn directory(bytes: &[u8]) -> Option<(u64, usize)> {
    let last = bytes.len().checked_sub(END_LENGTH)?;
    // A comment of up to 65535 bytes may follow.
    let first = last.saturating_sub(usize::from(u16::MAX));
    let end = (first..=last).rev().find(|&at| number::<4>(bytes, at) == Some(END))?;
    let (count, start) = (number::<2>(bytes, end + 10)?, number::<4>(bytes, end + 16)?);
    if count != ELSEWHERE_COUNT && start != ELSEWHERE {
        return Some((count, usize::try_from(start).ok()?));
    }
    let locator = end.checked_sub(LOCATOR_LENGTH)?;
    let end64 = length::<8>(bytes, locator + 8)?;
    let is_there = number::<4>(bytes, locator)? == END64_LOCATOR && number::<4>(bytes, end64)? == END64;
    is_there.then_some(())?;
    Some((number::<8>(bytes, end64 + 32)?, length::<8>(bytes, end64 + 48)?))
}

struct Entry {
    name: String,
    method: u64,
    data: Range<usize>,
    /// Where the next one begins.
    end: usize,
}

fn central_entry(bytes: &[u8], at: usize) -> Option<Entry> {
    (number::<4>(bytes, at)? == CENTRAL).then_some(())?;
    let lengths = [length::<2>(bytes, at + 28)?, length::<2>(bytes, at + 30)?, length::<2>(bytes, at + 32)?];
    let name_end = at + 46 + lengths[0];
    let name = String::from_utf8_lossy(bytes.get(at + 46..name_end)?).into_owned();
    let extra = bytes.get(name_end..name_end + lengths[1])?;
    let fields = [number::<4>(bytes, at + 24)?, number::<4>(bytes, at + 20)?, number::<4>(bytes, at + 42)?];
    let [_, size, header] = wide_fields(fields, extra)?;
    let (size, header) = (usize::try_from(size).ok()?, usize::try_from(header).ok()?);
    (number::<4>(bytes, header)? == LOCAL).then_some(())?;
    let start = header + 30 + length::<2>(bytes, header + 26)? + length::<2>(bytes, header + 28)?;
    let data = start..start.checked_add(size)?;
    bytes.get(data.clone())?;
    Some(Entry { name, method: number::<2>(bytes, at + 10)?, data, end: name_end + lengths[1] + lengths[2] })
}

/// Uncompressed size, size and offset, those that are too large for 32 bits from the extra field of id 1, in this order.
fn wide_fields(mut fields: [u64; 3], extra: &[u8]) -> Option<[u64; 3]> {
    let (mut at, mut wide) = (0, None);
    while at + 4 <= extra.len() {
        if number::<2>(extra, at)? == 1 {
            wide = Some(at + 4);
        }
        at += 4 + length::<2>(extra, at + 2)?;
    }
    for field in fields.iter_mut().filter(|field| **field == ELSEWHERE) {
        let at = wide.as_mut()?;
        *field = number::<8>(extra, *at)?;
        *at += 8;
    }
    Some(fields)
}
