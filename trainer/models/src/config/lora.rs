//! Low-rank adapters on the linears of a language model.

use serde::{Deserialize, Serialize};

use crate::ModelError;

/// Adapters of one rank: a linear of weight `W` gives `x W^T + alpha / rank * (x A^T) B^T`, and `W` never learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rows of `A` and columns of `B`.
    pub rank: usize,
    /// What an adapter gives is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Linears that get an adapter, by the last part or parts of their name: `q_proj`, `c_attn`, `mlp.w1`.
    pub targets: Vec<String>,
    /// Share of an adapter's inputs that are left out in training, from 0 to below 1.
    #[serde(default)]
    pub dropout: f64,
}

impl LoraConfig {
    /// The factor on what an adapter gives.
    pub fn scale(&self) -> f32 {
        (self.alpha / self.rank as f64) as f32
    }

    /// Whether the linear `name` (as `self_attn.q_proj`) gets an adapter.
    pub fn adapts(&self, name: &str) -> bool {
        self.targets.iter().any(|target| is_target(name, target))
    }

    /// Refuses numbers that make no adapter, and targets that are none of `linears`.
    pub(crate) fn check(&self, linears: &[&str]) -> Result<(), ModelError> {
        if self.rank == 0 {
            return Err(ModelError::config("lora.rank", "at least 1", 0));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(ModelError::config("lora.alpha", "a number above 0", self.alpha));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ModelError::config("lora.dropout", "a share from 0 to below 1", self.dropout));
        }
        if self.targets.is_empty() {
            return Err(ModelError::config("lora.targets", "at least one name", "none"));
        }
        let known = |target: &&String| linears.iter().any(|name| is_target(name, target));
        match self.targets.iter().find(|target| !known(target)) {
            Some(target) => {
                let names = linears.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                Err(ModelError::config(
                    "lora.targets",
                    format!("names or last parts of {names}"),
                    format!("`{target}`"),
                ))
            }
            None => Ok(()),
        }
    }
}

/// The rule of PEFT: equal, or the last dotted parts.
fn is_target(name: &str, target: &str) -> bool {
    name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(targets: &[&str]) -> LoraConfig {
        let targets = targets.iter().map(|target| (*target).to_owned()).collect();
        LoraConfig { rank: 4, alpha: 8.0, targets, dropout: 0.0 }
    }

    #[test]
    fn targets_are_whole_last_parts_of_a_name() {
        let lora = config(&["q_proj", "mlp.up_proj"]);
        assert!(lora.adapts("self_attn.q_proj") && lora.adapts("mlp.up_proj"));
        assert!(!lora.adapts("self_attn.k_proj") && !config(&["proj"]).adapts("self_attn.q_proj"));
        assert_eq!(lora.scale(), 2.0);
    }

    #[test]
    fn adapters_that_cannot_be_are_refused_by_key() {
        let linears = ["self_attn.q_proj", "mlp.up_proj"];
        let told = |lora: &LoraConfig| lora.check(&linears).expect_err("refused").to_string();
        assert!(told(&config(&["q_proj", "query"])).contains("`lora.targets`"));
        assert!(told(&config(&[])).contains("at least one"));
        assert!(told(&LoraConfig { rank: 0, ..config(&["q_proj"]) }).contains("`lora.rank`"));
        assert!(told(&LoraConfig { alpha: 0.0, ..config(&["q_proj"]) }).contains("`lora.alpha`"));
        assert!(told(&LoraConfig { dropout: 1.0, ..config(&["q_proj"]) }).contains("`lora.dropout`"));
        assert!(told(&LoraConfig { dropout: f64::NAN, ..config(&["q_proj"]) }).contains("`lora.dropout`"));
        assert!(config(&["q_proj"]).check(&linears).is_ok());
    }
}
