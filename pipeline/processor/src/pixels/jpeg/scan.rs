//! The MCUs of one sequential scan (ITU-T T.81, annex F.2), from the bytes behind its header.

use std::rc::Rc;

use super::huffman::{Bits, Codes, Kind, MAX_COEFFICIENT_BITS, Unreadable, coefficients, difference};
use super::idct::{Blocks, LANES, Samples};

/// Blocks of an MCU at most (B.2.3).
pub(super) const MAX_BLOCKS: usize = 10;
/// Bytes that hold any MCU, and what a refill reads ahead.
const MCU_BYTES: usize = MAX_BLOCKS * 64 * MAX_COEFFICIENT_BITS / 8 + 16;
/// Bytes without stuffing that are at hand: few enough to stay in the first cache.
const DATA_BYTES: usize = 8 << 10;
/// What [`Stream`] has at hand.
type Data = [u8; DATA_BYTES + MCU_BYTES];
/// Bytes kept before the next one to take: what a reader holds is counted from there.
const KEPT_BYTES: usize = 8;

/// One component of a scan: `width` and `height` are its blocks in an MCU, `last_width` and `last_height` those of them
/// that belong to the picture in the last column and row of MCUs.
pub(super) struct Component {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) last_width: usize,
    pub(super) last_height: usize,
    pub(super) dc: Rc<Codes>,
    pub(super) ac: Rc<Codes>,
    /// Quantisation steps, in rows.
    pub(super) steps: [i16; 64],
}

/// A component's samples of one row of MCUs: as many rows of samples as it has, each as wide as its blocks.
pub(super) type Plane<'p> = Vec<&'p mut [u8]>;

/// Blocks of a component on their way to its plane.
struct Pending {
    component: Component,
    prediction: i16,
    blocks: Blocks,
    /// First row and column in the plane of each lane in use; `None` for blocks beyond the picture.
    places: [Option<(usize, usize)>; LANES],
    num_lanes: usize,
}

/// A scan that is read from the first MCU on.
pub(super) struct Scan<'a> {
    tables: Vec<(Kind, i32, Rc<Codes>)>,
    components: Vec<Pending>,
    stream: Stream<'a>,
    bits: Bits,
    restarts: Restarts,
}

struct Restarts {
    /// MCUs from one restart marker to the next; 0 if there are none.
    interval: u32,
    /// MCUs until the next.
    left: u32,
    /// Its number, 0 to 7.
    next: u8,
}

impl<'a> Scan<'a> {
    /// The scan whose data `file` begins with.
    pub(super) fn new(file: &'a [u8], restart_interval: u32) -> Self {
        Self {
            tables: Vec::new(),
            components: Vec::new(),
            stream: Stream::new(file),
            bits: Bits::default(),
            restarts: Restarts { interval: restart_interval, left: restart_interval, next: 0 },
        }
    }

    /// The table in a slot, made from its definition when it is asked for first; `None` if it is no code.
    pub(super) fn table(&mut self, kind: Kind, slot: i32, counts: &[u8; 17], symbols: &[u8; 256]) -> Option<Rc<Codes>> {
        if let Some((.., codes)) = self.tables.iter().find(|(of, at, _)| (*of, *at) == (kind, slot)) {
            return Some(Rc::clone(codes));
        }
        let codes = Rc::new(Codes::new(kind, counts, symbols)?);
        self.tables.push((kind, slot, Rc::clone(&codes)));
        Some(codes)
    }

    /// Appends a component.
    pub(super) fn push(&mut self, component: Component) {
        let (places, num_lanes) = ([None; LANES], 0);
        self.components.push(Pending { component, prediction: 0, blocks: Blocks::new(), places, num_lanes });
    }

    /// The file from where nothing of this scan has been looked at: at the latest from the next marker on.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.stream.rest()
    }

    /// Reads a row of MCUs into the components' planes, from their row `top` on.
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt")]
    pub(super) fn mcu_row(
        &mut self,
        planes: &mut [Plane<'_>],
        num_mcus: usize,
        top: usize,
        is_last: bool,
    ) -> Result<(), Unreadable> {
        for column in 0..num_mcus {
            self.before_mcu()?;
            let (mut bits, data) = (self.bits, &*self.stream.data);
            bits.refill(data);
            for (pending, plane) in self.components.iter_mut().zip(&mut *planes) {
                let Component { width, height, last_width, last_height, .. } = pending.component;
                let width_kept = if column + 1 == num_mcus { last_width } else { width };
                let height_kept = if is_last { last_height } else { height };
                for y in 0..height {
                    for x in 0..width {
                        let is_kept = x < width_kept && y < height_kept;
                        let place = (top + y * 8, (column * width + x) * 8);
                        bits = pending.read(bits, data, is_kept.then_some(place))?;
                        if pending.num_lanes == LANES {
                            pending.transform(plane)?;
                        }
                    }
                }
            }
            self.bits = bits;
            if self.bits.taken() > self.stream.filled {
                return Err(Unreadable);
            }
        }
        self.components.iter_mut().zip(planes).try_for_each(|(pending, plane)| pending.transform(plane))
    }

    /// Passes the restart marker that is due and brings what an MCU may take.
    fn before_mcu(&mut self) -> Result<(), Unreadable> {
        if self.restarts.interval > 0 {
            if self.restarts.left == 0 {
                self.restart()?;
            }
            self.restarts.left -= 1;
        }
        if self.bits.at() + MCU_BYTES > self.stream.filled {
            self.stream.fill(&mut self.bits);
        }
        Ok(())
    }

    /// Goes on behind the restart marker that is due.
    fn restart(&mut self) -> Result<(), Unreadable> {
        self.stream.fill(&mut self.bits);
        self.stream.pass_restart(self.restarts.next)?;
        self.bits = Bits::default();
        self.components.iter_mut().for_each(|pending| pending.prediction = 0);
        self.restarts.left = self.restarts.interval;
        self.restarts.next = (self.restarts.next + 1) % 8;
        Ok(())
    }
}

impl Pending {
    /// Reads the next block into the next lane.
    #[inline(always)]
    fn read(&mut self, mut bits: Bits, data: &Data, place: Option<(usize, usize)>) -> Result<Bits, Unreadable> {
        let difference = difference(&mut bits, data, &self.component.dc)?;
        self.prediction = self.prediction.wrapping_add(difference);
        self.blocks.lane(self.num_lanes)[0] = self.prediction;
        coefficients(&mut bits, data, &self.component.ac, &mut self.blocks, self.num_lanes)?;
        self.places[self.num_lanes % LANES] = place;
        self.num_lanes += 1;
        Ok(bits)
    }

    /// Brings the lanes in use to the plane.
    #[target_feature(enable = "avx2")]
    fn transform(&mut self, plane: &mut Plane<'_>) -> Result<(), Unreadable> {
        let mut samples = Samples::new();
        if !self.blocks.transform(&self.component.steps, &mut samples) {
            return Err(Unreadable);
        }
        match side_by_side(&self.places[..self.num_lanes]) {
            Some(place) => put::<{ 8 * LANES }>(plane, place, &samples, 0),
            None => {
                for (lane, place) in self.places[..self.num_lanes].iter().enumerate() {
                    place.iter().for_each(|&place| put::<8>(plane, place, &samples, lane));
                }
            }
        }
        self.num_lanes = 0;
        Ok(())
    }
}

/// The place of the first lane, if all lanes are in use and one block follows the other in a row.
#[inline(always)]
fn side_by_side(places: &[Option<(usize, usize)>]) -> Option<(usize, usize)> {
    let [Some((top, left)), ..] = *places else { return None };
    let follows = |(lane, place): (usize, &Option<_>)| *place == Some((top, left + lane * 8));
    (places.len() == LANES && places.iter().enumerate().all(follows)).then_some((top, left))
}

/// Copies the blocks of `N` columns from `lane` on.
#[inline(always)]
fn put<const N: usize>(plane: &mut Plane<'_>, (top, left): (usize, usize), samples: &Samples, lane: usize) {
    for (row, to) in plane[top..top + 8].iter_mut().enumerate() {
        to[left..left + N].copy_from_slice(samples.row::<N>(lane, row));
    }
}

/// A file's entropy-coded bytes without the zeros that are stuffed behind 0xFF (B.1.1.5), some at a time.
struct Stream<'a> {
    file: &'a [u8],
    /// The next byte of the file; where a marker begins once `ended`.
    next: usize,
    /// Whether a marker, or the end of the file, has come.
    ended: bool,
    data: Box<Data>,
    /// Bytes of `data` that are the file's; once `ended`, those behind are zero.
    filled: usize,
}

impl<'a> Stream<'a> {
    fn new(file: &'a [u8]) -> Self {
        Self { file, next: 0, ended: false, data: Box::new([0; DATA_BYTES + MCU_BYTES]), filled: 0 }
    }

    fn rest(&self) -> &'a [u8] {
        self.file.get(self.next..).unwrap_or_default()
    }

    /// Drops what `bits` has taken and brings as much as there is room for.
    fn fill(&mut self, bits: &mut Bits) {
        if self.ended {
            return;
        }
        let dropped = bits.at().saturating_sub(KEPT_BYTES).min(self.filled);
        self.data.copy_within(dropped..self.filled, 0);
        bits.moved_back(dropped);
        self.filled -= dropped;
        while !self.ended && self.filled < DATA_BYTES {
            self.bring();
        }
        if self.ended {
            self.data[self.filled..self.filled + MCU_BYTES].fill(0);
        }
    }

    /// Brings up to eight bytes.
    fn bring(&mut self) {
        let rest = self.rest();
        let word = rest.first_chunk::<8>().map_or(0, |word| u64::from_be_bytes(*word));
        // The highest bit of each byte that is 0xFF; one that is 0xFE in front of such a byte may be taken for one.
        let all_ones = (!word).wrapping_sub(0x0101_0101_0101_0101) & word & 0x8080_8080_8080_8080;
        if rest.len() >= 8 && all_ones == 0 {
            self.data[self.filled..self.filled + 8].copy_from_slice(&rest[..8]);
            (self.next, self.filled) = (self.next + 8, self.filled + 8);
            return;
        }
        match *rest {
            [0xFF, 0, ..] => self.put(0xFF, 2),
            [] | [0xFF, ..] => self.ended = true,
            [byte, ..] => self.put(byte, 1),
        }
    }

    fn put(&mut self, byte: u8, num_taken: usize) {
        self.data[self.filled] = byte;
        self.filled += 1;
        self.next += num_taken;
    }

    /// Steps over restart marker `number` and the bytes 0xFF that may stand before it.
    fn pass_restart(&mut self, number: u8) -> Result<(), Unreadable> {
        let rest = self.rest();
        let num_ones = rest.iter().take_while(|&&byte| byte == 0xFF).count();
        if !self.ended || num_ones == 0 || rest.get(num_ones) != Some(&(0xD0 + number)) {
            return Err(Unreadable);
        }
        self.next += num_ones + 1;
        (self.ended, self.filled) = (false, 0);
        Ok(())
    }
}
