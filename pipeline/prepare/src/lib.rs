//! Raw datasets to shards: sources, dialogues, bounded parallel processing, rejects; and generated demo data.
//!
//! It owns everything before the first tensor is stored: which raw formats are read and how, how captions become
//! dialogues, in which ranges records become shards, and the reject list. It refuses to guess: a record that breaks a
//! rule is counted under a named cause, a file that is broken as a whole stops the run. Pixels and tokens are
//! `vela-processor`'s, the layout on disk is `vela-shard`'s.

mod audit;
mod build;
mod clean;
pub mod cli;
mod demo;
mod dialogue;
mod error;
mod fetch;
mod generate;
mod http;
mod input_path;
mod journal;
mod json_records;
mod page;
mod preview;
pub mod python_literal;
mod sources;
mod stats;

pub use audit::{AuditConfig, AuditReport, audit};
pub use build::{
    BuildConfig, BuildPlan, BuildReport, BuildTask, BuildWorker, InputConfig, Mix, PlannedFile, REJECTS_FILE,
    RecordRange, Reject, ShardSpec, build_shard, build_shards,
};
pub use clean::{CleanConfig, KeptLanguage, Likeness, Part};
pub use demo::{
    Colour, DemoDataConfig, DemoDataReport, HeldOutQuestion, Object, QuestionKind, Scene, ScenePlan, Shape, Split,
    write_demo_data,
};
pub use dialogue::{CAPTION_PROMPTS_EN, CAPTION_PROMPTS_ZH, DialogueConfig, DialogueMode};
pub use error::PrepareError;
pub use fetch::{EmitUrl, FailedUrl, FetchConfig, FetchReport, ImageUrl, ImageUrls, UrlList, UrlSource, fetch};
pub use generate::{
    ApiKey, FactInput, FactSource, GenerateConfig, GenerateKind, GenerateReport, GrammarFault, ImageFacts, LabelledBox,
    PROMPT_VERSION, Pair, RejectedAnswer, generate, parse_pairs, render_pairs,
};
pub use http::HttpTimeouts;
pub use preview::{PreviewConfig, PreviewReport, write_preview};
pub use sources::{
    AnswerForm, CaptionChoice, Emit, Entry, Fault, Holds, ImageFolder, InputFile, InputSet, RawCaption, RawContent,
    RawFile, Source, SourceOptions,
};
pub use stats::{Duplicates, LengthBin, PackingStats, PaddingStats, Spread, StatsConfig, StatsReport, shard_stats};
