//! What an earlier run finished stays: an output is written again only with its own settings, and never with fewer dialogues.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::prompts::PROMPT_VERSION;
use super::{GenerateConfig, GenerateKind};
use crate::PrepareError;
use crate::journal::{make_parent, replace_file};

/// What decides the dialogues of an output besides its input: it stands beside it as `<output>.settings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    kind: GenerateKind,
    model: String,
    temperature: f64,
    max_tokens: u32,
    seed: u64,
    prompt_version: u32,
}

impl Settings {
    fn of(config: &GenerateConfig) -> Self {
        let GenerateConfig { kind, temperature, max_tokens, seed, .. } = *config;
        Self { kind, model: config.model.clone(), temperature, max_tokens, seed, prompt_version: PROMPT_VERSION }
    }

    fn to_text(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are JSON")
    }

    /// What differs from `other`, as `--kind detail`.
    fn unlike(&self, other: &Self) -> String {
        let named = [
            (self.kind != other.kind, format!("--kind {}", self.kind.as_str())),
            (self.model != other.model, format!("--model {}", self.model)),
            (self.temperature != other.temperature, format!("--temperature {}", self.temperature)),
            (self.max_tokens != other.max_tokens, format!("--max-tokens {}", self.max_tokens)),
            (self.seed != other.seed, format!("--seed {}", self.seed)),
            (self.prompt_version != other.prompt_version, format!("prompts of version {}", self.prompt_version)),
        ];
        named.into_iter().filter(|(differs, _)| *differs).map(|(_, text)| text).collect::<Vec<_>>().join(" ")
    }
}

/// Refuses an output that holds dialogues made with other settings than those of `config`, or with unknown ones.
pub(super) fn check_output(config: &GenerateConfig) -> Result<(), PrepareError> {
    let wanted = Settings::of(config);
    let path = config.settings_path();
    let known = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Settings>(&text).ok());
    if is_empty(&config.output) || known.as_ref() == Some(&wanted) {
        return Ok(());
    }
    let (expected, found) = match known {
        Some(known) => (wanted.unlike(&known), known.unlike(&wanted)),
        None => (wanted.to_text(), format!("no `{}`", path.display())),
    };
    Err(PrepareError::OutputInUse {
        path: config.output.clone(),
        expected: format!("no dialogues, or those made with {expected}"),
        found: format!("dialogues of other settings ({found})"),
    })
}

/// Makes the folders of all files of `config`.
pub(super) fn make_folders(config: &GenerateConfig) -> Result<(), PrepareError> {
    [&config.output, &config.cache_path(), &config.rejects_path()].into_iter().try_for_each(|path| make_parent(path))
}

/// Allows the file `made` to become the output, and notes its settings first: an output never stands beside those of another.
pub(super) fn admit(config: &GenerateConfig, made: &Path) -> Result<(), PrepareError> {
    // Another process may have been here since the start.
    check_output(config)?;
    check_nothing_lost(&config.output, made)?;
    let partial = config.output.with_added_extension("settings.partial");
    fs::write(&partial, Settings::of(config).to_text()).map_err(PrepareError::io("write", &partial))?;
    replace_file(&config.settings_path(), &partial)
}

fn is_empty(output: &Path) -> bool {
    fs::metadata(output).map_or(true, |data| data.len() == 0)
}

/// Refuses `made` in place of the output at `path` if a dialogue of it is not there again.
fn check_nothing_lost(path: &Path, made: &Path) -> Result<(), PrepareError> {
    if is_empty(path) {
        return Ok(());
    }
    let mut ids = HashSet::new();
    for_each_id(made, &mut |id| _ = ids.insert(id)).map_err(PrepareError::io("read", made))?;
    let mut lost = 0;
    for_each_id(path, &mut |id| lost += u64::from(!ids.contains(&id))).map_err(PrepareError::io("read", path))?;
    match lost {
        0 => Ok(()),
        lost => Err(PrepareError::WouldLose { path: path.to_owned(), lost, made: ids.len() as u64 }),
    }
}

/// Shows the hash of each line's id; a line without one stands for itself.
fn for_each_id(path: &Path, take: &mut dyn FnMut(blake3::Hash)) -> io::Result<()> {
    #[derive(Deserialize)]
    struct Line {
        id: String,
    }
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let text = line.trim_ascii();
        if !text.is_empty() {
            let id = serde_json::from_slice::<Line>(text).map(|line| line.id.into_bytes());
            take(blake3::hash(&id.unwrap_or_else(|_| text.to_owned())));
        }
        line.clear();
    }
    Ok(())
}
