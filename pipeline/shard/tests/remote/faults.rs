//! What the network and the server may do.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use vela_shard::{RemoteOptions, RemoteStore, ShardError, Store};
use vela_tests::s3::{Fault, S3Server, SECRET_KEY};
use vela_tests::told;

use crate::fixture::{records, settings, write_set, write_set_into};
use crate::{PART_BYTES, options, read_set, remote};

#[test]
fn a_set_is_written_and_read_through_every_fault_that_passes() {
    let folder = tempfile::tempdir().expect("a folder");
    let expected = write_set(folder.path(), &settings(), &records(9), 4);
    let faults = [
        ("PUT", "shard-00000", Fault::Status(500)),
        ("PUT", "partNumber=2", Fault::Status(503)),
        ("PUT", "partNumber=1", Fault::LoseAnswer),
        ("POST", "uploads", Fault::Status(500)),
        ("POST", "uploadId", Fault::Status(503)),
        ("PUT", "lengths", Fault::LoseAnswer),
        ("PUT", "manifest", Fault::Status(500)),
        ("PUT", "manifest", Fault::LoseAnswer),
        ("PUT", "", Fault::Delay(Duration::from_millis(30))),
        ("HEAD", "", Fault::Status(500)),
        ("GET", "list-type", Fault::Status(503)),
        ("GET", "list-type", Fault::CutAnswer),
        ("GET", "shard-00001", Fault::CutAnswer),
        ("GET", "shard-00001", Fault::Status(500)),
        ("GET", "shard-00000.parquet", Fault::FlipBit),
        ("GET", "lengths", Fault::CutAnswer),
        ("GET", "manifest", Fault::CutAnswer),
    ];
    for (method, mark, fault) in faults {
        let server = S3Server::start();
        let (store, _cache) = remote(&server, "set");
        server.strike(method, mark, fault, 2);
        let case = format!("{fault:?} of {method} {mark}");
        assert_eq!(write_set_into(Arc::clone(&store), &settings(), &records(9), 4), expected, "{case}");
        // A flipped bit is found once per try, and there are two.
        server.heal();
        server.strike(method, mark, fault, 1);
        assert_eq!(read_set(store.as_ref()).expect("a good set"), records(9), "{case}");
        assert_eq!(server.num_unfinished_uploads(), 0, "{case}");
    }
}

#[test]
fn a_refusal_names_the_object_the_operation_and_the_remedy_and_no_secret() {
    let (server, cache) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
    let mut wrong = options(&server, cache.path());
    wrong.settings.insert("aws_access_key_id".to_owned(), "somebody-else".to_owned());
    let store = RemoteStore::open(&server.url("set"), &wrong).expect("nothing is asked yet");
    let read = store.read("manifest.json").expect_err("no access");
    let mut file = store.create("shard-00000.parquet").expect("nothing is asked yet");
    file.write_all(b"content").expect("kept in memory");
    let written = file.publish().expect_err("no access");
    let listed = store.list().expect_err("no access");
    for (fault, action) in [(read, "cannot read"), (written, "cannot write"), (listed, "cannot list")] {
        assert!(matches!(fault, ShardError::Remote { .. }) && !fault.is_damage());
        let text = told(&fault);
        for part in ["s3://bucket/set", action, "AWS_ACCESS_KEY_ID", "AccessDenied"] {
            assert!(text.contains(part), "expected `{part}` in: {text}");
        }
        assert!(!text.contains(SECRET_KEY), "{text}");
    }
}

#[test]
fn a_part_that_is_refused_ends_the_file_with_that_error_and_takes_back_the_rest() {
    let server = S3Server::start();
    let (store, _cache) = remote(&server, "set");
    server.strike("PUT", "partNumber=3", Fault::Status(403), usize::MAX);
    let mut file = store.create("shard").expect("a file");
    let written = (0..20).try_for_each(|_| file.write_all(&[1; PART_BYTES]));
    let fault = match written {
        Ok(()) => file.publish().expect_err("a part was refused"),
        Err(fault) => {
            drop(file);
            fault.downcast::<ShardError>().expect("what the store said")
        }
    };
    assert!(told(&fault).contains("s3://bucket/set/shard"), "{}", told(&fault));
    assert_eq!((server.num_unfinished_uploads(), server.objects("").len()), (0, 0));
}

#[test]
fn a_server_that_is_gone_is_an_error_and_no_hang() {
    let (server, cache) = (S3Server::start(), tempfile::tempdir().expect("a folder"));
    let brief = RemoteOptions { max_retries: 1, ..options(&server, cache.path()) };
    let store = RemoteStore::open(&server.url("set"), &brief).expect("nothing is asked yet");
    drop(server);
    let fault = told(&store.read("manifest.json").expect_err("nobody is there"));
    assert!(fault.contains("AWS_ENDPOINT_URL") && fault.contains("s3://bucket/set/manifest.json"), "{fault}");
}

#[test]
fn an_object_that_changes_while_it_is_read_is_an_error() {
    let server = S3Server::start();
    let (store, _cache) = remote(&server, "set");
    server.put("set/file", vec![1; 5 * PART_BYTES]);
    server.strike("HEAD", "file", Fault::WrongTag, 1);
    let fault = store.hash("file").expect_err("two versions").to_string();
    assert!(fault.contains("changed while it was read"), "{fault}");
    assert!(store.hash("file").expect("one version").is_some());
}
