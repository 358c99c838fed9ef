//! What a row of a batch is: one sample, or what a packing plan put together.
//!
//! Rows are planned once per data set and spec, so every epoch has the same ones in another order: the number of steps does
//! not change, and any place of any epoch can be looked up.

use std::sync::Arc;

use rayon::prelude::*;
use vela_shard::RowBuffer;
use vela_types::{BatchSpec, Fingerprint, PackFault, PackItem, PackLimits};

use crate::extent::expanded_length;
use crate::shard_set::ShardSet;
use crate::windows::WindowOrder;
use crate::{DatasetError, EpochOrder};

/// The rows of every part of a data set under one spec.
pub(crate) type PartUnits = Arc<Vec<Arc<Units>>>;

/// The rows that a shard set is made of under a spec.
#[derive(Debug)]
pub(crate) struct Units {
    num_units: u64,
    /// Sizes of the groups that a shuffle window counts: shards, or what was packed of a window of them.
    groups: Vec<u64>,
    /// Groups of one shuffle window.
    groups_per_window: usize,
    packed: Option<PackedRows>,
}

/// Samples row by row.
#[derive(Debug, Default)]
struct PackedRows {
    /// Where each row starts in `samples`, and where the last one ends.
    starts: Vec<u64>,
    /// Indices in the manifest's order.
    samples: Vec<u32>,
}

impl Units {
    /// The rows of `set` under `spec`.
    ///
    /// # Errors
    /// If a sample fits no row, by its name.
    pub(crate) fn plan(set: &ShardSet, spec: &BatchSpec) -> Result<Self, DatasetError> {
        match spec.pack_limits() {
            None => Ok(Self::samples_of(set, spec)),
            Some(limits) => Self::pack(set, spec, limits),
        }
    }

    /// Every sample a row of its own.
    fn samples_of(set: &ShardSet, spec: &BatchSpec) -> Self {
        let groups = set.manifest.shards.iter().map(|shard| shard.rows).collect();
        let groups_per_window = spec.shuffle_window as usize;
        Self { num_units: set.num_records(), groups, groups_per_window, packed: None }
    }

    fn pack(set: &ShardSet, spec: &BatchSpec, limits: PackLimits) -> Result<Self, DatasetError> {
        limits.check()?;
        if set.num_records() > u64::from(u32::MAX) {
            let expected = format!("unset for more than {} samples", u32::MAX);
            return Err(DatasetError::Spec { field: "packing", expected, found: set.num_records() });
        }
        let base = BaseOrder::new(set, spec);
        let mut rows = PackedRows { starts: vec![0], samples: Vec::with_capacity(set.num_records() as usize) };
        let mut groups = Vec::with_capacity(base.windows.len());
        // Threads of its own: batches are collated on the common ones, and a long plan would hold them all up.
        let planners = rayon::ThreadPoolBuilder::new().thread_name(|_| "vela-plan".to_owned()).build();
        let planners = planners.map_err(|fault| DatasetError::Thread(std::io::Error::other(fault)))?;
        for window in &base.windows {
            let firsts: Vec<u64> = window.clone().step_by(limits.window as usize).collect();
            let before = rows.num_rows();
            let pack = |first: u64| {
                pack_places(set, spec, limits, &base, first..window.end.min(first + u64::from(limits.window)))
            };
            let plans: Result<Vec<_>, WindowFault> = planners.install(|| firsts.into_par_iter().map(pack).collect());
            // A record is read for its name here, not on the threads that pack: its shard may have to be fetched.
            let plans = plans.map_err(|fault| match fault {
                WindowFault::Unread(fault) => fault,
                WindowFault::Unplanned(fault, indices) => named(set, &indices, fault),
            })?;
            plans.into_iter().flatten().for_each(|row| rows.push(&row));
            groups.push(rows.num_rows() - before);
        }
        Ok(Self { num_units: rows.num_rows(), groups, groups_per_window: 1, packed: Some(rows) })
    }

    /// Rows of one pass over the set.
    pub(crate) fn num_units(&self) -> u64 {
        self.num_units
    }

    /// The order of pass `pass` over the rows.
    pub(crate) fn order(&self, spec: &BatchSpec, fingerprint: &Fingerprint, pass: u64) -> UnitOrder {
        match (spec.shuffle, spec.shuffle_window) {
            (false, _) => UnitOrder::Whole(EpochOrder::sequential(self.num_units)),
            (true, 0) => UnitOrder::Whole(EpochOrder::shuffled(self.num_units, fingerprint, spec.seed, pass)),
            (true, _) => {
                UnitOrder::Windows(WindowOrder::new(&self.groups, self.groups_per_window, fingerprint, spec.seed, pass))
            }
        }
    }

    /// The samples of row `unit`, by their indices in the manifest's order.
    pub(crate) fn samples(&self, unit: u64, mut show: impl FnMut(u64)) {
        match &self.packed {
            None => show(unit),
            Some(rows) => rows.row(unit).iter().for_each(|&sample| show(u64::from(sample))),
        }
    }
}

impl PackedRows {
    fn num_rows(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    fn push(&mut self, row: &[u32]) {
        self.samples.extend_from_slice(row);
        self.starts.push(self.samples.len() as u64);
    }

    fn row(&self, unit: u64) -> &[u32] {
        let at = unit as usize;
        &self.samples[self.starts[at] as usize..self.starts[at + 1] as usize]
    }
}

/// An order of the rows of one pass.
#[derive(Clone, Debug)]
pub(crate) enum UnitOrder {
    Whole(EpochOrder),
    Windows(WindowOrder),
}

impl UnitOrder {
    pub(crate) fn index_at(&self, place: u64) -> Option<u64> {
        match self {
            Self::Whole(order) => order.index_at(place),
            Self::Windows(order) => order.index_at(place),
        }
    }
}

/// The order that is packed: that of pass 0 over the samples, cut where its windows end.
struct BaseOrder {
    order: UnitOrder,
    windows: Vec<std::ops::Range<u64>>,
}

impl BaseOrder {
    fn new(set: &ShardSet, spec: &BatchSpec) -> Self {
        let order = Units::samples_of(set, spec).order(spec, &set.manifest.fingerprint, 0);
        let windows = match &order {
            UnitOrder::Whole(_) => std::iter::once(0..set.num_records()).collect(),
            UnitOrder::Windows(order) => order.windows(),
        };
        Self { order, windows }
    }
}

/// Why the samples of a window are not packed.
enum WindowFault {
    /// Lengths cannot be read.
    Unread(DatasetError),
    /// There is no plan for the samples of these indices.
    Unplanned(PackFault, Vec<u64>),
}

/// Packs the samples at `places` of the base order; rows hold their indices.
fn pack_places(
    set: &ShardSet,
    spec: &BatchSpec,
    limits: PackLimits,
    base: &BaseOrder,
    places: std::ops::Range<u64>,
) -> Result<Vec<Vec<u32>>, WindowFault> {
    let index_at = |place| base.order.index_at(place).expect("a place of the set");
    let indices: Vec<u64> = places.map(index_at).collect();
    let item = |&index: &u64| {
        let lengths = set.lengths(index)?;
        let tokens = expanded_length(&lengths, spec).min(u64::from(u32::MAX)) as u32;
        Ok(PackItem { tokens, images: lengths.num_images })
    };
    let items: Vec<PackItem> = indices.iter().map(item).collect::<Result<_, _>>().map_err(WindowFault::Unread)?;
    match limits.pack(0, &items) {
        Ok(plan) => {
            let row = |row: Vec<u64>| row.into_iter().map(|at| indices[at as usize] as u32).collect();
            Ok(plan.rows.into_iter().map(row).collect())
        }
        Err(fault) => Err(WindowFault::Unplanned(fault, indices)),
    }
}

/// The error by the sample's name instead of its place.
fn named(set: &ShardSet, indices: &[u64], fault: PackFault) -> DatasetError {
    let PackFault::Unpackable { place, item, limits } = fault else { return fault.into() };
    let index = indices[place as usize];
    let id = set.read_with(index, |reader, row| {
        let mut buffer = RowBuffer::default();
        reader.read_row(row, &mut buffer)?;
        Ok(buffer.id)
    });
    match id {
        Err(fault) => fault,
        Ok(id) => DatasetError::Unpackable { id, index, item, limits },
    }
}
