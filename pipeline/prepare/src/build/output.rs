//! The place a build fills: whose it is, and what lies there besides shards.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vela_processor::{Processor, ProcessorOptions};
use vela_shard::{
    BuildFolder, Claim, RemoteOptions, ShardError, ShardSettings, Store, is_partial_name, local_path, open_store,
    stage_input,
};

use super::lock::LOCK_FILE;
use super::reject::{REJECTS_FILE, ShardNotes};
use super::{BuildConfig, BuildPlan};
use crate::PrepareError;

/// Names the build that a folder without a manifest belongs to.
const BUILD_FILE: &str = "build.json";
/// Where a shard set keeps a copy of the processor that made it.
const PROCESSOR_FOLDER: &str = "processor";

/// The local folder of a shard set; `None` if it is remote.
pub(super) fn output_folder(shards: &str) -> Result<Option<&Path>, PrepareError> {
    Ok(local_path(shards)?)
}

/// Opens the store that `flag` names.
pub(crate) fn open_shards(flag: &'static str, url: &str) -> Result<Arc<dyn Store>, PrepareError> {
    open_store(url).map_err(|fault| refused_url(flag, fault))
}

/// An URL that is none of ours is wrong use of `flag`.
pub(super) fn refused_url(flag: &'static str, fault: ShardError) -> PrepareError {
    match fault {
        ShardError::UnsupportedUrl { url } => PrepareError::Flag {
            flag,
            expected:
                "a path, a `file://` URL with an absolute path, or a bucket and a prefix without credentials: `s3://`, \
                       `gs://`, `az://`"
                    .to_owned(),
            found: url,
        },
        fault => fault.into(),
    }
}

/// Loads what `--processor` names.
pub(crate) fn load_processor(path: &Path, options: &ProcessorOptions) -> Result<Processor, PrepareError> {
    let fault = |source| PrepareError::ProcessorFolder { path: path.to_owned(), source };
    Processor::load(path, options).map_err(fault)
}

/// The copy of the processor inside a shard set; that of a remote set is fetched first.
pub(crate) fn processor_folder(shards: &str) -> Result<PathBuf, PrepareError> {
    match local_path(shards)? {
        Some(folder) => Ok(folder.join(PROCESSOR_FOLDER)),
        None => Ok(stage_input(&processor_url(shards), &RemoteOptions::from_env()?.input_folder())?),
    }
}

fn processor_url(shards: &str) -> String {
    format!("{}/{PROCESSOR_FOLDER}", shards.trim_end_matches('/'))
}

/// Leaves a copy of `processor` inside the shard set; files that are there already are not written again.
pub(super) fn save_processor(processor: &Processor, shards: &str) -> Result<(), PrepareError> {
    let store = open_store(&processor_url(shards))?;
    let (names, contents): (Vec<String>, Vec<&[u8]>) =
        processor.files().map(|(name, content)| (name.to_owned(), content)).unzip();
    let known = store.read_all(&names)?;
    for ((name, content), known) in names.iter().zip(contents).zip(known) {
        if known.is_none_or(|known| known != content) {
            write_file(store.as_ref(), name, content)?;
        }
    }
    Ok(())
}

/// Refuses a folder that holds anything but this build, and leaves this build's name in it.
pub(super) fn open_folder(
    config: &BuildConfig,
    plan: &BuildPlan,
    store: &Arc<dyn Store>,
    settings: ShardSettings,
) -> Result<BuildFolder, PrepareError> {
    let in_use = |found: String| PrepareError::OutputInUse {
        path: config.output.clone().into(),
        expected: format!("an empty folder or a build of the plan `{}`", plan.name.short()),
        found,
    };
    let folder = match BuildFolder::open(Arc::clone(store), plan.name, settings) {
        Err(ShardError::ForeignBuild { found, .. }) => {
            return Err(in_use(format!("a build of other inputs, images or settings (plan `{}`)", found.short())));
        }
        Err(ShardError::Json { .. } | ShardError::Version { .. }) => {
            return Err(in_use("a `manifest.json` of something else, or of another version".to_owned()));
        }
        opened => opened?,
    };
    let name = serde_json::json!({ "plan": plan.name }).to_string();
    let unfinished = || Err(in_use("an unfinished build of other inputs, images or settings".to_owned()));
    // Some other process of this build may begin, or even end, between any two of these looks.
    let mut stranger = None;
    for _ in 0..2 {
        match (folder.manifest()?, store.read(BUILD_FILE)?) {
            (Some(_), _) => return Ok(folder),
            (None, Some(found)) if found[..] == *name.as_bytes() => return Ok(folder),
            (None, Some(_)) => return unfinished(),
            (None, None) => {}
        }
        stranger = find_stranger(store.as_ref())?;
        if stranger.is_none() {
            break;
        }
    }
    if let Some(file) = stranger {
        return Err(in_use(format!("`{file}`")));
    }
    match store.create_new(BUILD_FILE, name.as_bytes())? {
        Claim::Won => Ok(folder),
        Claim::Lost(_) => unfinished(),
    }
}

/// A file that is not ours. The reject list of a build that had nothing but rejects is.
fn find_stranger(store: &dyn Store) -> Result<Option<String>, PrepareError> {
    for file in store.list()? {
        let is_ours = match file.as_str() {
            BUILD_FILE | LOCK_FILE => true,
            REJECTS_FILE => store.read(REJECTS_FILE)?.is_some_and(|lines| ShardNotes::from_lines(&lines).is_some()),
            other => is_partial_name(other),
        };
        if !is_ours {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// Removes the shards of a build that has no sample, and the copy of its processor.
pub(super) fn abandon(folder: &BuildFolder, output: &str, processor_files: &[String]) -> Result<(), PrepareError> {
    folder.abandon()?;
    let store = open_store(&processor_url(output))?;
    processor_files.iter().try_for_each(|name| store.remove(name))?;
    if let Some(folder) = local_path(output)? {
        // Whatever else lies there is not ours.
        let _ = std::fs::remove_dir(folder.join(PROCESSOR_FOLDER));
    }
    Ok(())
}

/// Takes this build's name from a folder that has its manifest, or nothing any more.
pub(super) fn leave(store: &dyn Store) -> Result<(), PrepareError> {
    // On a read-only medium even the removal of what is not there fails.
    match store.stamp(BUILD_FILE)? {
        Some(_) => Ok(store.remove(BUILD_FILE)?),
        None => Ok(()),
    }
}

pub(super) fn write_file(store: &dyn Store, name: &str, content: &[u8]) -> Result<(), PrepareError> {
    let path = store.path(name);
    let mut file = store.create(name)?;
    file.write_all(content).map_err(PrepareError::io("write", path.as_ref()))?;
    Ok(file.publish()?)
}
