//! The folder of a run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where a run keeps its files: `raw`, `shards`, `runs`.
pub(crate) struct Workplace {
    path: PathBuf,
    /// Nobody asked for the data, so only the runs are left behind.
    temporary: bool,
}

impl Workplace {
    /// The folder asked for, which must be absent or empty, or a new temporary one.
    pub(crate) fn open(asked: Option<&Path>) -> Result<Self> {
        let temporary = asked.is_none();
        let path = match asked {
            Some(path) => path.to_owned(),
            None => std::env::temp_dir().join(format!("vela-demo-{}", std::process::id())),
        };
        if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("`--output`: expected an absent or empty folder, found files in `{}`", path.display());
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot create `{}`", path.display()))?;
        let path = path.canonicalize().with_context(|| format!("cannot open `{}`", path.display()))?;
        Ok(Self { path, temporary })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn raw(&self) -> PathBuf {
        self.path.join("raw")
    }

    pub(crate) fn shards(&self) -> PathBuf {
        self.path.join("shards")
    }

    pub(crate) fn preset(&self) -> PathBuf {
        self.path.join("model.toml")
    }

    /// The run folder of a stage.
    pub(crate) fn run(&self, stage: &str) -> PathBuf {
        self.path.join("runs").join(stage)
    }

    /// Removes what can be made again from a folder that nobody asked for.
    pub(crate) fn close(&self) -> Result<()> {
        if !self.temporary {
            return Ok(());
        }
        for folder in [self.raw(), self.shards()] {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_is_refused_and_an_empty_one_taken() {
        let folder = std::env::temp_dir().join(format!("vela-demo-workplace-{}", std::process::id()));
        let workplace = Workplace::open(Some(&folder)).expect("absent");
        fs::write(workplace.path().join("kept"), "x").expect("writable");
        let fault = Workplace::open(Some(&folder)).err().expect("in use").to_string();
        assert!(fault.contains("--output") && fault.contains("vela-demo-workplace"), "{fault}");
        workplace.close().expect("nothing to do");
        assert!(folder.join("kept").exists());
        fs::remove_dir_all(&folder).expect("removable");
    }
}
