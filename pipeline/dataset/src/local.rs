//! The in-process batch source: a worker thread that stays ahead of the trainer.

use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use vela_types::{Batch, BatchSource, BatchSpec, Cursor, DatasetInfo, Position, SourceError};

use crate::prefetch::{PrefetchQueue, PrefetchStats};
use crate::{Dataset, DatasetError, LookAhead, Partition, Share};

/// Streams one rank's micro-batches out of a [`Dataset`], from the start of the data until told to [`BatchSource::seek`].
///
/// A worker thread makes batches ahead of the consumer, at most `prefetch_bytes` of them; what it has prefetched never
/// shows in a cursor. Dropping the source stops the worker and waits for it. After an error the next call tries the
/// same position again.
#[derive(Debug)]
pub struct LocalSource {
    share: Share,
    prefetch_bytes: usize,
    /// Position of the next batch to be given out.
    next: Position,
    worker: Option<Worker>,
}

impl LocalSource {
    /// A source that stands at the start of the data, over a set whose every record fits `spec`. No thread runs before
    /// the first batch is asked for.
    pub fn new(
        dataset: Arc<Dataset>,
        spec: BatchSpec,
        partition: Partition,
        prefetch_bytes: usize,
    ) -> Result<Self, DatasetError> {
        let share = Share::new(dataset, spec, partition)?;
        let next = Position { epoch: 0, step: 0, micro: 0 };
        Ok(Self { share, prefetch_bytes, next, worker: None })
    }

    /// How far ahead the worker is and who waited, since the last seek.
    pub fn stats(&self) -> PrefetchStats {
        self.worker.as_ref().map(|worker| worker.queue.stats()).unwrap_or_default()
    }

    /// The cursor that continues with the next batch; meaningful between steps.
    pub fn cursor(&self) -> Cursor {
        let Position { epoch, step, .. } = self.next;
        Cursor { epoch, step, ..self.start_cursor() }
    }

    fn worker(&mut self) -> Result<&Worker, DatasetError> {
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => self.start_worker()?,
        };
        Ok(self.worker.insert(worker))
    }

    fn start_worker(&self) -> Result<Worker, DatasetError> {
        let queue = Arc::new(PrefetchQueue::new(self.prefetch_bytes));
        let (share, output, mut position) = (self.share.clone(), Arc::clone(&queue), self.next);
        let ahead = LookAhead::start(&share, position)?;
        let produce = move || {
            // A consumer that waits must see the end of a worker that panicked.
            let output = CloseOnDrop(output);
            loop {
                ahead.iter().for_each(|ahead| ahead.advance(position));
                let batch = share.open_shards(position).and_then(|()| share.batch(position));
                let is_last = batch.is_err();
                if !output.0.push(batch) || is_last {
                    return;
                }
                position = share.plan().after(position);
            }
        };
        let thread = Builder::new().name("vela-prefetch".to_owned()).spawn(produce).map_err(DatasetError::Thread)?;
        Ok(Worker { queue, thread: Some(thread) })
    }
}

impl BatchSource for LocalSource {
    fn info(&self) -> &DatasetInfo {
        self.share.dataset().info()
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<(), SourceError> {
        self.next = self.share.position_of(cursor)?;
        self.worker = None;
        Ok(())
    }

    fn start_cursor(&self) -> Cursor {
        self.share.dataset().start_cursor(self.share.spec())
    }

    fn steps_per_epoch(&self) -> u64 {
        self.share.plan().steps_per_epoch()
    }

    fn next_batch(&mut self) -> Result<Batch, SourceError> {
        let batch = self.worker()?.queue.pop().unwrap_or(Err(DatasetError::WorkerLost));
        match batch {
            Ok(batch) => {
                self.next = self.share.plan().after(batch.position);
                Ok(batch)
            }
            Err(fault) => {
                self.worker = None;
                Err(fault.into())
            }
        }
    }
}

#[derive(Debug)]
struct Worker {
    queue: Arc<PrefetchQueue>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the thread itself and surfaces as `WorkerLost`.
            let _ = thread.join();
        }
    }
}

/// Closes the queue when the producer ends, however it ends.
struct CloseOnDrop(Arc<PrefetchQueue>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}
