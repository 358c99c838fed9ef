//! What pyarrow read from the version 2 shards (`tests/golden/shard/make.py`) is what Vela reads.

mod fixture;

use fixture::records;
use serde_json::{Value, json};
use vela_types::Record;

fn as_json(record: &Record) -> Value {
    let sum = |data: &[u8]| data.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    json!({
        "id": record.id,
        "source": record.source,
        "language": record.language.as_str(),
        "input_ids": record.input_ids,
        "labels": record.labels,
        "image_hashes": record.images.iter().map(|image| image.hash).collect::<Vec<_>>(),
        "image_sums": record.images.iter().map(|image| sum(&image.data)).collect::<Vec<_>>(),
    })
}

#[test]
fn pyarrow_read_the_same_records_from_the_committed_shards() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/shard/pyarrow.json");
    let seen: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("the file")).expect("JSON");
    let found = seen["records"].as_array().expect("a list");
    assert_eq!(found.len(), 9);
    for (found, record) in found.iter().zip(records(9)) {
        assert_eq!(*found, as_json(&record));
    }
    let file = &seen["file"];
    assert_eq!(file["compression"]["pixels"], "UNCOMPRESSED");
    assert_eq!(file["compression"]["input_ids"], "ZSTD");
    assert_eq!((&file["has_offset_index"], &file["has_dictionary"]), (&json!(true), &json!(false)));
    assert_eq!(file["has_statistics"], json!(false));
    assert!(file["schema"].as_array().expect("a list").contains(&json!("pixels: binary")));
}
