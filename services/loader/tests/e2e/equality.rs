//! The same batches in process and over the wire.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use vela_client::RemoteSource;
use vela_dataset::{Dataset, LocalSource, Partition};
use vela_proto::v1::{self, loader_client::LoaderClient};
use vela_proto::{PartReader, Received, encode_position, encode_spec};
use vela_types::{Batch, BatchSource, Cursor};

use crate::loader::LocalLoader;
use crate::shards::{self, Plan};

/// 23 samples in steps of six: four steps, the last with a masked slot.
const STEPS: usize = 4;

fn num_batches_of_two_epochs(world: u32) -> usize {
    2 * STEPS * (6 / world as usize).div_ceil(2)
}

fn take(source: &mut dyn BatchSource, num: usize) -> Vec<Batch> {
    (0..num).map(|_| source.next_batch().expect("a batch")).collect()
}

fn local(dataset: &Arc<Dataset>, rank: u32, world: u32) -> LocalSource {
    LocalSource::new(Arc::clone(dataset), shards::spec(), Partition { rank, world }, 1 << 20).expect("a source")
}

#[test]
fn two_epochs_are_equal_in_process_and_remote_for_every_rank() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let dataset = Arc::new(Dataset::open(&folder.path().display().to_string()).expect("a data set"));
    let loader = LocalLoader::start(folder.path());
    for (rank, world) in [(0, 1), (0, 2), (1, 2)] {
        let num = num_batches_of_two_epochs(world);
        let expected = take(&mut local(&dataset, rank, world), num);
        let mut remote = RemoteSource::connect(&loader.url(), shards::spec(), rank, world, 1 << 20).expect("a stream");
        assert_eq!(remote.info(), dataset.info());
        assert_eq!(remote.start_cursor(), dataset.start_cursor(&shards::spec()));
        assert_eq!(take(&mut remote, num), expected, "rank {rank} of {world}");
    }
    let report = loader.stop();
    assert_eq!(report.consumers, 3);
    assert!(report.drained && report.batches >= 3 * 16, "{report:?}");
}

#[test]
fn a_remote_source_continues_from_any_cursor_as_a_local_one_does() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let dataset = Arc::new(Dataset::open(&folder.path().display().to_string()).expect("a data set"));
    let loader = LocalLoader::start(folder.path());
    let mut remote = RemoteSource::connect(&loader.url(), shards::spec(), 1, 2, 1 << 20).expect("a stream");
    take(&mut remote, 3);
    // Step 4 is right behind the last one: the next epoch's first.
    for (epoch, step) in [(1, 2), (0, 0), (5, 3), (0, 4)] {
        let cursor = Cursor { epoch, step, ..remote.start_cursor() };
        let mut expected = local(&dataset, 1, 2);
        expected.seek(&cursor).expect("a cursor of this data");
        remote.seek(&cursor).expect("a cursor of this data");
        assert_eq!(take(&mut remote, 5), take(&mut expected, 5), "epoch {epoch}, step {step}");
        assert_eq!(remote.cursor(), expected.cursor());
    }
}

#[test]
fn a_batch_by_position_is_the_one_of_the_stream() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let loader = LocalLoader::start(folder.path());
    let mut remote = RemoteSource::connect(&loader.url(), shards::spec(), 0, 2, 1 << 20).expect("a stream");
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    for streamed in take(&mut remote, num_batches_of_two_epochs(2)) {
        let request = v1::GetBatchRequest {
            dataset: String::new(),
            spec: Some(encode_spec(&shards::spec())),
            partition: Some(v1::Partition { rank: 0, world: 2 }),
            position: Some(encode_position(streamed.position)),
            checksum: None,
        };
        assert_eq!(runtime.block_on(get_batch(&loader.url(), request)), vec![streamed]);
    }
}

/// By the generated client, as a program in any other language would.
async fn get_batch(url: &str, request: v1::GetBatchRequest) -> Vec<Batch> {
    let endpoint = tonic::transport::Endpoint::from_shared(url.to_owned()).expect("a url");
    let mut client = LoaderClient::new(endpoint.connect().await.expect("a connection"));
    let mut parts = client.get_batch(request).await.expect("an answer").into_inner();
    let (mut reader, mut batches) = (PartReader::new(1 << 30, true), Vec::new());
    while let Some(part) = parts.message().await.expect("a part") {
        let message = part.encode_to_vec();
        let prefix = [&[0], &(message.len() as u32).to_be_bytes()[..]].concat();
        let mut bytes = Bytes::from([prefix, message].concat());
        while let Some(received) = reader.read(&mut bytes).expect("a good part") {
            batches.extend(if let Received::Batch(batch) = received { Some(*batch) } else { None });
        }
    }
    batches
}
