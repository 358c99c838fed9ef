//! The order equals that of an independent implementation (`tests/golden/order/make.py`).

use serde_json::Value;
use vela_dataset::{Blend, EpochOrder};
use vela_types::Fingerprint;

fn cases(file: &str) -> Vec<Value> {
    let path = format!("{}/../../tests/golden/order/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).expect("the file")).expect("JSON")
}

fn number(case: &Value, key: &str) -> u64 {
    case[key].as_u64().expect("a number")
}

fn order(case: &Value) -> EpochOrder {
    let fingerprint: Fingerprint = case["fingerprint"].as_str().expect("a text").parse().expect("a fingerprint");
    EpochOrder::shuffled(number(case, "num_samples"), &fingerprint, number(case, "seed"), number(case, "epoch"))
}

#[test]
fn orders_equal_the_committed_golden_ones() {
    let cases = cases("order.json");
    assert!(cases.len() >= 12);
    for case in cases {
        let order = order(&case);
        let indices = case["indices"].as_array().expect("a list").iter().map(Value::as_u64);
        for (place, expected) in (number(&case, "first_place")..).zip(indices) {
            assert_eq!(order.index_at(place), expected, "place {place} of {} samples", order.num_samples());
        }
    }
}

#[test]
fn a_million_indices_equal_the_other_implementations() {
    let cases = cases("long.json");
    assert!(cases.iter().all(|case| number(case, "num_samples") >= 1_000_000) && !cases.is_empty());
    for case in cases {
        let order = order(&case);
        let indices = (0..order.num_samples()).map(|place| order.index_at(place).expect("below the end"));
        let digest =
            indices.fold(0xCBF2_9CE4_8422_2325_u64, |digest, index| (digest ^ index).wrapping_mul(0x0100_0000_01B3));
        assert_eq!(digest, number(&case, "fnv"));
    }
}

#[test]
fn blends_equal_the_committed_golden_ones() {
    for case in cases("blends.json") {
        let list = |value: &Value| -> Vec<u64> {
            value.as_array().expect("a list").iter().filter_map(Value::as_u64).collect()
        };
        let blend = Blend::new(list(&case["turns"]));
        let places = case["places"].as_array().expect("a list");
        assert_eq!(blend.num_places(), places.len() as u64);
        for (place, expected) in (0..).zip(places) {
            let (part, turn) = blend.at(place).expect("below the end");
            assert_eq!([part as u64, turn], list(expected)[..]);
        }
    }
}
