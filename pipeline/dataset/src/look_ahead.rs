//! Shards of remote sets, fetched before the batches that read them are made.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use vela_types::Position;

use crate::{DatasetError, Share};

/// Shards that are open ahead of the batches at work, of one data set, take so many bytes at most, and no more than this share of a cache:
/// what is fetched early must not drive out what is needed now.
const AHEAD_BYTES: u64 = 512 << 20;
const SHARE_OF_CACHE: u64 = 4;

/// Batches that are looked at beyond the one at work.
const MAX_BATCHES: usize = 64;

/// Batches with something to fetch whose shards are fetched together.
const FETCHED_TOGETHER: usize = 4;

/// How long room that other streams hold, or a store that gave nothing, is waited for. The next batch ends every wait.
const PAUSE: Duration = Duration::from_millis(200);
/// For the next batch alone.
const LONG_PAUSE: Duration = Duration::from_secs(600);

/// Bytes that all streams of a data set have fetched ahead.
#[derive(Debug, Default)]
pub(crate) struct AheadBytes(Mutex<u64>);

impl AheadBytes {
    /// False, and nothing is taken, where that makes more than `limit`.
    fn take(&self, num_bytes: u64, limit: u64) -> bool {
        let mut held = self.lock();
        let is_room = held.saturating_add(num_bytes) <= limit;
        *held += if is_room { num_bytes } else { 0 };
        is_room
    }

    fn give_back(&self, num_bytes: u64) {
        *self.lock() -= num_bytes;
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that opens the shards of a stream's coming batches, some bytes ahead. It makes nothing and decides nothing: a batch whose shards it
/// has not opened yet opens them itself. Dropping it ends the thread, once what it fetches has come.
#[derive(Debug)]
pub struct LookAhead {
    progress: Arc<Progress>,
}

#[derive(Debug)]
struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// The batch at work.
    now: Position,
    ended: bool,
}

impl LookAhead {
    /// For a stream of `share` whose first batch is at `start`; `None` where all shards are local files.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(share: &Share, start: Position) -> Result<Option<Self>, DatasetError> {
        let Some(cache_bytes) = share.dataset().copies_limit() else { return Ok(None) };
        let state = Mutex::new(State { now: start, ended: false });
        let progress = Arc::new(Progress { state, changed: Condvar::new() });
        let fetcher = Fetcher {
            share: share.clone(),
            progress: Arc::clone(&progress),
            limit: AHEAD_BYTES.min(cache_bytes / SHARE_OF_CACHE),
            ahead: VecDeque::new(),
        };
        let thread = Builder::new().name("vela-look-ahead".to_owned());
        thread.spawn(move || fetcher.run()).map_err(DatasetError::Thread)?;
        Ok(Some(Self { progress }))
    }

    /// The batch at `now` is being made.
    pub fn advance(&self, now: Position) {
        self.progress.lock().now = now;
        self.progress.changed.notify_all();
    }
}

impl Drop for LookAhead {
    fn drop(&mut self) {
        self.progress.lock().ended = true;
        self.progress.changed.notify_all();
    }
}

impl Progress {
    /// The batch at work, once it is another than `last` or a pause is over; `None` when the stream is gone.
    fn wait(&self, last: Option<Position>, pause: Duration) -> Option<Position> {
        let is_same = |state: &mut State| !state.ended && last == Some(state.now);
        let waited = self.changed.wait_timeout_while(self.lock(), pause, is_same);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (!state.ended).then_some(state.now)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Fetcher {
    share: Share,
    progress: Arc<Progress>,
    limit: u64,
    /// Batches whose shards are open, and the bytes that were fetched for each.
    ahead: VecDeque<(Position, u64)>,
}

impl Fetcher {
    fn run(mut self) {
        let plan = self.share.plan();
        let (mut now, mut next) = (None, None);
        let mut pause = Duration::ZERO;
        while let Some(at_work) = self.progress.wait(now, pause) {
            now = Some(at_work);
            self.forget_until(at_work);
            if self.ahead.len() >= MAX_BATCHES {
                pause = LONG_PAUSE;
                continue;
            }
            let first = next.filter(|next| *next > at_work).unwrap_or_else(|| plan.after(at_work));
            let last = self.open(first);
            pause = if last.is_some() { Duration::ZERO } else { PAUSE };
            next = Some(last.map_or(first, |last| plan.after(last)));
        }
    }

    /// Opens the shards of some batches from `first` on and gives the last of them; `None` if there is no room for any now, or the store does
    /// not give them: what fails here fails again when its batch is made, which tells it.
    fn open(&mut self, first: Position) -> Option<Position> {
        let batches = self.take_room(first);
        let positions: Vec<Position> = batches.iter().map(|&(position, _)| position).collect();
        let is_open =
            batches.iter().all(|&(_, num_bytes)| num_bytes == 0) || self.share.open_shards_of(&positions).is_ok();
        let num_before = self.ahead.len();
        self.ahead.extend(batches);
        if !is_open {
            self.forget(num_before..self.ahead.len());
        }
        positions.last().copied().filter(|_| is_open)
    }

    /// Batches from `first` on that there is room for, as many as keep the store busy.
    fn take_room(&self, first: Position) -> Vec<(Position, u64)> {
        let (mut batches, mut num_fetched) = (Vec::new(), 0);
        let mut position = first;
        while num_fetched < FETCHED_TOGETHER && self.ahead.len() + batches.len() < MAX_BATCHES {
            let Ok(num_bytes) = self.share.bytes_to_fetch(position) else { break };
            if !self.share.dataset().ahead().take(num_bytes, self.limit) {
                break;
            }
            num_fetched += usize::from(num_bytes > 0);
            batches.push((position, num_bytes));
            position = self.share.plan().after(position);
        }
        batches
    }

    /// Gives back the room of batches up to `now`.
    fn forget_until(&mut self, now: Position) {
        let num_past = self.ahead.iter().take_while(|(position, _)| *position <= now).count();
        self.forget(0..num_past);
    }

    fn forget(&mut self, batches: Range<usize>) {
        let num_bytes = self.ahead.drain(batches).map(|(_, num_bytes)| num_bytes).sum();
        self.share.dataset().ahead().give_back(num_bytes);
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.forget(0..self.ahead.len());
    }
}
