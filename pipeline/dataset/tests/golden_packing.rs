//! Packing plans against those of `tests/golden/packing/make.py`.

use serde_json::Value;
use vela_dataset::{PackItem, PackLimits};

fn number(value: &Value) -> u32 {
    value.as_u64().expect("a number") as u32
}

#[test]
fn rows_are_those_of_an_implementation_in_python() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/packing/packing.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).expect("the goldens")).expect("JSON");
    assert!(cases.len() > 40);
    for (at, case) in cases.iter().enumerate() {
        let items = case["items"].as_array().expect("items");
        let items: Vec<PackItem> =
            items.iter().map(|item| PackItem { tokens: number(&item[0]), images: number(&item[1]) }).collect();
        let (tokens, images) = (number(&case["tokens"]), number(&case["images"]));
        let limits = PackLimits { tokens, images, window: items.len().max(1) as u32 };
        let rows: Vec<Vec<u64>> = serde_json::from_value(case["rows"].clone()).expect("rows");
        assert_eq!(limits.pack(0, &items).expect("all fit").rows, rows, "case {at}");
    }
}
