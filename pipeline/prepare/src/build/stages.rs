//! One shard: a reader, workers and a writer, with a bound on the bytes between them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use vela_processor::{Processed, ProcessorError};
use vela_runtime::{Progress, Shutdown};
use vela_shard::{BuildFolder, CompletedShard, ShardError, ShardWriter};
use vela_types::{ImageRef, Sample};

use super::budget::ByteBudget;
use super::reject::{Reject, ShardNotes};
use super::{BuildConfig, BuildPlan, PlannedFile, ShardSpec};
use crate::PrepareError;
use crate::dialogue::to_sample;
use crate::sources::{Entry, Fault, RawContent, chain_text};

/// Bytes of records between reader and writer; one worker holds at most one decoded image besides.
const IN_FLIGHT_BYTES: u64 = 256 << 20;
/// Counted for every record on its way.
const RECORD_OVERHEAD_BYTES: u64 = 1024;

/// Makes a record of a sample; called by several threads.
pub(super) type Process<'a> = dyn Fn(&Sample) -> Result<Processed, ProcessorError> + Sync + 'a;

/// What every shard of a build is made with.
pub(super) struct Stages<'a> {
    pub(super) plan: &'a BuildPlan,
    pub(super) config: &'a BuildConfig,
    pub(super) process: &'a Process<'a>,
    /// Bytes of one image of a record.
    pub(super) image_bytes: u64,
    pub(super) progress: &'a Progress,
    pub(super) shutdown: &'a Shutdown,
    /// Most bytes that were ever between a reader and a writer.
    pub(super) peak_queue_bytes: AtomicU64,
}

/// A record on its way to a worker.
struct Job {
    sequence: u64,
    file: usize,
    entry: Entry,
    reserved: u64,
}

/// A record on its way to the writer.
struct Done {
    sequence: u64,
    file: usize,
    record: u64,
    outcome: Result<Processed, Reject>,
    reserved: u64,
}

impl Stages<'_> {
    /// Makes one shard from its records alone, whatever else is built, has been built or failed.
    pub(super) fn build_shard(
        &self,
        spec: &ShardSpec,
        folder: &BuildFolder,
    ) -> Result<(CompletedShard, ShardNotes), PrepareError> {
        let budget = ByteBudget::new(IN_FLIGHT_BYTES);
        // Unbounded in number, bounded in bytes: a record enters only once `budget` has room for it, and leaves it when
        // it is written. So both channels and the records that wait for an earlier one hold `IN_FLIGHT_BYTES` in all.
        let (job_sender, jobs) = unbounded::<Job>();
        let (done_sender, done) = unbounded::<Done>();
        thread::scope(|scope| {
            // However the writer ends, the reader must not wait for room that nobody makes any more.
            let writing = budget.close_on_drop();
            let reader = scope.spawn(|| self.read(spec, &budget, job_sender));
            for _ in 0..self.config.workers {
                let (jobs, done_sender) = (jobs.clone(), done_sender.clone());
                scope.spawn(move || self.work(&jobs, &done_sender));
            }
            drop(done_sender);
            let written = self.write(spec, folder, &budget, &done);
            drop(writing);
            self.peak_queue_bytes.fetch_max(budget.peak(), Ordering::Relaxed);
            let read = reader.join().expect("the reader does not panic");
            read.and(written)
        })
    }

    fn read(&self, spec: &ShardSpec, budget: &ByteBudget, jobs: Sender<Job>) -> Result<(), PrepareError> {
        let mut sequence = 0;
        for range in &spec.ranges {
            let mut stopped = false;
            let mut emit = |entry: Entry| {
                let Some(entry) = self.selected(range.file, entry) else { return ControlFlow::Continue(()) };
                let reserved = self.bytes_in_flight(&entry);
                let job = Job { sequence, file: range.file, entry, reserved };
                sequence += 1;
                stopped = self.shutdown.requested() || !budget.reserve(reserved) || jobs.send(job).is_err();
                if stopped { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            self.plan.files[range.file].file.records.read(range.records.clone(), &mut emit)?;
            if stopped {
                break;
            }
        }
        Ok(())
    }

    /// The record if it is in the set, a fault with the cause if it was cleaned away, `None` if a draw left it out.
    fn selected(&self, file: usize, entry: Entry) -> Option<Entry> {
        let Some(cause) = self.plan.left_out(file, entry.record) else { return Some(entry) };
        let listed = |content: RawContent| Err(Fault::new(cause.as_str(), cause.detail()).of(content.id()));
        cause.is_listed().then(|| Entry { content: entry.content.and_then(listed), ..entry })
    }

    fn bytes_in_flight(&self, entry: &Entry) -> u64 {
        let content_bytes = match &entry.content {
            Ok(RawContent::Caption(caption)) => {
                let locals: usize = caption.locals.iter().map(String::len).sum();
                self.image_bytes + (caption.global.len() + locals + caption.image.embedded_bytes()) as u64
            }
            Ok(RawContent::Dialogue(sample)) => {
                let texts: usize = sample.turns.iter().map(|turn| turn.text.len()).sum();
                let embedded: usize = sample.images.iter().map(ImageRef::embedded_bytes).sum();
                self.image_bytes * sample.images.len() as u64 + (texts + embedded) as u64
            }
            Err(_) => 0,
        };
        RECORD_OVERHEAD_BYTES + content_bytes
    }

    fn work(&self, jobs: &Receiver<Job>, done: &Sender<Done>) {
        for Job { sequence, file, entry, reserved } in jobs {
            let record = entry.record;
            let outcome = self.process(file, entry);
            if done.send(Done { sequence, file, record, outcome, reserved }).is_err() {
                return;
            }
        }
    }

    /// A panic costs the record and no more: a worker that ended with it would leave the writer waiting for ever.
    fn process(&self, file: usize, entry: Entry) -> Result<Processed, Reject> {
        let Entry { record, content } = entry;
        let id = content.as_ref().ok().map(|content| content.id().to_owned());
        Fault::catch(id, || self.process_content(file, content?))
            .map_err(|fault| Reject::new(&self.plan.files[file].file, record, fault))
    }

    fn process_content(&self, file: usize, mut content: RawContent) -> Result<Processed, Fault> {
        let PlannedFile { dialogue, copy, .. } = &self.plan.files[file];
        if *copy > 0 {
            content.set_id(format!("{}@{}", content.id(), copy + 1));
        }
        let sample = to_sample(content, *dialogue, self.config.seed);
        (self.process)(&sample).map_err(|fault| Fault::of_processor(&fault).of(&sample.id))
    }

    /// Writes records in the order in which they were read.
    fn write(
        &self,
        spec: &ShardSpec,
        folder: &BuildFolder,
        budget: &ByteBudget,
        done: &Receiver<Done>,
    ) -> Result<(CompletedShard, ShardNotes), PrepareError> {
        let mut writer = folder.create_shard(spec.index)?;
        let mut notes = ShardNotes::default();
        let (mut next, mut early) = (0, BTreeMap::new());
        for arrived in done {
            early.insert(arrived.sequence, arrived);
            while let Some(arrived) = early.remove(&next) {
                let reserved = arrived.reserved;
                self.write_one(&mut writer, &mut notes, arrived)?;
                budget.release(reserved);
                self.progress.inc(1);
                next += 1;
            }
        }
        match next == spec.num_records {
            true => Ok((writer.finish()?, notes)),
            false => Err(self.interrupted(spec)),
        }
    }

    fn write_one(&self, writer: &mut ShardWriter, notes: &mut ShardNotes, done: Done) -> Result<(), PrepareError> {
        match done.outcome {
            Ok(processed) => match writer.push(&processed.record) {
                Ok(()) => notes.dropped_turns += processed.dropped_turns as u64,
                Err(fault @ ShardError::Record { .. }) => {
                    let fault = Fault::new("refused_by_shard", chain_text(&fault)).of(&processed.record.id);
                    notes.rejects.push(Reject::new(&self.plan.files[done.file].file, done.record, fault));
                }
                Err(fault) => return Err(fault.into()),
            },
            Err(reject) => notes.rejects.push(reject),
        }
        Ok(())
    }

    fn interrupted(&self, spec: &ShardSpec) -> PrepareError {
        PrepareError::Interrupted {
            path: self.config.output.clone().into(),
            done: spec.index as usize,
            total: self.plan.shards.len(),
        }
    }
}
