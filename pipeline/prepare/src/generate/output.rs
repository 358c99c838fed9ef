//! The dialogues and the rejects, in the order of the records whatever the order of the answers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;
use vela_types::IMAGE_MARK;

use super::facts::ImageFacts;
use super::grammar::Pair;
use super::kind::GenerateKind;
use super::prompts::detail_question;
use crate::PrepareError;
use crate::journal::remove_if_there;

/// What became of a record.
#[derive(Debug)]
pub(super) enum Written {
    /// A line of the output.
    Sample(String),
    /// A line of the reject list.
    Reject(RejectedAnswer),
    /// Not asked: the budget was used up.
    Left,
}

/// A line of the reject list. Nothing of an answer is lost: `raw` is all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RejectedAnswer {
    /// Zero-based number of the record in the input.
    pub record: u64,
    /// Its id, as far as it was known.
    pub id: Option<String>,
    /// Stable name under which rejects are counted.
    pub cause: String,
    /// What was expected and found.
    pub detail: String,
    /// Why the model stopped, if it answered.
    pub finish_reason: Option<String>,
    /// The answer as it came, if there is one.
    pub raw: Option<String>,
}

/// A record of LLaVA's format: the image's mark stands before the first question.
pub(super) fn llava_line(kind: GenerateKind, facts: &ImageFacts, pairs: &[Pair], seed: u64) -> String {
    let mut turns = Vec::with_capacity(pairs.len() * 2);
    for (at, pair) in pairs.iter().enumerate() {
        let question = match kind {
            GenerateKind::Detail => detail_question(seed, &facts.id, facts.language()),
            GenerateKind::Conversation | GenerateKind::Complex => &pair.question,
        };
        let mark = if at == 0 { format!("{IMAGE_MARK}\n") } else { String::new() };
        turns.push(json!({ "from": "human", "value": format!("{mark}{question}") }));
        turns.push(json!({ "from": "gpt", "value": pair.answer }));
    }
    json!({ "id": facts.id, "image": facts.image, "conversations": turns }).to_string()
}

/// Writes results in order as soon as all before them are there.
pub(super) struct OrderedWriter {
    samples: Publishing,
    rejects: Publishing,
    waiting: BTreeMap<u64, Written>,
    /// The next record to be written.
    next: u64,
    pub(super) counts: Counts,
}

/// How many records became what.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) samples: u64,
    pub(super) left: u64,
    pub(super) rejected: BTreeMap<String, u64>,
    pub(super) examples: Vec<RejectedAnswer>,
}

/// Rejects shown to people.
const NUM_EXAMPLES: usize = 5;

impl OrderedWriter {
    pub(super) fn new(samples: &Path, rejects: &Path) -> Result<Self, PrepareError> {
        let (samples, rejects) = (Publishing::new(samples)?, Publishing::new(rejects)?);
        Ok(Self { samples, rejects, waiting: BTreeMap::new(), next: 0, counts: Counts::default() })
    }

    /// The record that everything waits for.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn put(&mut self, record: u64, written: Written) -> Result<(), PrepareError> {
        self.waiting.insert(record, written);
        while let Some(written) = self.waiting.remove(&self.next) {
            self.next += 1;
            self.write(written)?;
        }
        Ok(())
    }

    fn write(&mut self, written: Written) -> Result<(), PrepareError> {
        match written {
            Written::Left => self.counts.left += 1,
            Written::Sample(line) => {
                self.counts.samples += 1;
                self.samples.line(&line)?;
            }
            Written::Reject(reject) => {
                *self.counts.rejected.entry(reject.cause.clone()).or_default() += 1;
                self.rejects.line(&serde_json::to_string(&reject).expect("texts and numbers are JSON"))?;
                if self.counts.examples.len() < NUM_EXAMPLES {
                    self.counts.examples.push(reject);
                }
            }
        }
        Ok(())
    }

    /// Gives both files their names if `admit` allows the finished samples; otherwise all stays as it was.
    pub(super) fn finish(
        mut self,
        admit: impl FnOnce(&Path) -> Result<(), PrepareError>,
    ) -> Result<Counts, PrepareError> {
        self.samples.flush()?;
        if let Err(fault) = admit(&self.samples.partial) {
            self.discard()?;
            return Err(fault);
        }
        self.samples.finish()?;
        self.rejects.finish()?;
        Ok(self.counts)
    }

    /// Leaves the files of an earlier run as they are.
    pub(super) fn discard(self) -> Result<(), PrepareError> {
        remove_if_there(&self.samples.partial)?;
        remove_if_there(&self.rejects.partial)
    }
}

/// A file that gets its name when it is whole.
struct Publishing {
    path: PathBuf,
    partial: PathBuf,
    out: BufWriter<File>,
}

impl Publishing {
    fn new(path: &Path) -> Result<Self, PrepareError> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).map_err(PrepareError::io("create", &partial))?;
        Ok(Self { path: path.to_owned(), partial, out: BufWriter::new(file) })
    }

    fn line(&mut self, line: &str) -> Result<(), PrepareError> {
        let written = self.out.write_all(line.as_bytes()).and_then(|()| self.out.write_all(b"\n"));
        written.map_err(PrepareError::io("write", &self.partial))
    }

    fn flush(&mut self) -> Result<(), PrepareError> {
        self.out.flush().map_err(PrepareError::io("write", &self.partial))
    }

    fn finish(self) -> Result<(), PrepareError> {
        let file =
            self.out.into_inner().map_err(|fault| PrepareError::io("write", &self.partial)(fault.into_error()))?;
        file.sync_all().map_err(PrepareError::io("write", &self.partial))?;
        fs::rename(&self.partial, &self.path).map_err(PrepareError::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_mark_stands_once_before_the_first_question() {
        let facts =
            ImageFacts { id: "7".into(), image: "7.jpg".into(), captions: vec!["A cat.".into()], boxes: vec![] };
        let pair = |question: &str, answer: &str| Pair { question: question.into(), answer: answer.into() };
        let pairs = [pair("What?", "A cat."), pair("Where?", "Here.")];
        let line = llava_line(GenerateKind::Conversation, &facts, &pairs, 0);
        let expected = r#"{"id":"7","image":"7.jpg","conversations":[{"from":"human","value":"<image>\nWhat?"},{"from":"gpt","value":"A cat."},{"from":"human","value":"Where?"},{"from":"gpt","value":"Here."}]}"#;
        assert_eq!(line, expected);
        let line = llava_line(GenerateKind::Detail, &facts, &[pair("", "A long text.")], 3);
        let question = detail_question(3, "7", vela_types::Language::En);
        assert!(line.contains(&format!("<image>\\n{question}")), "{line}");
    }

    proptest! {
        #[test]
        fn whatever_comes_first_the_file_is_in_order(order in Just((0u64..30).collect::<Vec<_>>()).prop_shuffle()) {
            let root = tempfile::tempdir().expect("temp folder");
            let (samples, rejects) = (root.path().join("s"), root.path().join("r"));
            let mut writer = OrderedWriter::new(&samples, &rejects).expect("opens");
            for record in order {
                let reject = || RejectedAnswer { record, id: None, cause: "c".into(), detail: String::new(), finish_reason: None, raw: None };
                let written = if record % 3 == 0 { Written::Reject(reject()) } else { Written::Sample(record.to_string()) };
                writer.put(record, written).expect("written");
            }
            let counts = writer.finish(|_| Ok(())).expect("published");
            prop_assert_eq!((counts.samples, counts.rejected["c"]), (20, 10));
            let expected: Vec<String> = (0..30).filter(|record| record % 3 != 0).map(|record: u64| record.to_string()).collect();
            let found = fs::read_to_string(&samples).expect("file");
            prop_assert_eq!(found.lines().collect::<Vec<_>>(), expected);
        }
    }
}
