//! What consumers do with batches here: note them, and compare them with what the data set says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vela_client::{ClientError, ClientOptions, RemoteSource};
use vela_dataset::{Dataset, LocalSource, Partition};
use vela_types::{Batch, BatchSource, BatchSpec, Fingerprint, HostTensor};

use crate::record::Record;

/// Names everything that is in a batch.
pub(crate) fn digest(batch: &Batch) -> Fingerprint {
    let Batch { position, num_micro, step_label_tokens, .. } = batch;
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{position:?} {num_micro} {step_label_tokens}").as_bytes());
    hasher.update(format!("{:?} {:?}", batch.samples, batch.image_spans).as_bytes());
    let tensors: [&HostTensor; 5] =
        [&batch.input_ids, &batch.labels, &batch.position_ids, &batch.document_ids, &batch.pixels];
    for tensor in tensors {
        hasher.update(format!("{:?}", tensor.shape()).as_bytes());
        hasher.update(tensor.data());
    }
    Fingerprint(*hasher.finalize().as_bytes())
}

/// Indices of the samples that a batch really has.
pub(crate) fn ids(batch: &Batch) -> impl Iterator<Item = u64> + '_ {
    batch.samples.iter().filter(|slot| slot.valid).map(|slot| slot.index)
}

/// What was consumed: every batch's name, every sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Consumed {
    pub(crate) digests: Vec<Fingerprint>,
    pub(crate) ids: Vec<u64>,
}

impl Consumed {
    pub(crate) fn add(&mut self, batch: &Batch) {
        self.digests.push(digest(batch));
        self.ids.extend(ids(batch));
    }
}

/// Everything that `source` gives until `epochs` epochs are over.
pub(crate) fn consume(source: &mut dyn BatchSource, epochs: u64) -> Consumed {
    let mut consumed = Consumed::default();
    let steps = source.steps_per_epoch();
    loop {
        let batch = source.next_batch().expect("a batch");
        consumed.add(&batch);
        let is_last_micro = batch.position.micro + 1 == batch.num_micro;
        if (batch.position.epoch + 1, batch.position.step + 1) == (epochs, steps) && is_last_micro {
            return consumed;
        }
    }
}

/// All micro-batches of the next step.
pub(crate) fn take_step(source: &mut dyn BatchSource) -> Vec<Batch> {
    let mut batches = vec![source.next_batch().expect("a batch")];
    while batches.last().is_some_and(|batch| batch.position.micro + 1 < batch.num_micro) {
        batches.push(source.next_batch().expect("a batch"));
    }
    batches
}

/// What a rank must have consumed after `epochs` epochs.
pub(crate) fn expected(dataset: &Arc<Dataset>, spec: &BatchSpec, partition: Partition, epochs: u64) -> Consumed {
    consume(&mut local(dataset, spec, partition), epochs)
}

pub(crate) fn local(dataset: &Arc<Dataset>, spec: &BatchSpec, partition: Partition) -> LocalSource {
    LocalSource::new(Arc::clone(dataset), spec.clone(), partition, 1 << 20).expect("a good spec")
}

/// Connects to whichever of `urls` answers, however often the first word is lost.
pub(crate) fn connect_patiently(
    urls: &str,
    spec: &BatchSpec,
    partition: Partition,
    options: &ClientOptions,
) -> RemoteSource {
    let started = Instant::now();
    loop {
        let Partition { rank, world } = partition;
        match RemoteSource::connect_with(urls, spec.clone(), rank, world, options.clone()) {
            Ok(source) => return source,
            Err(fault @ (ClientError::Unreachable { .. } | ClientError::Service { .. })) if fault.is_retryable() => {
                assert!(started.elapsed() < Duration::from_secs(60), "nobody answers: {fault:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(fault) => panic!("{fault:?}"),
        }
    }
}

/// Waits until something that is under way has happened.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(10), "not within ten seconds: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Fails unless the ranks' samples of `epochs` epochs are those of the data, each once per epoch.
pub(crate) fn assert_exactly_once(ranks: &[Consumed], num_samples: u64, epochs: u64) {
    let mut counts = vec![0; num_samples as usize];
    ranks.iter().flat_map(|rank| &rank.ids).for_each(|&id| counts[id as usize] += 1);
    assert!(counts.iter().all(|&count| count == epochs), "each of {num_samples} samples {epochs} times: {counts:?}");
}

/// Fails unless `record` is that of `epochs` whole epochs, step by step what the data set gives `partition`.
pub(crate) fn assert_record(
    record: &Record,
    dataset: &Arc<Dataset>,
    spec: &BatchSpec,
    partition: Partition,
    epochs: u64,
) {
    let mut source = local(dataset, spec, partition);
    let steps = source.steps_per_epoch();
    assert!(record.epochs.keys().copied().eq(0..epochs), "{:?}", record.epochs.keys());
    let mut expected = Record::default();
    for _ in 0..epochs * steps {
        let batches = take_step(&mut source);
        expected.add_step(&batches, source.cursor(), true);
    }
    assert_eq!(record.cursor, expected.cursor);
    for (epoch, expected) in &expected.epochs {
        let found = &record.epochs[epoch];
        assert_eq!((found.num_steps, found.num_ids), (steps, expected.num_ids), "epoch {epoch} of {partition:?}");
        assert_eq!(found.chain, expected.chain, "epoch {epoch} of {partition:?}: other batches");
    }
}
