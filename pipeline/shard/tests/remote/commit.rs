//! Builds that meet in one prefix, and builds that go on where another was killed.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::thread;

use vela_shard::{BuildFolder, Claim, Manifest, ShardError, Store};
use vela_tests::s3::{Fault, S3Server};
use vela_types::Fingerprint;

use crate::fixture::{BUILD, records, settings, write_shard};
use crate::remote;

fn build(store: &Arc<dyn Store>, plan: Fingerprint) -> BuildFolder {
    BuildFolder::open(Arc::clone(store), plan, settings()).expect("no manifest yet")
}

fn commit(build: &BuildFolder) -> Result<Manifest, ShardError> {
    build.commit(1, BTreeMap::new(), serde_json::json!({"source": "test"}))
}

#[test]
fn of_many_writers_exactly_one_finds_its_content_there() {
    let server = S3Server::start();
    for race in 0..5 {
        let start = Barrier::new(8);
        let name = format!("claim-{race}");
        let won = |writer: usize| {
            let (store, _cache) = remote(&server, "set");
            start.wait();
            let content = format!("writer {writer}");
            (content.clone(), store.create_new(&name, content.as_bytes()).expect("a sound store"))
        };
        let outcomes: Vec<_> = thread::scope(|scope| {
            let writers: Vec<_> = (0..8).map(|writer| scope.spawn(move || won(writer))).collect();
            writers.into_iter().map(|writer| writer.join().expect("no panic")).collect()
        });
        let winners: Vec<_> = outcomes.iter().filter(|(_, claim)| *claim == Claim::Won).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let winner = &winners[0].0;
        assert_eq!(server.objects("set/")[&name], winner.as_bytes());
        let told_of_the_winner = |claim: &Claim| {
            matches!(claim, Claim::Lost(found) if found[..] == *winner.as_bytes()) || *claim == Claim::Won
        };
        assert!(outcomes.iter().all(|(_, claim)| told_of_the_winner(claim)), "{outcomes:?}");
    }
}

#[test]
fn a_build_that_commits_second_is_told_whose_set_it_is() {
    let server = S3Server::start();
    let (store, _cache) = remote(&server, "set");
    let plans = [Fingerprint([1; 32]), Fingerprint([2; 32])];
    let builds = plans.map(|plan| build(&store, plan));
    builds.iter().for_each(|build| _ = write_shard(build, 0, &records(3)));
    // The second builder's completion has replaced the first's; it commits first.
    commit(&builds[1]).expect("the first commit");
    let manifest = server.objects("set/")["manifest.json"].clone();
    write_completion_again(&builds[0]);
    let fault = commit(&builds[0]).expect_err("the second commit");
    assert!(matches!(fault, ShardError::CommitLost { expected, found, .. } if [expected, found] == plans), "{fault}");
    assert!(fault.to_string().contains(&plans[1].to_string()), "{fault}");
    assert_eq!(server.objects("set/")["manifest.json"], manifest);
}

fn write_completion_again(build: &BuildFolder) {
    write_shard(build, 0, &records(3));
}

#[test]
fn builds_of_one_plan_all_end_with_the_same_manifest() {
    let server = S3Server::start();
    let (store, _cache) = remote(&server, "set");
    let [first, second, late] = [0; 3].map(|_| build(&store, BUILD));
    write_shard(&first, 0, &records(3));
    write_shard(&second, 0, &records(3));
    let committed = commit(&first).expect("a commit");
    // The winner has removed the completions.
    assert_eq!(commit(&second).expect("the same commit"), committed);
    write_shard(&late, 0, &records(3));
    assert_eq!(commit(&late).expect("the same commit"), committed);
    assert_eq!(
        store.list().expect("a listing"),
        ["lengths.bin", "lengths.sums", "manifest.json", "shard-00000.parquet"]
    );
}

#[test]
fn a_commit_whose_answer_is_lost_is_known_by_its_content() {
    let server = S3Server::start();
    let (store, _cache) = remote(&server, "set");
    let build = build(&store, BUILD);
    write_shard(&build, 0, &records(3));
    server.strike("PUT", "manifest.json", Fault::LoseAnswer, 1);
    let manifest = commit(&build).expect("it is there");
    assert_eq!(Manifest::load(store.as_ref()).expect("a manifest"), manifest);
}

#[test]
fn a_resumed_build_believes_the_store_and_moves_no_shard() {
    let server = S3Server::start();
    let (store, _cache) = remote(&server, "set");
    let first = build(&store, BUILD);
    let made = write_shard(&first, 0, &records(4));
    write_shard(&first, 1, &records(2));
    server.take_requests();
    let again = build(&store, BUILD);
    assert_eq!(again.completed_shard(0).expect("a sound store").expect("complete").0, made);
    let requests = server.take_requests();
    assert!(!requests.iter().any(|line| line.contains("parquet") && !line.starts_with("HEAD")), "{requests:?}");
    // Another content of the same size is another tag, and so is no content.
    let mut content = server.objects("set/")["shard-00000.parquet"].clone();
    content[50] ^= 1;
    server.put("set/shard-00000.parquet", content);
    assert!(again.completed_shard(0).expect("a sound store").is_none());
    server.remove("set/shard-00001.parquet");
    assert!(again.completed_shard(1).expect("a sound store").is_none());
}

#[test]
fn a_file_that_arrived_shorter_is_not_called_complete() {
    let server = S3Server::start();
    let (store, _cache) = remote(&server, "set");
    let build = build(&store, BUILD);
    let shard = write_shard(&build, 0, &records(4));
    server.put("set/shard-00000.parquet", "short");
    let fault = build.complete_shard(0, &shard, serde_json::Value::Null).expect_err("short").to_string();
    assert!(fault.contains("s3://bucket/set/shard-00000.parquet") && fault.contains("found 5"), "{fault}");
}
