//! How large a run is, and what must come out of it.

/// Least share of right answers about held-out images, in each language.
pub(crate) const EXACT_MATCH_BAR: f64 = 0.90;
/// How far above guessing the answers about shuffled images may be.
pub(crate) const SHUFFLED_MARGIN: f64 = 0.10;

/// Samples per step, of one question each.
pub(crate) const BATCH: u32 = 64;
/// Longest dialogue in tokens, the image counted as one.
pub(crate) const MAX_LENGTH: usize = 64;
/// Tokens of the generated tokenizer.
pub(crate) const VOCAB_SIZE: usize = 512;

/// Sizes of one run.
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Training images per language.
    pub(crate) num_train: usize,
    /// Held-out images per language, each asked one question of each kind.
    pub(crate) num_heldout: usize,
    pub(crate) stages: [StagePlan; 3],
    /// Whether a missed bar is a failure.
    pub(crate) judged: bool,
}

/// One training run.
#[derive(Clone, Copy)]
pub(crate) struct StagePlan {
    /// The name in the report and of the run folder.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) purpose: &'static str,
    pub(crate) train_type: &'static str,
    pub(crate) trains_language_model: bool,
    pub(crate) trains_tower: bool,
    pub(crate) steps: u64,
    pub(crate) learning_rate: f64,
    pub(crate) warmup_steps: u64,
}

const PRETRAIN: StagePlan = StagePlan {
    name: "pretrain",
    purpose: "tower and language model from nothing, in place of published weights",
    train_type: "full",
    trains_language_model: true,
    trains_tower: true,
    steps: 2_400,
    learning_rate: 3e-3,
    warmup_steps: 50,
};

const STAGE_1: StagePlan = StagePlan {
    name: "stage1",
    purpose: "a fresh projector, all else frozen",
    train_type: "freeze_vision_and_llm",
    trains_language_model: false,
    trains_tower: false,
    steps: 250,
    learning_rate: 4e-3,
    warmup_steps: 10,
};

const STAGE_2: StagePlan = StagePlan {
    name: "stage2",
    purpose: "projector and language model, the tower frozen",
    train_type: "freeze_vision",
    trains_language_model: true,
    trains_tower: false,
    steps: 250,
    learning_rate: 1e-3,
    warmup_steps: 10,
};

impl Plan {
    /// The demo: a few minutes on two cores.
    pub(crate) fn full(seed: u64) -> Self {
        Self { seed, num_train: 12_000, num_heldout: 100, stages: [PRETRAIN, STAGE_1, STAGE_2], judged: true }
    }

    /// The same path in seconds, too short to learn.
    pub(crate) fn quick(seed: u64) -> Self {
        let short = |stage: StagePlan, steps| StagePlan { steps, warmup_steps: 2, ..stage };
        let stages = [short(PRETRAIN, 12), short(STAGE_1, 6), short(STAGE_2, 6)];
        Self { seed, num_train: 64, num_heldout: 6, stages, judged: false }
    }
}
