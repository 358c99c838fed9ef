//! Remote raw inputs as local folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use vela_shard::{RemoteStore, ShardError, stage_input};
use vela_tests::s3::{Fault, S3Server};

use crate::{PART_BYTES, options};

fn stage(server: &S3Server, prefix: &str, cache: &Path) -> Result<PathBuf, ShardError> {
    RemoteStore::open(&server.url(prefix), &options(server, cache)).expect("a store").stage(cache)
}

/// All files below `folder`, by their paths.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").to_string_lossy().into_owned();
                found.insert(name, fs::read(&path).expect("a file"));
            }
        }
    }
    found
}

/// Twelve objects, some of several ranges, in folders.
fn raw(server: &S3Server) -> BTreeMap<String, Vec<u8>> {
    for number in 0..12 {
        let content = vec![number as u8; 1 + number * PART_BYTES / 3];
        server.put(&format!("raw/images/{}/图 {number}.jpg", number % 3), content);
    }
    server.put("raw/", "");
    server.put("raw/data.json", "[]");
    server.put("rawer/other.json", "another prefix");
    let mut objects = server.objects("raw/");
    objects.remove("");
    objects
}

#[test]
fn a_prefix_becomes_a_folder_with_the_same_names_and_is_found_again() {
    let (server, cache) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
    server.set_page_keys(5);
    let objects = raw(&server);
    let tree = stage(&server, "raw", cache.path()).expect("staged");
    assert!(files(&tree) == objects);
    server.take_requests();
    assert_eq!(stage(&server, "raw/", cache.path()).expect("staged"), tree);
    assert_eq!(server.count_requests("GET ", "bucket/raw/"), 0, "only listed");
    // What changes is fetched, what goes is gone, and what another run reads stays as it was.
    server.put("raw/data.json", "[1]");
    server.remove("raw/images/0/图 3.jpg");
    let newer = stage(&server, "raw", cache.path()).expect("staged");
    assert_eq!(server.count_requests("GET ", "bucket/raw/"), 1);
    assert!(files(&tree) == objects);
    assert_eq!(files(&newer).len(), objects.len() - 1);
    assert_eq!(files(&newer)["data.json"], b"[1]");
}

#[test]
fn files_have_the_times_of_their_objects() {
    let (server, caches) = (S3Server::start(), [0; 2].map(|_| tempfile::tempdir().expect("a folder")));
    raw(&server);
    let times = caches.map(|cache| {
        let tree = stage(&server, "raw", cache.path()).expect("staged");
        fs::metadata(tree.join("data.json")).expect("a file").modified().expect("a time")
    });
    assert_eq!(times[0], times[1], "another machine would plan the same build");
    let age = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_782_864_000);
    assert_eq!(times[0], age, "1 July 2026");
}

#[test]
fn one_object_becomes_one_file() {
    let (server, cache) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
    raw(&server);
    let file = stage(&server, "raw/data.json", cache.path()).expect("staged");
    assert_eq!(file.file_name().expect("a name"), "data.json");
    assert_eq!(fs::read(file).expect("a file"), b"[]");
}

#[test]
fn a_stopped_run_goes_on_with_what_is_missing() {
    let (server, cache) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
    let objects = raw(&server);
    server.strike("GET", "raw/images/2/图 11", Fault::Status(403), usize::MAX);
    let fault = stage(&server, "raw", cache.path()).expect_err("one object is refused").to_string();
    assert!(fault.contains("s3://bucket/raw/images/2/图 11.jpg"), "{fault}");
    server.heal();
    server.take_requests();
    let tree = stage(&server, "raw", cache.path()).expect("staged");
    assert!(files(&tree) == objects);
    let again = server.count_requests("GET", "raw/data.json") + server.count_requests("GET", "图 0.jpg");
    assert_eq!(again, 0, "the first objects were there");
}

#[test]
fn faults_on_the_way_leave_no_trace() {
    for fault in [Fault::Status(500), Fault::Status(503), Fault::CutAnswer] {
        let (server, cache) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
        let objects = raw(&server);
        server.strike("GET", "bucket/raw/", fault, 9);
        let tree = stage(&server, "raw", cache.path()).expect("staged");
        assert!(files(&tree) == objects, "{fault:?}");
    }
}

#[test]
fn nothing_is_an_error_and_a_local_path_is_itself() {
    let (server, cache) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
    let fault = stage(&server, "nothing", cache.path()).expect_err("nothing").to_string();
    assert!(fault.contains("s3://bucket/nothing") && fault.contains("check the url"), "{fault}");
    let local = |url: &str| stage_input(url, cache.path()).expect("a local place");
    assert_eq!([local("data/raw"), local("file:///data/raw")], ["data/raw", "/data/raw"].map(PathBuf::from));
}
