//! Where in an epoch a stream of batches is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Fingerprint;

/// The version this build writes and accepts.
pub const CURSOR_VERSION: u32 = 1;

/// Everything needed to continue a stream of batches: data, batch definition, place. Plain JSON under 1 KB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// [`CURSOR_VERSION`] of the writer.
    pub version: u32,
    /// The manifest's fingerprint.
    pub fingerprint: Fingerprint,
    /// Hash of the [`BatchSpec`](crate::BatchSpec) fields that decide which samples a step holds.
    pub spec: Fingerprint,
    /// Zero-based epoch of the next step.
    pub epoch: u64,
    /// Zero-based optimizer step within the epoch, the next to be delivered.
    pub step: u64,
}

/// A cursor that belongs to other data, another batch definition or another version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorMismatch {
    /// `version`, `fingerprint` or `spec`.
    pub field: &'static str,
    /// What this stream has.
    pub expected: String,
    /// What the cursor has.
    pub found: String,
}

impl fmt::Display for CursorMismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, expected, found } = self;
        write!(out, "cursor does not belong here: expected {field} `{expected}`, found `{found}`; ")?;
        write!(out, "resume with the data and batch settings it was saved with, or start without it")
    }
}

impl std::error::Error for CursorMismatch {}

impl Cursor {
    /// The start of the first epoch.
    pub fn start(fingerprint: Fingerprint, spec: Fingerprint) -> Self {
        Self { version: CURSOR_VERSION, fingerprint, spec, epoch: 0, step: 0 }
    }

    /// Refuses a cursor that was saved with another version, other data or another batch definition.
    pub fn check(&self, fingerprint: Fingerprint, spec: Fingerprint) -> Result<(), CursorMismatch> {
        let fields = [
            ("version", CURSOR_VERSION.to_string(), self.version.to_string()),
            ("fingerprint", fingerprint.to_string(), self.fingerprint.to_string()),
            ("spec", spec.to_string(), self.spec.to_string()),
        ];
        match fields.into_iter().find(|(_, expected, found)| expected != found) {
            None => Ok(()),
            Some((field, expected, found)) => Err(CursorMismatch { field, expected, found }),
        }
    }
}

/// The place of one micro-batch: which epoch, which optimizer step in it, which micro-batch of this rank's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Zero-based epoch.
    pub epoch: u64,
    /// Zero-based step within the epoch.
    pub step: u64,
    /// Zero-based micro-batch within the step.
    pub micro: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_cursor_is_refused_by_the_field_that_differs() {
        let (data, spec, other) = (Fingerprint([1; 32]), Fingerprint([2; 32]), Fingerprint([3; 32]));
        let cursor = Cursor::start(data, spec);
        assert_eq!(cursor.check(data, spec), Ok(()));
        assert_eq!(cursor.check(other, spec).map_err(|fault| fault.field), Err("fingerprint"));
        assert_eq!(cursor.check(data, other).map_err(|fault| fault.field), Err("spec"));
        let newer = Cursor { version: CURSOR_VERSION + 1, ..cursor };
        assert_eq!(newer.check(data, spec).map_err(|fault| fault.field), Err("version"));
    }
}
