//! The shards that this process has open. Copies of remote ones are few enough for its file descriptors, and given up where the cache
//! needs their room.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard, TryLockError, Weak};
use std::time::{Duration, Instant};

use vela_shard::{ShardError, ShardReader};

use crate::DatasetError;

/// Copies of all data sets that are kept open though nobody reads them: each takes a file descriptor and its room in the cache.
const MAX_KEPT_OPEN: usize = 512;

/// How long a full cache is waited for: whoever reads a row is soon done with it.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);
const ROOM_PAUSE: Duration = Duration::from_millis(5);

/// How long a shard whose bytes are damaged is left alone: each look at it may fetch the whole of it, and every record of it asks. Then it may
/// have been repaired.
const DAMAGE_REST: Duration = Duration::from_secs(30);

/// Every slot that was filled with a copy and not emptied again. Of the whole process, as descriptors and caches are.
static FILLED: Mutex<Vec<Weak<ShardSlot>>> = Mutex::new(Vec::new());
/// Counts uses, to know the last one of each slot.
static CLOCK: AtomicU64 = AtomicU64::new(0);

/// The place of one shard's reader: opened when a record is first read, and again after it was given up.
#[derive(Debug)]
pub(crate) struct ShardSlot {
    /// Whether its store maps copies.
    is_copy: bool,
    open: RwLock<Option<OpenShard>>,
    damage: Mutex<Option<Damage>>,
    last_used: AtomicU64,
    /// Milliseconds that damage is left alone for.
    rest: AtomicU64,
}

#[derive(Clone, Debug)]
struct OpenShard {
    reader: Arc<ShardReader>,
    /// When it took the place of one that had turned out damaged: damage that is left is in the shard itself.
    replaced: Option<Instant>,
}

/// Why a shard could not be opened, and when that was.
#[derive(Debug)]
struct Damage {
    found: Instant,
    fault: Arc<DatasetError>,
}

impl ShardSlot {
    pub(crate) fn new(is_copy: bool) -> Arc<Self> {
        let (open, damage, last_used) = (RwLock::default(), Mutex::default(), AtomicU64::new(0));
        let slot = Self { is_copy, open, damage, last_used, rest: AtomicU64::default() };
        slot.set_rest(DAMAGE_REST);
        Arc::new(slot)
    }

    pub(crate) fn set_rest(&self, rest: Duration) {
        self.rest.store(u64::try_from(rest.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether something of `then` is still to be left alone.
    fn is_resting(&self, then: Instant) -> bool {
        then.elapsed() < Duration::from_millis(self.rest.load(Ordering::Relaxed))
    }

    /// The reader, opened by `open` if it is not. Where a cache has no room, readers that nobody uses are given up for it.
    pub(crate) fn reader(
        self: &Arc<Self>,
        open: impl Fn() -> Result<ShardReader, DatasetError>,
    ) -> Result<Arc<ShardReader>, DatasetError> {
        self.last_used.store(CLOCK.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        if let Some(open) = self.open.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return Ok(Arc::clone(&open.reader));
        }
        let mut slot = self.lock();
        match slot.as_ref() {
            Some(open) => Ok(Arc::clone(&open.reader)),
            None => match self.known_damage() {
                Some(fault) => Err(DatasetError::StillDamaged(fault)),
                None => self.fill(&mut slot, open, None),
            },
        }
    }

    /// False also while it is being opened.
    pub(crate) fn is_open(&self) -> bool {
        match self.open.try_read() {
            Ok(slot) => slot.is_some(),
            Err(TryLockError::Poisoned(slot)) => slot.into_inner().is_some(),
            Err(TryLockError::WouldBlock) => false,
        }
    }

    /// Replaces `faulty`, whose bytes are damaged: a copy by one fetched anew, once `drop_copy` has dropped the old one, a local file by what
    /// now stands under its name. `None` if that was done a moment ago.
    pub(crate) fn replace(
        self: &Arc<Self>,
        faulty: &Arc<ShardReader>,
        drop_copy: impl FnOnce() -> Result<bool, DatasetError>,
        open: impl Fn() -> Result<ShardReader, DatasetError>,
    ) -> Result<Option<Arc<ShardReader>>, DatasetError> {
        let mut slot = self.lock();
        match slot.as_ref() {
            // Another thread has met the same damage.
            Some(open) if !Arc::ptr_eq(&open.reader, faulty) => return Ok(Some(Arc::clone(&open.reader))),
            Some(open) if open.replaced.is_some_and(|replaced| self.is_resting(replaced)) => return Ok(None),
            Some(_) if self.is_copy && !drop_copy()? => return Ok(None),
            Some(_) => {}
            // Another thread dropped it, and could not fetch it.
            None => {
                if let Some(fault) = self.known_damage() {
                    return Err(DatasetError::StillDamaged(fault));
                }
            }
        }
        *slot = None;
        self.fill(&mut slot, open, Some(Instant::now())).map(Some)
    }

    fn fill(
        self: &Arc<Self>,
        slot: &mut Option<OpenShard>,
        open: impl Fn() -> Result<ShardReader, DatasetError>,
        replaced: Option<Instant>,
    ) -> Result<Arc<ShardReader>, DatasetError> {
        if self.is_copy {
            close_unused(MAX_KEPT_OPEN - 1);
        }
        let reader = Arc::new(open_with_room(open).map_err(|fault| self.remembered(fault))?);
        *self.lock_damage() = None;
        *slot = Some(OpenShard { reader: Arc::clone(&reader), replaced });
        if self.is_copy {
            filled().push(Arc::downgrade(self));
        }
        Ok(reader)
    }

    /// The damage that kept this shard from being opened, if that was not long ago.
    fn known_damage(&self) -> Option<Arc<DatasetError>> {
        let damage = self.lock_damage();
        let recent = damage.as_ref().filter(|damage| self.is_resting(damage.found));
        recent.map(|damage| Arc::clone(&damage.fault))
    }

    /// `fault`, kept for those who ask next if it is damage.
    fn remembered(&self, fault: DatasetError) -> DatasetError {
        if !fault.is_damage() {
            return fault;
        }
        let fault = Arc::new(fault);
        let damage = Damage { found: Instant::now(), fault: Arc::clone(&fault) };
        *self.lock_damage() = Some(damage);
        DatasetError::StillDamaged(fault)
    }

    /// Closes the reader unless somebody has it; false if it stays open.
    fn close_if_unused(&self) -> bool {
        let mut slot = match self.open.try_write() {
            Ok(slot) => slot,
            Err(TryLockError::Poisoned(slot)) => slot.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if slot.as_ref().is_some_and(|open| Arc::strong_count(&open.reader) > 1) {
            return false;
        }
        *slot = None;
        true
    }

    fn lock_damage(&self) -> MutexGuard<'_, Option<Damage>> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Option<OpenShard>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a shard; where the cache has no room for it, gives up what nobody uses and waits for what somebody does.
fn open_with_room(open: impl Fn() -> Result<ShardReader, DatasetError>) -> Result<ShardReader, DatasetError> {
    let started = Instant::now();
    loop {
        match open() {
            Err(DatasetError::Shard(ShardError::CacheFull { limit, needed, .. }))
                if needed <= limit && started.elapsed() < ROOM_PATIENCE =>
            {
                // One at a time: those used last may be what a batch is about to read.
                if !close_oldest() {
                    std::thread::sleep(ROOM_PAUSE);
                }
            }
            opened => return opened,
        }
    }
}

/// Closes the readers that were not used for longest until no more than `num_kept` are open, or all that are left are being used.
fn close_unused(num_kept: usize) {
    let mut filled = filled();
    if filled.len() > num_kept {
        let excess = slots_by_use(&filled).len().saturating_sub(num_kept);
        close_some(&mut filled, excess);
    }
}

/// Closes the reader that was not used for longest of those that nobody uses; false if there is none.
fn close_oldest() -> bool {
    close_some(&mut filled(), 1)
}

/// Closes at most `most` readers that nobody uses, the longest unused first; false if there was none.
fn close_some(filled: &mut Vec<Weak<ShardSlot>>, most: usize) -> bool {
    let mut num_closed = 0;
    let mut slots = slots_by_use(filled);
    slots.retain(|slot| {
        let is_closed = num_closed < most && slot.close_if_unused();
        num_closed += usize::from(is_closed);
        !is_closed
    });
    *filled = slots.iter().map(Arc::downgrade).collect();
    num_closed > 0
}

/// Each slot once, the longest unused first.
fn slots_by_use(filled: &[Weak<ShardSlot>]) -> Vec<Arc<ShardSlot>> {
    let mut slots: Vec<Arc<ShardSlot>> = filled.iter().filter_map(Weak::upgrade).collect();
    slots.sort_by_key(Arc::as_ptr);
    slots.dedup_by(|slot, other| Arc::ptr_eq(slot, other));
    // Asked once per slot: others use them meanwhile.
    slots.sort_by_cached_key(|slot| slot.last_used.load(Ordering::Relaxed));
    slots
}

fn filled() -> MutexGuard<'static, Vec<Weak<ShardSlot>>> {
    FILLED.lock().unwrap_or_else(PoisonError::into_inner)
}
