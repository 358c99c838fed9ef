//! Tokenises a corpus once for each line on standard input and answers with one JSON line: seconds, tokens and a hash
//! of the ids. Driven by `tests/benches/tokenize_text.py`, which compares with the Python `tokenizers`.
//!
//! `cargo run --release --example tokenize_throughput -- PROCESSOR_DIR CORPUS.jsonl text|dialogue`
//!
//! Each line of the corpus is a JSON list of texts, question and answer in turn. `text` encodes each text by itself;
//! `dialogue` renders each line by the processor's template and encodes it with its labels.

#![expect(clippy::print_stdout, reason = "the result is the output")]

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::time::Instant;

use vela_processor::{Processor, ProcessorOptions};
use vela_types::Turn;

type Fault = Box<dyn std::error::Error>;

fn main() -> Result<(), Fault> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, corpus, mode] = &arguments[..] else {
        return Err("expected PROCESSOR_DIR CORPUS.jsonl text|dialogue".into());
    };
    let processor = Processor::load(Path::new(folder), &ProcessorOptions::default())?;
    let corpus = std::fs::read_to_string(corpus)?;
    let lines: Result<Vec<Vec<String>>, _> = corpus.lines().map(serde_json::from_str).collect();
    let dialogues: Vec<Vec<Turn>> = lines?.into_iter().map(to_turns).collect();
    for line in io::stdin().lock().lines() {
        line?;
        let start = Instant::now();
        let counts = match mode.as_str() {
            "text" => encode_texts(&processor, &dialogues)?,
            "dialogue" => encode_dialogues(&processor, &dialogues)?,
            other => return Err(format!("expected text or dialogue, found `{other}`").into()),
        };
        let seconds = start.elapsed().as_secs_f64();
        println!(
            r#"{{"seconds": {seconds}, "tokens": {}, "labels": {}, "hash": "{:016x}"}}"#,
            counts.tokens, counts.labels, counts.hash
        );
        io::stdout().flush()?;
    }
    Ok(())
}

fn to_turns(texts: Vec<String>) -> Vec<Turn> {
    let turn = |(at, text): (usize, String)| if at % 2 == 0 { Turn::user(text) } else { Turn::assistant(text) };
    texts.into_iter().enumerate().map(turn).collect()
}

struct Counts {
    tokens: usize,
    labels: usize,
    hash: u64,
}

impl Counts {
    const NONE: Self = Self { tokens: 0, labels: 0, hash: 0xCBF2_9CE4_8422_2325 };

    /// FNV-1a over whole ids.
    fn add(&mut self, ids: &[u32]) {
        self.tokens += ids.len();
        self.hash = ids.iter().fold(self.hash, |hash, &id| (hash ^ u64::from(id)).wrapping_mul(0x100_0000_01B3));
    }
}

fn encode_texts(processor: &Processor, dialogues: &[Vec<Turn>]) -> Result<Counts, Fault> {
    let mut counts = Counts::NONE;
    for turn in dialogues.iter().flatten() {
        counts.add(&processor.encode_text(&turn.text)?);
    }
    Ok(counts)
}

fn encode_dialogues(processor: &Processor, dialogues: &[Vec<Turn>]) -> Result<Counts, Fault> {
    let mut counts = Counts::NONE;
    for turns in dialogues {
        let tokens = processor.encode_dialogue(turns)?;
        counts.add(&tokens.input_ids);
        counts.labels += tokens.labels.iter().filter(|&&label| label >= 0).count();
    }
    Ok(counts)
}
