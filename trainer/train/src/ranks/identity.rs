//! What a rank holds, in words short enough to be compared.

use std::collections::BTreeMap;
use std::path::Path;

use vela_models::Vlm;
use vela_types::Fingerprint;

use crate::checkpoint::{TrainerState, state_fingerprint};
use crate::error::TrainError;

/// What is compared, by name.
pub(crate) type Account = BTreeMap<String, String>;

/// What all ranks must have in common before the first step: every key of the recipe, data, processor, parameters (names, shapes, places
/// and values), the checkpoint, the program.
pub(crate) fn account_of(model: &Vlm, state: &TrainerState, checkpoint: Option<&Path>) -> Result<Account, TrainError> {
    let mut account = state.all_fields();
    let checkpoint = checkpoint.map(state_fingerprint).transpose()?;
    let more = [
        ("parameters", shapes(model)),
        ("weights", values(model.params().iter().map(|(name, tensor, _)| (name, tensor)))?),
        ("checkpoint", checkpoint.map_or("none".to_owned(), |fingerprint| fingerprint.to_string())),
        ("program's version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    account.extend(more.map(|(name, value)| (name.to_owned(), value)));
    Ok(account)
}

/// The first rank that differs from rank 0, and in what.
pub(super) fn first_difference(accounts: &[Account]) -> Option<TrainError> {
    let (first, others) = accounts.split_first()?;
    let nothing = || "nothing".to_owned();
    others.iter().zip(1..).find_map(|(other, rank)| {
        let what = first.keys().chain(other.keys()).find(|&key| first.get(key) != other.get(key))?;
        let text = |account: &Account| account.get(what).cloned().unwrap_or_else(nothing);
        Some(TrainError::RanksDiffer { rank, what: what.clone(), expected: text(first), found: text(other) })
    })
}

/// Hash of every parameter's name, shape, place among all values, and whether it learns.
fn shapes(model: &Vlm) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut place = 0;
    for (name, tensor, trained) in model.params().iter() {
        hasher.update(format!("{name} {:?} {place} {trained}\n", tensor.dims()).as_bytes());
        place += tensor.elem_count();
    }
    Fingerprint(*hasher.finalize().as_bytes()).to_string()
}

/// Hash of the values of all parameters that learn.
pub(super) fn trained_weights(model: &Vlm) -> Result<String, TrainError> {
    values(model.params().trainable().map(|(name, var)| (name, var.as_tensor())))
}

fn values<'a>(parameters: impl Iterator<Item = (&'a str, &'a candle_core::Tensor)>) -> Result<String, TrainError> {
    let mut hasher = blake3::Hasher::new();
    for (name, tensor) in parameters {
        let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
        hasher.update(name.as_bytes()).update(bytemuck::cast_slice(&values));
    }
    Ok(Fingerprint(*hasher.finalize().as_bytes()).to_string())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use vela_models::ModelPreset;

    use super::*;

    #[test]
    fn weights_of_another_seed_differ_in_their_values_alone() {
        let preset = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/model/demo.toml");
        let config = || ModelPreset::load(&preset).and_then(|preset| preset.config(64, 3)).expect("a right preset");
        let model = |seed| Vlm::init(config(), seed, &|_| true, &Device::Cpu).expect("a model");
        let [one, same, other] = [1, 1, 2].map(model);
        let told = |model| (shapes(model), trained_weights(model).expect("f32"));
        assert_eq!(told(&one), told(&same));
        assert!(shapes(&one) == shapes(&other) && told(&one) != told(&other));
        let frozen = Vlm::init(config(), 1, &|_| false, &Device::Cpu).expect("a model");
        assert_ne!(shapes(&one), shapes(&frozen));
    }

    fn account(pairs: &[(&str, &str)]) -> Account {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_rank_that_differs_is_told_with_the_field() {
        let ours = account(&[("a", "1"), ("b", "2")]);
        assert!(first_difference(&[ours.clone(), ours.clone()]).is_none());
        let told =
            |other: Account| first_difference(&[ours.clone(), ours.clone(), other]).expect("a difference").to_string();
        let other = told(account(&[("a", "1"), ("b", "3")]));
        assert!(other.contains("differ in b: rank 0 has `2`, rank 2 has `3`"), "{other}");
        assert!(told(account(&[("a", "1")])).contains("rank 2 has `nothing`"));
        assert!(told(account(&[("a", "1"), ("b", "2"), ("c", "x")])).contains("rank 0 has `nothing`"));
    }
}
