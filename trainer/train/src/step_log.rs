//! Files of one JSON object per line, each about a step: what a run leaves while it goes on.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::TrainError;

/// A line of such a file.
pub(crate) trait StepLine: Serialize + DeserializeOwned {
    /// The one-based optimizer step that the line is about.
    fn step(&self) -> u64;
}

/// Such a file, open for appending.
pub(crate) struct StepLog<L> {
    path: PathBuf,
    file: File,
    lines: Vec<L>,
}

impl<L: StepLine> StepLog<L> {
    /// Opens the log of a run that stands after `step` steps: lines of later steps and a torn last line, left by a run
    /// that was killed, are dropped; of a run that has made none, all are, since it begins anew.
    pub(crate) fn open(path: PathBuf, step: u64) -> Result<Self, TrainError> {
        let mut lines: Vec<L> = read_lines(&path)?;
        lines.retain(|line| step > 0 && line.step() <= step);
        let kept: String = lines.iter().map(to_line).collect();
        let partial = path.with_extension("jsonl.partial");
        fs::write(&partial, kept).map_err(TrainError::io("write", &partial))?;
        fs::rename(&partial, &path).map_err(TrainError::io("replace", &path))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(TrainError::io("open", &path))?;
        Ok(Self { path, file, lines })
    }

    /// Appends one line in one write.
    pub(crate) fn push(&mut self, line: L) -> Result<(), TrainError> {
        self.file.write_all(to_line(&line).as_bytes()).map_err(TrainError::io("append to", &self.path))?;
        self.lines.push(line);
        Ok(())
    }

    /// Every line of the run, earlier parts included.
    pub(crate) fn lines(&self) -> &[L] {
        &self.lines
    }
}

fn to_line(line: &impl Serialize) -> String {
    let json = serde_json::to_string(line).expect("plain fields always have a JSON form");
    json + "\n"
}

/// The lines of a file up to the first that is not whole; none if there is no file.
pub(crate) fn read_lines<L: StepLine>(path: &Path) -> Result<Vec<L>, TrainError> {
    // Bytes, since a kill may have torn the last line within a character.
    match fs::read(path) {
        Ok(text) => Ok(text.split(|byte| *byte == b'\n').map_while(|line| serde_json::from_slice(line).ok()).collect()),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(fault) => Err(TrainError::io("read", path)(fault)),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Line {
        step: u64,
        value: f64,
        answer: String,
    }

    impl StepLine for Line {
        fn step(&self) -> u64 {
            self.step
        }
    }

    fn line(step: u64) -> Line {
        Line { step, value: 0.1 + 0.2 * step as f64, answer: "红色的圆".to_owned() }
    }

    #[test]
    fn a_resumed_log_drops_later_steps_and_the_torn_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lines.jsonl");
        let text: String = (1..=4).map(|step| to_line(&line(step))).collect();
        // Cut within the second character of the last line.
        let torn = &text.as_bytes()[..text.rfind('色').expect("there") + 1];
        assert!(std::str::from_utf8(torn).is_err());
        fs::write(&path, torn).expect("written");
        let mut log = StepLog::open(path.clone(), 2).expect("opened");
        log.push(line(3)).expect("pushed");
        assert_eq!(read_lines::<Line>(&path).expect("read"), [line(1), line(2), line(3)]);
        assert_eq!(log.lines().len(), 3);
    }

    #[test]
    fn a_file_that_is_not_there_has_no_lines() {
        assert_eq!(read_lines::<Line>(Path::new("/nowhere/lines.jsonl")).expect("read"), []);
    }
}
