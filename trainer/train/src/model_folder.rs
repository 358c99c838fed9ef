//! A model folder in the making: written beside its place, moved there when it is whole.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vela_models::VlmConfig;
use vela_processor::Processor;
use vela_types::IMAGE_MARK;

use crate::checkpoint::{flush, flush_folder};
use crate::error::TrainError;
use crate::lock::{FolderLock, hidden};

/// A folder that has not its name yet. Dropped before it is finished, it is removed; what a killed process left of it is
/// removed by the next.
pub(crate) struct ModelFolder {
    partial: PathBuf,
    output: PathBuf,
    finished: bool,
    /// Let go when the folder has its name or is gone.
    _lock: FolderLock,
}

impl ModelFolder {
    /// Begins the folder `output`, which must be absent or empty.
    pub(crate) fn begin(output: &Path) -> Result<Self, TrainError> {
        match fs::read_dir(output).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => return Err(TrainError::OutputTaken { path: output.to_owned() }),
            Err(fault) if fault.kind() == ErrorKind::NotFound => {}
            Err(fault) => return Err(TrainError::io("list", output)(fault)),
        }
        let lock = FolderLock::beside(output)?;
        let partial = hidden(output, "partial");
        match fs::remove_dir_all(&partial) {
            Err(fault) if fault.kind() != ErrorKind::NotFound => return Err(TrainError::io("remove", &partial)(fault)),
            _ => fs::create_dir_all(&partial).map_err(TrainError::io("create", &partial))?,
        }
        Ok(Self { partial, output: output.to_owned(), finished: false, _lock: lock })
    }

    /// Where its files go.
    pub(crate) fn path(&self) -> &Path {
        &self.partial
    }

    /// Bytes of its weight files.
    pub(crate) fn weight_bytes(&self) -> Result<u64, TrainError> {
        let mut bytes = 0;
        for entry in fs::read_dir(&self.partial).map_err(TrainError::io("list", &self.partial))? {
            let path = entry.map_err(TrainError::io("list", &self.partial))?.path();
            if path.extension().is_some_and(|extension| extension == "safetensors") {
                bytes += fs::metadata(&path).map_err(TrainError::io("read", &path))?.len();
            }
        }
        Ok(bytes)
    }

    /// Flushes every file and gives the folder its name; both then survive a power cut.
    pub(crate) fn finish(mut self) -> Result<(), TrainError> {
        flush_folder(&self.partial)?;
        fs::rename(&self.partial, &self.output).map_err(TrainError::io("rename to", &self.output))?;
        self.finished = true;
        let parent = self.output.parent().filter(|parent| !parent.as_os_str().is_empty());
        flush(parent.unwrap_or(Path::new(".")))
    }
}

impl Drop for ModelFolder {
    fn drop(&mut self) {
        if !self.finished {
            // The error that ended the work is told; what is left under a hidden name harms nobody.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Writes the processor's files, and what `transformers` wants beside them: how its own processor counts image tokens,
/// and the tokens that end an answer.
pub(crate) fn write_for_transformers(processor: &Processor, config: &VlmConfig, dir: &Path) -> Result<(), TrainError> {
    processor.save(dir).map_err(|source| TrainError::Save { path: dir.to_owned(), source: Box::new(source) })?;
    let class_tokens = usize::from(config.vision.family.has_class_token());
    let strategy = if config.features.keep_class_token { "full" } else { "default" };
    let processing = json!({
        "image_token": IMAGE_MARK,
        "num_additional_image_tokens": class_tokens,
        "patch_size": config.vision.patch_size,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": strategy,
    });
    let generation = json!({
        "do_sample": false,
        "eos_token_id": processor.stop_ids(),
        "pad_token_id": processor.summary().pad_token_id,
    });
    write_json(&dir.join("processor_config.json"), &processing)?;
    write_json(&dir.join("generation_config.json"), &generation)
}

fn write_json(path: &Path, value: &Value) -> Result<(), TrainError> {
    fs::write(path, format!("{value:#}\n")).map_err(TrainError::io("write", path))
}
