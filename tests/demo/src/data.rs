//! Raw data and shards: what `pipeline demo-data` and `pipeline build-shards` do.

use std::fs;

use anyhow::{Context, Result, ensure};
use vela_prepare::{
    BuildConfig, BuildReport, DemoDataConfig, DemoDataReport, DialogueConfig, DialogueMode, HeldOutQuestion,
    InputConfig, Source, build_shards, write_demo_data,
};
use vela_runtime::{Progress, Shutdown};
use vela_types::Language;

use crate::plan::{MAX_LENGTH, Plan, VOCAB_SIZE};
use crate::workplace::Workplace;

/// Renders scenes with Chinese dense captions (SA1B layout) and English questions (LLaVA layout).
pub(crate) fn write_raw(plan: &Plan, workplace: &Workplace) -> Result<DemoDataReport> {
    let config = DemoDataConfig {
        seed: plan.seed,
        num_train: plan.num_train,
        num_heldout: plan.num_heldout,
        questions_per_image: Some(1),
        vocab_size: VOCAB_SIZE,
        ..DemoDataConfig::new(workplace.raw())
    };
    Progress::new("", None).note(&format!("rendering {} scenes", 2 * (plan.num_train + plan.num_heldout)));
    write_demo_data(&config).context("cannot generate the raw data")
}

/// One shard set from both layouts; every generated record must be good.
pub(crate) fn build(
    plan: &Plan,
    workplace: &Workplace,
    raw: &DemoDataReport,
    shutdown: &Shutdown,
) -> Result<BuildReport> {
    let chinese = InputConfig {
        images: Some(raw.sa1b_images.clone()),
        dialogue: DialogueConfig {
            max_facts: 1,
            description: false,
            short_answers: true,
            ..DialogueMode::Rules.into()
        },
        ..InputConfig::new(Source::Sa1b, &raw.sa1b)
    };
    let english = InputConfig::new(Source::Llava, &raw.llava);
    let output = workplace.shards().display().to_string();
    let config = BuildConfig {
        seed: plan.seed,
        max_length: MAX_LENGTH,
        ..BuildConfig::new(vec![chinese, english], &raw.processor, output)
    };
    let report = build_shards(&config, &Progress::new("records", None), shutdown).context("cannot build the shards")?;
    ensure!(!shutdown.requested(), "stopped while building the shards");
    ensure!(report.rejected.is_empty(), "generated records were rejected: {:?}", report.rejected);
    Ok(report)
}

/// The held-out questions of both languages.
pub(crate) fn read_heldout(raw: &DemoDataReport) -> Result<Vec<HeldOutQuestion>> {
    let mut questions = Vec::new();
    for language in [Language::Zh, Language::En] {
        let path = raw.heldout.join(format!("{}.jsonl", language.as_str()));
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        for (line, row) in text.lines().enumerate() {
            let place = || format!("`{}`, line {}", path.display(), line + 1);
            questions.push(serde_json::from_str(row).with_context(place)?);
        }
    }
    Ok(questions)
}
