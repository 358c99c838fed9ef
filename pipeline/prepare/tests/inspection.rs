//! `stats` and `preview` over a set with everything in it: two languages, text alone, several images, repeats, markup.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use vela_prepare::{
    BuildConfig, DemoDataConfig, DemoDataReport, DialogueMode, InputConfig, PrepareError, PreviewConfig, Source,
    StatsConfig, StatsReport, build_shards, shard_stats, write_demo_data, write_preview,
};
use vela_runtime::{Progress, Shutdown};
use vela_types::PackLimits;

const NUM_CAPTIONS: u64 = 12;

/// A shard set of twelve Chinese captions and seven English dialogues.
struct Set {
    folder: tempfile::TempDir,
    shards: String,
}

impl Set {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temp folder");
        let num_train = NUM_CAPTIONS as usize;
        let config = DemoDataConfig { num_train, num_heldout: 1, ..DemoDataConfig::new(folder.path().join("demo")) };
        let data = write_demo_data(&config).expect("demo data");
        let lines = data.llava.with_file_name("lines.jsonl");
        fs::write(&lines, dialogues().join("\n")).expect("lines");
        let shards = folder.path().join("shards").to_string_lossy().into_owned();
        let inputs = vec![Self::captions(&data), InputConfig::new(Source::Llava, lines)];
        // Few records per shard, so that several shards are counted.
        let config = BuildConfig { shard_size_bytes: 5 * 7168, ..BuildConfig::new(inputs, &data.processor, &shards) };
        let report = build_shards(&config, &Progress::hidden(), &Shutdown::new()).expect("builds");
        assert_eq!((report.samples, report.rejected.is_empty()), (NUM_CAPTIONS + 7, true), "{report:?}");
        assert!(report.shards > 2);
        Self { folder, shards }
    }

    fn captions(data: &DemoDataReport) -> InputConfig {
        let images = Some(data.sa1b_images.clone());
        InputConfig { images, dialogue: DialogueMode::Rules.into(), ..InputConfig::new(Source::Sa1b, &data.sa1b) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn stats(&self, config: &StatsConfig) -> StatsReport {
        shard_stats(config, &Progress::hidden()).expect("counts")
    }

    fn preview(&self, config: &PreviewConfig) -> String {
        write_preview(config).expect("previews");
        fs::read_to_string(&config.html).expect("page")
    }
}

fn dialogues() -> Vec<String> {
    let image = |at: usize| json!(format!("images/en_{at:06}.png"));
    let line = |id: &str, image: Value, turns: &[&str]| {
        let from = |at: usize| if at.is_multiple_of(2) { "human" } else { "gpt" };
        let turns: Vec<Value> =
            turns.iter().enumerate().map(|(at, text)| json!({"from": from(at), "value": text})).collect();
        json!({"id": id, "image": image, "conversations": turns}).to_string()
    };
    vec![
        line("plain", image(0), &["<image>\nWhat is red?", "A circle."]),
        line("again", image(0), &["<image>\nWhat is red?", "A circle."]),
        line("other image", image(1), &["<image>\nWhat is red?", "A circle."]),
        line("text only", Value::Null, &["What is red?", "A colour."]),
        line("two", json!([image(2), image(3)]), &["<image> or <image>, which is red?", "The first."]),
        line("long", image(4), &["<image>\nOne?", "Yes.", "Two?", "No.", "Three?", "Perhaps."]),
        line("markup", image(5), &["<image>\nWhat does it say?", "<b>&\"bold\"</b> <script>alert(1)</script>"]),
    ]
}

#[test]
fn everything_in_the_set_is_counted() {
    let set = Set::new();
    let config = StatsConfig { tokens_per_image: 10, workers: 3, ..StatsConfig::new(&set.shards) };
    let report = set.stats(&config);
    assert_eq!((report.samples, report.images, report.text_only, report.multi_image), (19, 19, 1, 1));
    assert_eq!(report.languages, [("en".to_owned(), 7), ("zh".to_owned(), 12)].into());
    assert_eq!(report.sources, [("llava".to_owned(), 7), ("sa1b".to_owned(), 12)].into());
    assert_eq!(report.images_per_sample, [(0, 1), (1, 17), (2, 1)].into());
    assert_eq!(report.turns_per_sample[&3], 1 + count_captions_with_three_answers(&report));
    assert_eq!((report.duplicates.samples, report.duplicates.texts, report.duplicates.images), (1, 2, 1));
    assert_eq!(report.expanded_tokens, report.tokens + 9 * report.images);
    assert_eq!(report.lengths.histogram.iter().map(|bin| bin.count).sum::<u64>(), 19);
    assert!(report.label_tokens > 0 && report.label_lengths.max < report.lengths.max);
    assert_eq!((report.packing.too_long, report.packing.packs), (0, report.packing.packs_at_least));
    let alone = set.stats(&StatsConfig { workers: 1, ..config });
    assert_eq!(StatsReport { seconds: report.seconds, ..alone }, report, "threads change nothing");
}

/// Captions may have three answers too: what is left of the records once the known dialogues are taken away.
fn count_captions_with_three_answers(report: &StatsReport) -> u64 {
    let others: u64 = report.turns_per_sample.iter().filter(|(turns, _)| **turns != 3).map(|(_, num)| num).sum();
    report.samples - others - 1
}

#[test]
fn samples_longer_than_a_row_are_counted_and_left_out() {
    let set = Set::new();
    let packing = PackLimits { tokens: 60, images: 1, window: 8 };
    let config = StatsConfig { tokens_per_image: 30, packing, ..StatsConfig::new(&set.shards) };
    let report = set.stats(&config);
    assert!(report.packing.too_long >= 1 && report.packing.packs > 0, "{:?}", report.packing);
    assert!(report.packing.most_images <= 1 && report.lengths.max > 60);
    let none = StatsConfig { batch: 0, ..StatsConfig::new(&set.shards) };
    let fault = shard_stats(&none, &Progress::hidden()).expect_err("no batch").to_string();
    assert!(fault.contains("--batch") && fault.contains("at least 1"), "{fault}");
}

#[test]
fn the_page_of_stats_needs_nothing_but_itself() {
    let set = Set::new();
    let html = set.path("stats.html");
    let config = StatsConfig { html: Some(html.clone()), tokens_per_image: 10, ..StatsConfig::new(&set.shards) };
    let report = set.stats(&config);
    let page = fs::read_to_string(&html).expect("page");
    for outside in ["http://", "https://", "src=", "url(", "<script", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(
        page.contains("<svg")
            && page.contains(&report.fingerprint.to_string())
            && page.contains("prefers-color-scheme")
    );
    for name in ["sa1b", "llava", "Packing", "What padding costs"] {
        assert!(page.contains(name), "{name}");
    }
}

#[test]
fn a_preview_shows_dialogues_tokens_and_the_exact_text_of_every_kind_of_sample() {
    let set = Set::new();
    let config = PreviewConfig { tokens_per_image: Some(576), ..PreviewConfig::new(&set.shards, set.path("all.html")) };
    let page = set.preview(&config);
    assert_eq!(page.matches("<article").count(), 19);
    assert_eq!(page.matches("<img").count(), 19);
    assert!(page.contains("<div class=\"turn user\"><span class=\"run\">image 1 × 576</span>\nWhat is red?</div>"));
    assert!(page.contains("image 2 × 576</span>, which is red?</div>"), "both images of one question");
    assert!(page.contains("<div class=\"turn assistant\">Perhaps.</div>") && page.contains(">text only<"));
    assert!(page.contains("图形") && page.contains("<span class=\"e\""), "Chinese, and the ends of turns");
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!page.contains("src=\"http"));
}

#[test]
fn samples_are_spread_drawn_or_named() {
    let set = Set::new();
    let config = PreviewConfig { num_records: 4, ..PreviewConfig::new(&set.shards, set.path("page.html")) };
    assert_eq!(set.preview(&config).matches("<article").count(), 4);
    let drawn = |seed| set.preview(&PreviewConfig { seed: Some(seed), ..config.clone() });
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    let ids = vec!["llava/lines/two".to_owned(), "llava/lines/plain".to_owned()];
    let page = set.preview(&PreviewConfig { ids, ..config.clone() });
    let place = |id: &str| page.find(&format!("<h2>{id}</h2>")).expect("the sample");
    assert!(place("llava/lines/two") < place("llava/lines/plain") && page.matches("<article").count() == 2);
    let unknown = PreviewConfig { ids: vec!["llava/none".to_owned()], ..config };
    let fault = write_preview(&unknown).expect_err("no such record");
    assert!(matches!(&fault, PrepareError::Flag { flag: "--sample", found, .. } if found == "llava/none"), "{fault}");
}
