//! Memory: what a run will want, by its sizes, and what the process has, by the system's account.

use vela_dataset::MicroExtents;
use vela_models::{LanguageConfig, Vlm, VlmConfig};

use crate::groups::Component;

/// Bytes of an f32.
const F32: u64 = 4;
/// Logits that the loss holds at a time, with their exponentials.
const LOGITS: u64 = 2 * 2 * 1024 * 1024;

/// Bytes that a run holds at once, estimated from sizes alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryEstimate {
    /// All parameters.
    pub(crate) weights: u64,
    /// Gradients of the trained ones: summed, and those of the micro-batch that is added.
    pub(crate) gradients: u64,
    /// The optimizer's two moments.
    pub(crate) moments: u64,
    /// What the largest micro-batch leaves for its backward pass.
    pub(crate) activations: u64,
    /// Batches held ready.
    pub(crate) batches: u64,
}

impl MemoryEstimate {
    pub(crate) fn new(model: &Vlm, largest: MicroExtents, prefetch_bytes: u64, from_features: bool) -> Self {
        let (all, trained) = model.params().num_values();
        let trains = |component| model.params().trainable().any(|(name, _)| Component::of(name) == Some(component));
        let tower = match trains(Component::VisionTower) {
            _ if from_features => TowerWork::None,
            true => TowerWork::Trained,
            false => TowerWork::Forward,
        };
        let (all, trained) = (F32 * all as u64, F32 * trained as u64);
        Self {
            weights: all,
            gradients: 2 * trained,
            moments: 2 * trained,
            activations: activations(model.config(), largest, tower),
            batches: prefetch_bytes,
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.weights + self.gradients + self.moments + self.activations + self.batches
    }

    /// What a process that holds `held` bytes has yet to get.
    pub(crate) fn beyond(&self, held: u64) -> u64 {
        self.total().saturating_sub(held)
    }

    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        let parts = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("activations", self.activations),
            ("batches held ready", self.batches),
        ];
        let parts: Vec<String> = parts.iter().map(|(name, bytes)| format!("{name} {}", in_mib(*bytes))).collect();
        format!("estimated memory: {}; {} in all", parts.join(", "), in_mib(self.total()))
    }
}

/// What a step asks of the tower.
#[derive(Clone, Copy)]
enum TowerWork {
    /// It is trained from features.
    None,
    Forward,
    Trained,
}

/// Results of all ops that the backward pass needs, the largest logits, and the pixels.
fn activations(config: &VlmConfig, largest: MicroExtents, work: TowerWork) -> u64 {
    let tokens = largest.rows * largest.columns;
    let language = language_values(&config.language) * tokens;
    let vision = &config.vision;
    let positions = vision.num_positions() as u64 * largest.images;
    let (width, inner) = (vision.hidden_size as u64, vision.intermediate_size as u64);
    // Two norms, query, key, value, attention, its output, two sums, the feed-forward part's three.
    let block = 10 * width + 2 * inner;
    let blocks = config.features.states.iter().copied().max().unwrap_or(0) as u64;
    let tower = match work {
        TowerWork::None => 0,
        TowerWork::Trained => positions * (blocks * block + 2 * width),
        // The states of all blocks are kept until the features are chosen, besides one block's own results.
        TowerWork::Forward => positions * ((blocks + 1) * width + block),
    };
    let features = largest.images * config.image_tokens() as u64;
    let projected = features * (config.feature_size() as u64 + 3 * config.language.hidden_size as u64);
    let pixels = largest.images * (vision.num_channels * vision.image_size * vision.image_size) as u64;
    F32 * (language + tower + projected + 2 * pixels + LOGITS)
}

/// Values per token: the embedding and its spliced copy, each block's results, the last norm, the loss's gradient of it.
fn language_values(language: &LanguageConfig) -> u64 {
    let (width, inner) = (language.hidden_size as u64, language.intermediate_size as u64);
    let queries = (language.num_heads * language.head_dim) as u64;
    let keys = (language.num_key_value_heads * language.head_dim) as u64;
    // Two norms, two sums, two outputs; query and key before and after rotation, value, attention; gate, up, product.
    let block = 6 * width + 3 * queries + 3 * keys + 3 * inner;
    4 * width + language.num_layers as u64 * block
}

/// `12.5 GiB`, `340 MiB`.
pub(crate) fn in_mib(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// Bytes that the process holds now and has held at most; `None` where the system does not tell.
pub(crate) fn process_memory() -> Option<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some((kib_of(&status, "VmRSS:")?, kib_of(&status, "VmHWM:")?))
}

/// Bytes that the process holds for itself, mapped files left out, as the system may take those back; `None` where it does
/// not tell.
pub(crate) fn held_memory() -> Option<u64> {
    kib_of(&std::fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

/// Bytes that a new process could have; `None` where the system does not tell.
pub(crate) fn free_memory() -> Option<u64> {
    kib_of(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// Bytes of the machine.
pub(crate) fn machine_memory() -> Option<u64> {
    kib_of(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// The value of a line such as `VmRSS:   1234 kB`, in bytes.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_lines_are_read() {
        let text = "Name:\ttrainer\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!((kib_of(text, "VmRSS:"), kib_of(text, "VmHWM:")), (Some(1 << 20), Some(2 << 20)));
        assert_eq!(kib_of(text, "VmSwap:"), None);
        assert_eq!([in_mib(340 << 20), in_mib(5 << 29)], ["340 MiB", "2.5 GiB"]);
    }

    /// Weights and moments that are there already are no longer asked of the free memory.
    #[test]
    fn what_is_held_is_not_to_come() {
        let estimate = MemoryEstimate { weights: 10, gradients: 20, moments: 20, activations: 5, batches: 1 };
        assert_eq!([0, 30, 56, 99].map(|held| estimate.beyond(held)), [56, 26, 0, 0]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_has_held_at_least_what_it_holds() {
        let (now, most) = process_memory().expect("Linux tells");
        assert!(now > 1 << 20 && most >= now, "{now} {most}");
        let held = held_memory().expect("Linux tells");
        assert!(held > 0 && held <= most, "{held} {most}");
        assert!(free_memory().expect("Linux tells") <= machine_memory().expect("Linux tells"));
    }
}
