//! Memory and bytes under way stay within what the consumer allows.

use std::time::{Duration, Instant};

use tonic::{Code, Streaming};
use vela_client::RemoteSource;
use vela_dataset::Dataset;
use vela_loader::ServeConfig;
use vela_proto::PART_BYTES;
use vela_proto::v1::{self, batch_part::Part, stream_batches_request::Request};
use vela_types::{BatchSource, BatchSpec, PackingSpec};

use crate::calls::{self, OpenStream};
use crate::loader::LocalLoader;
use crate::shards::{self, Plan};

/// Images of 1.4 MB: a micro-batch of two has three parts.
fn large() -> Plan {
    Plan { num_samples: 24, side: 690, always_image: true, num_tokens: 5, seed: 3 }
}

#[test]
fn a_paused_consumer_holds_no_more_than_its_budget_and_then_goes_on() {
    const BUDGET: usize = 7 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &large());
    let loader = LocalLoader::start(folder.path());
    let mut source = RemoteSource::connect(&loader.url(), shards::spec(), 0, 1, BUDGET).expect("a stream");
    source.next_batch().expect("a batch");
    std::thread::sleep(Duration::from_millis(1500));
    let paused = source.stats();
    assert!(paused.resident_bytes <= BUDGET && paused.resident_bytes > BUDGET / 2, "{paused:?}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(source.stats().resident_bytes, paused.resident_bytes, "nothing comes while the budget is full");
    for _ in 0..20 {
        source.next_batch().expect("a batch");
    }
    assert!(source.stats().peak_bytes <= BUDGET, "{:?}", source.stats());
    drop(source);
    let report = loader.stop();
    let batch_bytes = 2 * 3 * 690 * 690;
    assert!(report.bytes <= (21 * batch_bytes + BUDGET + (1 << 20)) as u64, "{report:?}");
    assert!(report.acked_steps >= 6, "{report:?}");
}

#[test]
fn a_batch_larger_than_the_budget_still_arrives() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &large());
    let loader = LocalLoader::start(folder.path());
    let spec = BatchSpec { micro_batch: 6, ..shards::spec() };
    let mut source = RemoteSource::connect(&loader.url(), spec, 0, 1, 1).expect("a stream");
    for _ in 0..3 {
        let batch = source.next_batch().expect("a batch");
        assert!(batch.num_bytes() > 8 << 20);
        assert!(source.stats().peak_bytes <= 9 << 20, "{:?}", source.stats());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_sends_only_what_it_has_credit_for() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &large());
    let config = vela_loader::ServeConfig::new(folder.path().display().to_string(), crate::loader::loopback(0));
    let loader = vela_loader::serve(config, vela_runtime::Shutdown::new()).await.expect("a loader");
    let url = format!("http://{}", loader.addr);
    let cursor = Dataset::open(&folder.path().display().to_string()).expect("a set").start_cursor(&shards::spec());
    let stream = calls::open_stream(&url, &shards::spec(), &cursor, 3 * PART_BYTES as u64).await;
    let OpenStream { requests, mut parts } = stream.expect("a stream");
    let first = receive_until_silence(&mut parts).await;
    assert!(first <= 3 * PART_BYTES && first > 2 * PART_BYTES, "{first} bytes for a credit of three parts");
    let credit = v1::StreamBatchesRequest { request: Some(Request::Credit(v1::Credit { bytes: 5 << 20 })) };
    requests.send(credit).await.expect("sent");
    let more = first + receive_until_silence(&mut parts).await;
    assert!(more <= 3 * PART_BYTES + (5 << 20) && more > 3 * PART_BYTES + (4 << 20), "{more} bytes");
}

/// Chunk bytes until half a second passes without a part.
async fn receive_until_silence(parts: &mut Streaming<v1::BatchPart>) -> usize {
    let mut bytes = 0;
    while let Ok(part) = tokio::time::timeout(Duration::from_millis(500), parts.message()).await {
        let part = part.expect("no error").expect("no end");
        if let Some(Part::Chunk(chunk)) = part.part {
            bytes += chunk.data.len();
        }
    }
    bytes
}

#[test]
fn specs_whose_plans_take_too_much_together_wait_for_one_another() {
    let folder = tempfile::tempdir().expect("a folder");
    shards::write(folder.path(), &Plan::small());
    let set = folder.path().display().to_string();
    let serve = |max_plan_bytes| {
        LocalLoader::with(ServeConfig { max_plan_bytes, ..ServeConfig::new(&set, crate::loader::loopback(0)) })
    };
    let dataset = Dataset::open(&set).expect("a set");
    // 23 records of twelve bytes: two plans fit, a third does not.
    let loader = serve(3 * 12 * 23 - 1);
    let packed =
        |window| BatchSpec { packing: Some(PackingSpec { max_images: 4, window }), max_length: 128, ..shards::spec() };
    let runtime = tokio::runtime::Runtime::new().expect("an event loop");
    let open = |loader: &LocalLoader, window| {
        let (spec, url) = (packed(window), loader.url());
        let cursor = dataset.start_cursor(&spec);
        runtime.block_on(calls::open_stream(&url, &spec, &cursor, 1)).map_err(|status| (status.code(), status))
    };
    let first = open(&loader, 5).expect("a plan");
    let _other = [open(&loader, 6).expect("another"), open(&loader, 6).expect("the same")];
    let (code, status) = open(&loader, 7).expect_err("one too many");
    assert!(code == Code::ResourceExhausted && status.message().contains("`--max-plan-bytes`"), "{status}");
    runtime.block_on(calls::get_batch(&loader.url(), &shards::spec())).expect("what is not packed has no plan");
    drop(first);
    let started = Instant::now();
    while open(&loader, 7).is_err() {
        assert!(started.elapsed() < Duration::from_secs(10), "the plan of a stream that is gone still counts");
    }
    let (code, status) = open(&serve(12 * 23 - 1), 5).expect_err("it never fits");
    assert!(code == Code::InvalidArgument && status.message().contains("`--max-plan-bytes`"), "{status}");
}
