//! Raw datasets to shards: sources, dialogues, bounded parallel processing, rejects; and generated demo data.
//!
//! It owns everything before the first tensor is stored: which raw formats are read and how, how captions become
//! dialogues, in which ranges records become shards, and the reject list. It refuses to guess: a record that breaks a
//! rule is counted under a named cause, a file that is broken as a whole stops the run. Pixels and tokens are
//! `vela-processor`'s, the layout on disk is `vela-shard`'s.

mod audit;
mod build;
pub mod cli;
mod demo;
mod dialogue;
mod error;
mod preview;
pub mod python_literal;
mod sources;

pub use audit::{AuditConfig, AuditReport, audit};
pub use build::{
    BuildConfig, BuildPlan, BuildReport, InputConfig, PlannedFile, REJECTS_FILE, RecordRange, Reject, ShardSpec,
    build_shards,
};
pub use demo::{
    Colour, DemoDataConfig, DemoDataReport, HeldOutQuestion, Object, QuestionKind, Scene, ScenePlan, Shape, Split,
    write_demo_data,
};
pub use dialogue::{CAPTION_PROMPTS_EN, CAPTION_PROMPTS_ZH, DialogueConfig, DialogueMode};
pub use error::PrepareError;
pub use preview::{PreviewConfig, PreviewReport, write_preview};
pub use sources::{Emit, Entry, Fault, ImageFolder, InputFile, InputSet, RawCaption, RawContent, RawFile, Source};
