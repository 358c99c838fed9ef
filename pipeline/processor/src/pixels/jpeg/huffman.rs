//! Huffman codes of a sequential scan (ITU-T T.81, annexes C and F.2.2): one look in a table gives a coefficient.
//!
//! A code says how many zeros stand before a coefficient and how many bits hold its value, which follows. Most codes
//! are no longer than a look; the table has an entry for whatever bits may stand behind them.

use super::idct::{Blocks, ROW};

/// Bits of a look: 2^10 entries for each of a photo's four tables leave half of the first cache to others.
const LOOK: u32 = 10;
/// Longest code.
const MAX_CODE: u32 = 16;
/// Bits that one coefficient takes at most: its code and its value.
pub(super) const MAX_COEFFICIENT_BITS: usize = 31;
/// Bits that are there after a refill.
const REFILLED: u32 = 56;
/// Bits of code and value that an entry may have: two of them leave a look of a refill.
const QUICK_BITS: u32 = (REFILLED - LOOK) / 2;

/// Place in [`Blocks`] of the first lane's coefficients in the order of the file (figure A.6).
const PLACES: [u8; 64] = places();

/// The last coefficient of a block in the order of the file.
const LAST: u32 = 63;

/// A step of more than [`LAST`] ends the quick loop: the block's end, or a code that is longer than a look.
const STEP_END: u32 = 64;
const STEP_LONG_CODE: u32 = 65;

const fn places() -> [u8; 64] {
    let mut places = [0; 64];
    let (mut row, mut column, mut at) = (0u8, 0u8, 0);
    while at < 64 {
        places[at] = row * ROW as u8 + column;
        at += 1;
        // Up and to the right on even diagonals, down and to the left on odd ones.
        match (row + column) % 2 == 0 {
            true if column == 7 => row += 1,
            true if row == 0 => column += 1,
            true => (row, column) = (row - 1, column + 1),
            false if row == 7 => column += 1,
            false if column == 0 => row += 1,
            false => (row, column) = (row + 1, column - 1),
        }
    }
    places
}

/// What the first [`LOOK`] bits mean. From the lowest bit, 8 bits each: length of code and value, length of the code,
/// 63 less the length of the value, step (how far the coefficient stands from the last).
#[derive(Clone, Copy)]
struct Entry(u32);

impl Entry {
    const LONG_CODE: Self = Self(STEP_LONG_CODE << 24);

    /// For a code that is `length` bits long.
    fn new(kind: Kind, length: u32, symbol: u8) -> Self {
        let (zeros, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        let step = match (kind, zeros, size) {
            (Kind::Dc, ..) => 1,
            (Kind::Ac, 15, 0) => 16,
            (Kind::Ac, _, 0) => STEP_END,
            (Kind::Ac, ..) => zeros + 1,
        };
        Self((length + size) | (length << 8) | ((63 - size) << 16) | (step << 24))
    }

    fn step(self) -> u32 {
        self.0 >> 24
    }
}

/// What a table's symbols tell.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The size of a difference.
    Dc,
    /// Four bits of zeros before a value, four bits of its size.
    Ac,
}

/// One table of a scan, made for looking up.
pub(super) struct Codes {
    kind: Kind,
    entries: [Entry; 1 << LOOK],
    /// For each length the first code beyond those of that length or less, brought to 16 bits.
    ends: [u32; MAX_CODE as usize + 1],
    /// For each length what must be added to a code to get its symbol's index.
    offsets: [i32; MAX_CODE as usize + 1],
    symbols: [u8; 256],
}

impl Codes {
    /// From the number of codes of each length (the first is of none) and the symbols in the order of their codes;
    /// `None` if they are no code that the library takes.
    pub(super) fn new(kind: Kind, counts: &[u8; MAX_CODE as usize + 1], symbols: &[u8; 256]) -> Option<Self> {
        let (entries, ends, offsets) = ([Entry::LONG_CODE; 1 << LOOK], [0; 17], [0; 17]);
        let mut codes = Self { kind, entries, ends, offsets, symbols: *symbols };
        let (mut code, mut index) = (0u32, 0usize);
        for length in 1..=MAX_CODE {
            let count = u32::from(counts[length as usize]);
            codes.offsets[length as usize] = index as i32 - code as i32;
            if index + count as usize > symbols.len() || code + count > 1 << length {
                return None;
            }
            for symbol in &symbols[index..index + count as usize] {
                if length <= LOOK {
                    codes.enter(code, length, *symbol);
                }
                code += 1;
            }
            index += count as usize;
            codes.ends[length as usize] = code << (MAX_CODE - length);
            code <<= 1;
        }
        let is_valid = kind == Kind::Ac || symbols[..index].iter().all(|&symbol| symbol < 16);
        is_valid.then_some(codes)
    }

    /// Fills the entries of all looks that start with `code`.
    fn enter(&mut self, code: u32, length: u32, symbol: u8) {
        let rest = LOOK - length;
        let first = (code << rest) as usize;
        let entry = Entry::new(self.kind, length, symbol);
        if entry.0 & 0xFF <= QUICK_BITS {
            self.entries[first..first + (1 << rest)].fill(entry);
        }
    }

    fn entry(&self, bits: u64) -> Entry {
        self.entries[(bits >> (u64::BITS - LOOK)) as usize]
    }

    /// The entry that a code longer than a look would have; `None` if there is no such code.
    #[cold]
    fn long_code(&self, bits: u64) -> Option<Entry> {
        let code = (bits >> (u64::BITS - MAX_CODE)) as u32;
        let length = (1..=MAX_CODE).find(|&length| code < self.ends[length as usize])?;
        let index = self.offsets[length as usize] + (code >> (MAX_CODE - length)) as i32;
        Some(Entry::new(self.kind, length, self.symbols[index as usize & 0xFF]))
    }
}

/// The next bits of a scan, the first of them highest. Bits beyond `count` are zero or those that follow.
#[derive(Clone, Copy, Default)]
pub(super) struct Bits {
    bits: u64,
    count: u32,
    /// The byte that the next refill begins with.
    at: usize,
}

impl Bits {
    /// Bytes that are taken, whole or in part.
    pub(super) fn taken(&self) -> usize {
        self.at - self.count as usize / 8
    }

    /// The byte that the next refill begins with.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// After bytes before `at` have been dropped.
    pub(super) fn moved_back(&mut self, dropped: usize) {
        self.at -= dropped;
    }

    /// Brings in whole bytes, so that at least [`REFILLED`] bits are there. Beyond the bytes' end all are zero.
    #[inline(always)]
    pub(super) fn refill<const N: usize>(&mut self, bytes: &[u8; N]) {
        let next = bytes.get(self.at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_be_bytes(*word));
        self.bits |= next >> self.count;
        self.at += (self.count as usize ^ 63) / 8;
        self.count |= REFILLED;
    }

    /// Takes a code and its value.
    ///
    /// Values that start with a zero stand for negative numbers (figure F.12).
    #[inline(always)]
    fn take(&mut self, Entry(entry): Entry) -> i16 {
        let from_value = self.bits << (entry >> 8 & 63);
        let value = from_value >> 1 >> (entry >> 16 & 63);
        let is_negative = !(from_value as i64 >> 63) as u64;
        // All ones above the value's bits.
        let above = u64::MAX << ((entry >> 16 & 63) ^ 63);
        self.bits <<= entry & 63;
        self.count -= entry & 0xFF;
        value.wrapping_add(is_negative & above.wrapping_add(1)) as i16
    }
}

/// Bits that are no code, or more coefficients than a block has.
pub(super) struct Unreadable;

/// Reads the difference that a block begins with.
#[inline(always)]
pub(super) fn difference<const N: usize>(bits: &mut Bits, bytes: &[u8; N], codes: &Codes) -> Result<i16, Unreadable> {
    let mut entry = codes.entry(bits.bits);
    bits.refill(bytes);
    if entry.step() > LAST {
        entry = codes.long_code(bits.bits).ok_or(Unreadable)?;
    }
    Ok(bits.take(entry))
}

/// Reads the coefficients behind a block's first into a lane that is zero.
#[inline(always)]
pub(super) fn coefficients<const N: usize>(
    bits: &mut Bits,
    bytes: &[u8; N],
    codes: &Codes,
    blocks: &mut Blocks,
    lane: usize,
) -> Result<(), Unreadable> {
    let block = blocks.lane(lane);
    let mut last = 0;
    while last < LAST {
        // The look needs none of the bits that a refill brings: both go on at once.
        let mut entry = codes.entry(bits.bits);
        bits.refill(bytes);
        let next = last + entry.step();
        if next <= LAST {
            block[usize::from(PLACES[next as usize])] = bits.take(entry);
            last = next;
            // There are bits for another one, but not for the slow way.
            entry = codes.entry(bits.bits);
            let next = last + entry.step();
            if next <= LAST {
                block[usize::from(PLACES[next as usize])] = bits.take(entry);
                last = next;
                continue;
            }
            if last == LAST {
                break;
            }
            bits.refill(bytes);
        }
        let mut next = last + entry.step();
        if next > LAST {
            if entry.step() == STEP_LONG_CODE {
                entry = codes.long_code(bits.bits).ok_or(Unreadable)?;
                next = last + entry.step();
            }
            if entry.step() == STEP_END {
                bits.take(entry);
                return Ok(());
            }
            if next > LAST {
                return Err(Unreadable);
            }
        }
        block[usize::from(PLACES[next as usize])] = bits.take(entry);
        last = next;
    }
    Ok(())
}
