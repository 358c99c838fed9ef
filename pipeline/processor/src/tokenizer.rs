//! Text to ids and back, by the `tokenizers` library, built from whichever files the folder has.

use serde_json::{Value, json};
use tokenizers::{Encoding, Tokenizer};

use crate::ProcessorError;
use crate::folder::{Folder, MERGES_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, VOCAB_FILE};

/// How Qwen2's tokenizer cuts text before merging bytes (`Qwen2Tokenizer` in transformers).
pub(crate) const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokenizer with its added tokens.
pub(crate) struct TextTokenizer {
    tokenizer: Tokenizer,
    /// Added tokens' text and id, longest first.
    added: Vec<(String, u32)>,
    num_ids: u32,
}

impl TextTokenizer {
    /// Builds the tokenizer that the folder describes.
    pub(crate) fn load(folder: &Folder) -> Result<Self, ProcessorError> {
        let fault = |source| ProcessorError::tokenizer("building it from its files", source);
        let tokenizer = match folder.get(TOKENIZER_FILE) {
            Some(text) => Tokenizer::from_bytes(text).map_err(fault)?,
            None => {
                let text = qwen2_tokenizer(folder)?.to_string();
                Tokenizer::from_bytes(text).map_err(fault)?
            }
        };
        let mut added: Vec<(String, u32)> =
            tokenizer.get_added_tokens_decoder().into_iter().map(|(id, token)| (token.content, id)).collect();
        added.sort_by(|(left, _), (right, _)| right.len().cmp(&left.len()).then_with(|| left.cmp(right)));
        let num_ids = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id + 1);
        check_declared_ids(folder, &tokenizer)?;
        Ok(Self { tokenizer, added, num_ids })
    }

    /// Ids and byte offsets of `text`; nothing is added to it.
    pub(crate) fn encode(&self, text: &str) -> Result<Encoding, ProcessorError> {
        self.tokenizer.encode(text, false).map_err(|source| ProcessorError::tokenizer("encoding a dialogue", source))
    }

    /// The text of `ids`.
    pub(crate) fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ProcessorError> {
        self.tokenizer.decode(ids, skip_special).map_err(|source| ProcessorError::tokenizer("decoding ids", source))
    }

    /// The id of a token, if there is one of that text.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The longest added token that `text` starts with: its length in bytes and its id.
    pub(crate) fn added_token_at_start(&self, text: &str) -> Option<(usize, u32)> {
        let (token, id) = self.added.iter().find(|(token, _)| text.starts_with(token.as_str()))?;
        Some((token.len(), *id))
    }

    /// Ids are below this.
    pub(crate) fn num_ids(&self) -> u32 {
        self.num_ids
    }
}

/// Added tokens must sit at the ids that the files declare: a hole in the table would move them in silence.
fn check_declared_ids(folder: &Folder, tokenizer: &Tokenizer) -> Result<(), ProcessorError> {
    let config = folder.json(TOKENIZER_CONFIG_FILE)?;
    for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let content = token["content"].as_str().unwrap_or_default();
        let found = tokenizer.token_to_id(content);
        if found.map(|id| id.to_string()).as_ref() != Some(id) {
            return Err(ProcessorError::Setting {
                file: TOKENIZER_CONFIG_FILE,
                key: format!("added_tokens_decoder.{id}"),
                expected: format!("`{content}` at id {id}"),
                found: found.map_or_else(|| "no such token".into(), |id| format!("id {id}")),
            });
        }
    }
    Ok(())
}

/// What `tokenizer.json` would hold for Qwen2's `vocab.json` and `merges.txt`.
fn qwen2_tokenizer(folder: &Folder) -> Result<Value, ProcessorError> {
    let config = folder.json(TOKENIZER_CONFIG_FILE)?;
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    if !matches!(class, "Qwen2Tokenizer" | "Qwen2TokenizerFast") {
        return Err(ProcessorError::Setting {
            file: TOKENIZER_CONFIG_FILE,
            key: "tokenizer_class".into(),
            expected: "Qwen2Tokenizer where there is no `tokenizer.json` (save the fast tokenizer to get one)".into(),
            found: class.into(),
        });
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": added_tokens(&config),
        "normalizer": { "type": "NFC" },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": QWEN2_SPLIT }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": folder.json(VOCAB_FILE)?, "merges": merges(folder)?,
        },
    }))
}

/// Pairs of `merges.txt`: one per line, parts split by a space, after an optional `#version` line.
fn merges(folder: &Folder) -> Result<Vec<[String; 2]>, ProcessorError> {
    let text = String::from_utf8_lossy(folder.get(MERGES_FILE).unwrap_or_default()).into_owned();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    lines
        .map(|(index, line)| {
            let pair = line.split_once(' ').map(|(left, right)| [left.to_owned(), right.to_owned()]);
            pair.ok_or_else(|| ProcessorError::Setting {
                file: MERGES_FILE,
                key: format!("line {}", index + 1),
                expected: "two tokens split by a space".into(),
                found: line.into(),
            })
        })
        .collect()
}

/// `added_tokens_decoder` as the list of `tokenizer.json`, by id.
fn added_tokens(config: &Value) -> Vec<Value> {
    let listed = config["added_tokens_decoder"].as_object().into_iter().flatten();
    let mut tokens: Vec<(u64, Value)> = listed
        .filter_map(|(id, token)| {
            let id: u64 = id.parse().ok()?;
            let mut token = token.clone();
            token["id"] = id.into();
            Some((id, token))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}
