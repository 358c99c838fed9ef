//! The order equals that of an independent implementation (`tests/golden/order/make.py`).

use serde_json::Value;
use vela_dataset::EpochOrder;
use vela_types::Fingerprint;

#[test]
fn orders_equal_the_committed_golden_ones() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/order/order.json");
    let cases: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).expect("the file")).expect("JSON");
    assert!(cases.len() >= 12);
    for case in cases {
        let number = |key: &str| case[key].as_u64().expect("a number");
        let fingerprint: Fingerprint = case["fingerprint"].as_str().expect("a text").parse().expect("a fingerprint");
        let order = EpochOrder::shuffled(number("num_samples"), &fingerprint, number("seed"), number("epoch"));
        let indices = case["indices"].as_array().expect("a list").iter().map(Value::as_u64);
        for (place, expected) in (number("first_place")..).zip(indices) {
            assert_eq!(order.index_at(place), expected, "place {place} of {} samples", number("num_samples"));
        }
    }
}
