//! The files of a processor's folder, in canonical form: what is read is what is hashed and what is saved.
//!
//! Canonical means that the tokenizer's files name `<image>` as a special token; files that already do are kept byte
//! for byte. So a saved processor loads to the same fingerprint, here and elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use vela_types::{Fingerprint, IMAGE_MARK};

use crate::settings::SETTINGS_FILE;
use crate::tiktoken::{self, Family, LLAMA3_FILE, QWEN_FILE};
use crate::token_ids::{TokenIds, TokenizerTables};
use crate::{ProcessorError, ProcessorOptions, settings::Settings};

pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
pub(crate) const VOCAB_FILE: &str = "vocab.json";
pub(crate) const MERGES_FILE: &str = "merges.txt";
pub(crate) const ADDED_TOKENS_FILE: &str = "added_tokens.json";
pub(crate) const TEMPLATE_FILE: &str = "chat_template.jinja";
pub(crate) const TEMPLATE_JSON_FILE: &str = "chat_template.json";
pub(crate) const PREPROCESSOR_FILE: &str = crate::pixels::PREPROCESSOR_FILE;

/// All files that matter.
const FILES: [&str; 11] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    VOCAB_FILE,
    MERGES_FILE,
    ADDED_TOKENS_FILE,
    QWEN_FILE,
    LLAMA3_FILE,
    TEMPLATE_FILE,
    TEMPLATE_JSON_FILE,
    PREPROCESSOR_FILE,
    SETTINGS_FILE,
];

/// Files that say the same in another form, the first that is there counts and the others are left out.
const TOKENIZERS: [&[&str]; 4] =
    [&[TOKENIZER_FILE], &[VOCAB_FILE, MERGES_FILE, ADDED_TOKENS_FILE], &[QWEN_FILE], &[LLAMA3_FILE]];

/// Name to content, in name order.
pub(crate) struct Folder {
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Folder {
    /// Reads the tokenizer's files of `dir` and the image part of `images`, and brings them to canonical form under the
    /// caller's options; also the settings that hold.
    pub(crate) fn read(
        dir: &Path,
        images: &Path,
        options: &ProcessorOptions,
    ) -> Result<(Self, Settings), ProcessorError> {
        for dir in [dir, images] {
            if !dir.is_dir() {
                return Err(ProcessorError::MissingFile { dir: dir.to_path_buf(), expected: "a folder of that name" });
            }
        }
        let mut folder = Self { files: BTreeMap::new() };
        for name in FILES {
            let dir = if name == PREPROCESSOR_FILE { images } else { dir };
            match fs::read(dir.join(name)) {
                Ok(content) => _ = folder.files.insert(name, content),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ProcessorError::File { path: dir.join(name), source }),
            }
        }
        let settings = Settings::resolve(folder.get(SETTINGS_FILE), options)?;
        folder.files.remove(SETTINGS_FILE);
        folder.files.extend(settings.to_file().map(|content| (SETTINGS_FILE, content)));
        folder.check(dir, images)?;
        folder.declare_tiktoken_specials()?;
        folder.declare_image_token()?;
        Ok((folder, settings))
    }

    /// Writes every file into `dir`, which is made if need be.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), ProcessorError> {
        let fault = |path: &Path, source| ProcessorError::File { path: path.to_path_buf(), source };
        fs::create_dir_all(dir).map_err(|source| fault(dir, source))?;
        for (name, content) in &self.files {
            let path = dir.join(name);
            fs::write(&path, content).map_err(|source| fault(&path, source))?;
        }
        Ok(())
    }

    /// Every file in name order.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.iter().map(|(name, content)| (*name, content.as_slice()))
    }

    /// A file's content, if the folder has it.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// A file as JSON; null if the folder has none.
    pub(crate) fn json(&self, name: &'static str) -> Result<Value, ProcessorError> {
        Ok(self.parse(name)?.unwrap_or_default())
    }

    /// The tokens of `vocab.json`.
    pub(crate) fn vocab(&self) -> Result<HashMap<String, u32>, ProcessorError> {
        Ok(self.parse(VOCAB_FILE)?.unwrap_or_default())
    }

    /// A JSON file; `None` if the folder has none.
    fn parse<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, ProcessorError> {
        let Some(content) = self.get(name) else { return Ok(None) };
        let parsed = serde_json::from_slice(content).map(Some);
        parsed.map_err(|source| ProcessorError::Json { file: name.into(), source })
    }

    /// blake3 over a version tag, then for each file in name order its name and content, then each of `settings`;
    /// every item is preceded by its length (u64, little-endian).
    pub(crate) fn fingerprint(&self, settings: &[&str]) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        let mut item = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        item(b"vela-processor-2");
        for (name, content) in &self.files {
            item(name.as_bytes());
            item(content);
        }
        settings.iter().for_each(|setting| item(setting.as_bytes()));
        Fingerprint(*hasher.finalize().as_bytes())
    }

    /// The tiktoken file that the tokenizer is built from and what is known of it.
    pub(crate) fn tiktoken(&self) -> Option<(&'static Family, &[u8])> {
        self.files.iter().find_map(|(name, content)| Some((Family::of_file(name)?, content.as_slice())))
    }

    fn check(&mut self, dir: &Path, images: &Path) -> Result<(), ProcessorError> {
        let has = |name: &str| self.files.contains_key(name);
        let missing = |expected| Err(ProcessorError::MissingFile { dir: dir.to_path_buf(), expected });
        let complete = |files: &&&[&str]| files.iter().all(|file| has(file) || *file == ADDED_TOKENS_FILE);
        let Some(chosen) = TOKENIZERS.iter().find(complete) else {
            return missing(
                "`tokenizer.json`, or `vocab.json` with `merges.txt`, or a tiktoken file (`qwen.tiktoken`, `tokenizer.model`)",
            );
        };
        let is_tiktoken = chosen.iter().any(|file| Family::of_file(file).is_some());
        if !has(TOKENIZER_CONFIG_FILE) && !is_tiktoken {
            return missing("`tokenizer_config.json`");
        }
        if !has(PREPROCESSOR_FILE) {
            let expected = "`preprocessor_config.json`";
            return Err(ProcessorError::MissingFile { dir: images.to_path_buf(), expected });
        }
        let superseded = |name: &str| !chosen.contains(&name) && TOKENIZERS.iter().any(|files| files.contains(&name));
        self.files.retain(|name, _| !superseded(name));
        if is_tiktoken {
            self.files.entry(TOKENIZER_CONFIG_FILE).or_insert_with(|| b"{}".to_vec());
        }
        let config = self.json(TOKENIZER_CONFIG_FILE)?;
        match &config["added_tokens_decoder"] {
            Value::Null | Value::Object(_) => Ok(()),
            other => Err(ProcessorError::Setting {
                file: TOKENIZER_CONFIG_FILE,
                key: "added_tokens_decoder".into(),
                expected: "an object of tokens by id".into(),
                found: other.to_string(),
            }),
        }
    }

    /// Writes a tiktoken family's special tokens into the tokenizer's config, where its publisher keeps them in code.
    fn declare_tiktoken_specials(&mut self) -> Result<(), ProcessorError> {
        let Some((family, content)) = self.tiktoken() else { return Ok(()) };
        let num_ranks = tiktoken::parse(family.file, content)?.len();
        self.edit(TOKENIZER_CONFIG_FILE, |config| family.declare(num_ranks, config))
    }

    /// Adds `<image>` at the next free id to the files that list added tokens, unless the tokenizer knows it.
    fn declare_image_token(&mut self) -> Result<(), ProcessorError> {
        let ids = self.token_ids()?;
        if ids.knows_image {
            return Ok(());
        }
        let id = ids.next();
        let flags = json!({
            "content": IMAGE_MARK, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        });
        let config_lists_tokens = self.json(TOKENIZER_CONFIG_FILE)?.get("added_tokens_decoder").is_some();
        if config_lists_tokens || !self.files.contains_key(TOKENIZER_FILE) {
            self.edit(TOKENIZER_CONFIG_FILE, |config| {
                let listed = config.entry("added_tokens_decoder").or_insert_with(|| json!({}));
                listed[id.to_string()] = flags.clone();
            })?;
        }
        if self.files.contains_key(ADDED_TOKENS_FILE) {
            self.edit(ADDED_TOKENS_FILE, |tokens| _ = tokens.insert(IMAGE_MARK.into(), id.into()))?;
        }
        if self.files.contains_key(TOKENIZER_FILE) {
            self.edit(TOKENIZER_FILE, |tokenizer| {
                let mut token = Map::from_iter([("id".to_owned(), id.into())]);
                token.extend(flags.as_object().cloned().unwrap_or_default());
                match tokenizer.entry("added_tokens").or_insert_with(|| json!([])) {
                    Value::Array(tokens) => tokens.push(token.into()),
                    other => *other = json!([token]),
                }
            })?;
        }
        Ok(())
    }

    /// The ids of every token that the files name, added ones included.
    fn token_ids(&self) -> Result<TokenIds, ProcessorError> {
        let mut ids = self.parse::<TokenizerTables>(TOKENIZER_FILE)?.unwrap_or_default().ids();
        for file in [VOCAB_FILE, ADDED_TOKENS_FILE] {
            ids.join(&self.parse(file)?.unwrap_or_default());
        }
        let config = self.json(TOKENIZER_CONFIG_FILE)?;
        for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
            ids.take(token["content"].as_str().unwrap_or_default(), id.parse().ok());
        }
        Ok(ids)
    }

    fn edit(&mut self, name: &'static str, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), ProcessorError> {
        let before = self.json(name)?;
        let mut content = before.clone();
        if let Value::Object(fields) = &mut content {
            change(fields);
        }
        if content == before {
            return Ok(());
        }
        let text =
            serde_json::to_vec_pretty(&content).map_err(|source| ProcessorError::Json { file: name.into(), source })?;
        self.files.insert(name, text);
        Ok(())
    }
}
