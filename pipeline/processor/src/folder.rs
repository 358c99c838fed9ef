//! The files of a processor's folder, in canonical form: what is read is what is hashed and what is saved.
//!
//! Canonical means that the tokenizer's files name `<image>` as a special token; files that already do are kept byte
//! for byte. So a saved processor loads to the same fingerprint, here and elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};
use vela_types::{Fingerprint, IMAGE_MARK};

use crate::ProcessorError;

pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";
pub(crate) const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
pub(crate) const VOCAB_FILE: &str = "vocab.json";
pub(crate) const MERGES_FILE: &str = "merges.txt";
pub(crate) const ADDED_TOKENS_FILE: &str = "added_tokens.json";
pub(crate) const TEMPLATE_FILE: &str = "chat_template.jinja";
pub(crate) const TEMPLATE_JSON_FILE: &str = "chat_template.json";
pub(crate) const PREPROCESSOR_FILE: &str = crate::pixels::PREPROCESSOR_FILE;

/// All files that matter. `vocab.json` and what belongs to it count only where there is no `tokenizer.json`.
const FILES: [&str; 8] = [
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    VOCAB_FILE,
    MERGES_FILE,
    ADDED_TOKENS_FILE,
    TEMPLATE_FILE,
    TEMPLATE_JSON_FILE,
    PREPROCESSOR_FILE,
];

/// Name to content, in name order.
pub(crate) struct Folder {
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Folder {
    /// Reads `dir` and brings it to canonical form.
    pub(crate) fn read(dir: &Path) -> Result<Self, ProcessorError> {
        let mut folder = Self { files: BTreeMap::new() };
        for name in FILES {
            match fs::read(dir.join(name)) {
                Ok(content) => _ = folder.files.insert(name, content),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ProcessorError::File { path: dir.join(name), source }),
            }
        }
        folder.check(dir)?;
        folder.declare_image_token()?;
        Ok(folder)
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

    /// A file's content, if the folder has it.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.files.get(name).map(Vec::as_slice)
    }

    /// A file as JSON; null if the folder has none.
    pub(crate) fn json(&self, name: &'static str) -> Result<Value, ProcessorError> {
        let Some(content) = self.get(name) else { return Ok(Value::Null) };
        serde_json::from_slice(content).map_err(|source| ProcessorError::Json { file: name.into(), source })
    }

    /// blake3 over a version tag, then for each file in name order its name and content, then each of `settings`;
    /// every item is preceded by its length (u64, little-endian).
    pub(crate) fn fingerprint(&self, settings: &[&str]) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        let mut item = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        item(b"vela-processor-1");
        for (name, content) in &self.files {
            item(name.as_bytes());
            item(content);
        }
        settings.iter().for_each(|setting| item(setting.as_bytes()));
        Fingerprint(*hasher.finalize().as_bytes())
    }

    fn check(&mut self, dir: &Path) -> Result<(), ProcessorError> {
        let has = |name: &str| self.files.contains_key(name);
        let missing = |expected| Err(ProcessorError::MissingFile { dir: dir.to_path_buf(), expected });
        let tokenizes = has(TOKENIZER_FILE) || (has(VOCAB_FILE) && has(MERGES_FILE));
        if !tokenizes {
            return missing("`tokenizer.json`, or `vocab.json` with `merges.txt`");
        }
        if !has(TOKENIZER_CONFIG_FILE) {
            return missing("`tokenizer_config.json`");
        }
        if !has(PREPROCESSOR_FILE) {
            return missing("`preprocessor_config.json`");
        }
        if has(TOKENIZER_FILE) {
            self.files.retain(|name, _| ![VOCAB_FILE, MERGES_FILE, ADDED_TOKENS_FILE].contains(name));
        }
        Ok(())
    }

    /// Adds `<image>` at the next free id to the files that list added tokens, unless the tokenizer knows it.
    fn declare_image_token(&mut self) -> Result<(), ProcessorError> {
        let tokens = self.token_ids()?;
        if tokens.contains_key(IMAGE_MARK) {
            return Ok(());
        }
        let id = tokens.values().max().map_or(0, |id| id + 1);
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

    /// Every token the files name, added ones included, with its id.
    fn token_ids(&self) -> Result<BTreeMap<String, u64>, ProcessorError> {
        let tokenizer = self.json(TOKENIZER_FILE)?;
        let (vocab, config) = (self.json(VOCAB_FILE)?, self.json(TOKENIZER_CONFIG_FILE)?);
        let mut ids = BTreeMap::new();
        let mut take = |token: &str, id: Option<u64>| _ = id.map(|id| ids.insert(token.to_owned(), id));
        for table in [&vocab, &self.json(ADDED_TOKENS_FILE)?, &tokenizer["model"]["vocab"]] {
            // A unigram model lists pairs; their position is the id.
            match table {
                Value::Object(table) => table.iter().for_each(|(token, id)| take(token, id.as_u64())),
                Value::Array(pieces) => pieces.iter().enumerate().for_each(|(id, piece)| {
                    take(piece[0].as_str().unwrap_or_default(), Some(id as u64));
                }),
                _ => {}
            }
        }
        for token in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            take(token["content"].as_str().unwrap_or_default(), token["id"].as_u64());
        }
        for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
            take(token["content"].as_str().unwrap_or_default(), id.parse().ok());
        }
        Ok(ids)
    }

    fn edit(&mut self, name: &'static str, change: impl FnOnce(&mut Map<String, Value>)) -> Result<(), ProcessorError> {
        let mut content = self.json(name)?;
        if let Value::Object(fields) = &mut content {
            change(fields);
        }
        let text =
            serde_json::to_vec_pretty(&content).map_err(|source| ProcessorError::Json { file: name.into(), source })?;
        self.files.insert(name, text);
        Ok(())
    }
}
