//! Event files that TensorBoard reads.
//!
//! A file is a list of records: length (u64), masked CRC-32C of it, the bytes, masked CRC-32C of them, little-endian. The
//! bytes are a protobuf `Event` (tensorflow/core/util/event.proto), of which four fields are written: 1 `wall_time` (double), 2
//! `step` (int64), 3 `file_version` (string), 5 `summary`, and 7 `session_log`, by whose start TensorBoard forgets what an
//! earlier file of the folder says of the step and later ones.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::TrainError;
use crate::metrics::StepMetrics;

/// `SessionLog.status` of a run that begins or goes on.
const SESSION_START: u64 = 1;

/// An event file of one process of a run.
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Makes a file in `folder` for a run that goes on with one-based step `first_step`.
    pub(crate) fn create(folder: &Path, first_step: u64) -> Result<Self, TrainError> {
        std::fs::create_dir_all(folder).map_err(TrainError::io("create", folder))?;
        let now = unix_seconds();
        // Files are read in the order of their names: seconds first, and what two processes do not share.
        let name = format!("events.out.tfevents.{:010}.{}.vela", now as u64, std::process::id());
        let path = folder.join(name);
        let opened = OpenOptions::new().append(true).create(true).open(&path);
        let mut events = Self { file: opened.map_err(TrainError::io("create", &path))?, path };
        events.append(&[version_event(now), start_event(now, first_step)].concat())?;
        Ok(events)
    }

    /// Appends every number of a metrics line.
    pub(crate) fn push(&mut self, line: &StepMetrics) -> Result<(), TrainError> {
        self.append(&scalars_event(unix_seconds(), line.step, &scalars(line)))
    }

    fn append(&mut self, records: &[u8]) -> Result<(), TrainError> {
        self.file.write_all(records).map_err(TrainError::io("append to", &self.path))
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Tag and value of what a line tells.
fn scalars(line: &StepMetrics) -> Vec<(String, f64)> {
    let always = [
        ("loss/train", line.loss),
        ("gradient/norm", line.grad_norm),
        ("speed/samples_per_second", line.samples_per_second),
        ("speed/tokens_per_second", line.tokens_per_second),
        ("speed/label_tokens_per_second", line.label_tokens_per_second),
        ("speed/data_wait", line.data_wait),
        ("progress/epoch", line.epoch),
    ];
    let sometimes = [
        ("loss/validation", line.validation_loss),
        ("speed/mfu", line.mfu),
        ("memory/gib", line.memory_bytes.map(|bytes| bytes as f64 / f64::from(1 << 30))),
    ];
    let sometimes = sometimes.into_iter().filter_map(|(tag, value)| Some((tag, value?)));
    let rates = line.lr.iter().map(|(group, rate)| (format!("lr/{group}"), *rate));
    always.into_iter().chain(sometimes).map(|(tag, value)| (tag.to_owned(), value)).chain(rates).collect()
}

fn version_event(time: f64) -> Vec<u8> {
    let mut event = Message::default();
    event.double(1, time);
    event.bytes(3, b"brain.Event:2");
    record(&event.0)
}

fn start_event(time: f64, step: u64) -> Vec<u8> {
    let mut log = Message::default();
    log.integer(1, SESSION_START);
    let mut event = Message::default();
    event.double(1, time);
    event.integer(2, step);
    event.bytes(7, &log.0);
    record(&event.0)
}

fn scalars_event(time: f64, step: u64, scalars: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in scalars {
        let mut scalar = Message::default();
        scalar.bytes(1, tag.as_bytes());
        scalar.float(2, *value as f32);
        summary.bytes(1, &scalar.0);
    }
    let mut event = Message::default();
    event.double(1, time);
    event.integer(2, step);
    event.bytes(5, &summary.0);
    record(&event.0)
}

/// A protobuf message as far as events need it.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let (of_length, of_bytes) = (masked_crc32c(&length).to_le_bytes(), masked_crc32c(bytes).to_le_bytes());
    [&length[..], &of_length, bytes, &of_bytes].concat()
}

/// A CRC that may stand beside what it guards: turned by 15 bits and shifted by a constant.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: some hundred bytes a step.
fn crc32c(bytes: &[u8]) -> u32 {
    let of_bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), of_bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the polynomial's catalogue entry, and one of RFC 3720.
    #[test]
    fn check_sums_are_those_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// `tests/golden/train/events.py` read the committed file with TensorBoard and wrote down what it found.
    #[test]
    fn the_bytes_are_those_that_tensorboard_has_read() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/train");
        let bytes = [
            version_event(1_790_000_000.25),
            start_event(1_790_000_000.5, 1),
            scalars_event(1_790_000_001.0, 1, &scalars(&line(1))),
            scalars_event(1_790_000_002.0, 300, &scalars(&line(300))),
        ];
        let path = Path::new(golden).join("events.out.tfevents.1790000000.1.vela");
        let committed = std::fs::read(&path).expect("committed");
        assert!(
            bytes.concat() == committed,
            "write the file anew and read it with events.py: {}",
            hex(&bytes.concat())
        );
        let read: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(format!("{golden}/events.json")).expect("committed"))
                .expect("JSON");
        for step in [1, 300] {
            for (tag, value) in scalars(&line(step)) {
                let found = read["scalars"][&tag].as_array().expect("read by TensorBoard").iter();
                let at_step: Vec<_> = found.filter(|event| event[0] == step).collect();
                assert_eq!(at_step.len(), 1, "{tag}");
                assert_eq!(at_step[0][1].as_f64().map(|value| value as f32), Some(value as f32), "{tag}");
            }
        }
    }

    fn line(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            epoch: step as f64 / 400.0,
            loss: 5.0 / step as f64,
            validation_loss: (step == 300).then_some(0.5),
            lr: [("language_model".to_owned(), 2e-5), ("projector".to_owned(), 1e-3)].into_iter().collect(),
            grad_norm: 0.75,
            samples_per_second: 12.5,
            tokens_per_second: 1e4,
            label_tokens_per_second: 3e3,
            data_wait: 0.01,
            mfu: Some(0.375),
            memory_bytes: Some(3 << 29),
            ..StepMetrics::default()
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_file_begins_with_its_version_and_the_first_step() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut events = EventFile::create(&folder.path().join("tensorboard"), 8).expect("created");
        events.push(&line(8)).expect("pushed");
        let bytes = std::fs::read(&events.path).expect("there");
        let start = [0x10, 8, 0x3a, 2, 8, 1];
        assert!(bytes.windows(13).any(|window| window == b"brain.Event:2"));
        assert!(bytes.windows(start.len()).any(|window| window == start), "{}", hex(&bytes));
    }
}
