//! The short way to ids for tokenizers that cut as Qwen and Llama 3 do and merge bytes.
//!
//! The `tokenizers` library keeps the origin of every byte through each of its stages. Where the stages are known and
//! the text is already in the form that they would bring it to, pieces can be cut in place and looked up. What a piece
//! becomes is still the library's word: it is asked once per piece and thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tokenizers::{Model, ModelWrapper, Tokenizer};

use crate::pieces::{Splitter, is_composed};
use crate::tiktoken::{LLAMA3_SPLIT, byte_letters};
use crate::tokenizer::{Encoded, QWEN2_SPLIT};

/// Longer pieces are rarely met twice.
const MAX_CACHED_BYTES: usize = 64;
/// Some 10 MB of pieces per thread at most.
const MAX_CACHED_PIECES: usize = 1 << 16;

/// A tokenizer of which every stage is known.
pub(crate) struct ByteLevelBpe {
    splitter: Splitter,
    composes: bool,
    letters: [char; 256],
    /// Whose pieces a thread's cache holds.
    id: u64,
}

impl ByteLevelBpe {
    /// None if any stage does more or other than what is known here.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let stage = |stage: Result<Value, serde_json::Error>| stage.unwrap_or_default();
        let composes = match stage(serde_json::to_value(tokenizer.get_normalizer())) {
            Value::Null => false,
            normalizer if normalizer == json!({ "type": "NFC" }) => true,
            _ => return None,
        };
        let most_digits = most_digits(&stage(serde_json::to_value(tokenizer.get_pre_tokenizer())))?;
        let letters = byte_letters();
        let added = tokenizer.get_added_tokens_decoder();
        let is_plain = merges_bytes(tokenizer.get_model(), &letters) && added.values().all(|token| !token.normalized);
        is_plain.then(|| {
            let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
            Self { splitter: Splitter::new(most_digits), composes, letters, id }
        })
    }

    /// Whether `text` may go the short way.
    pub(crate) fn takes(&self, text: &str) -> bool {
        !self.composes || is_composed(text)
    }

    /// Appends the tokens of `text`, which starts at byte `at`.
    pub(crate) fn encode(
        &self,
        model: &ModelWrapper,
        text: &str,
        mut at: usize,
        out: &mut Encoded,
    ) -> tokenizers::Result<()> {
        CACHE.with_borrow_mut(|cache| {
            cache.claim(self.id);
            for piece in self.splitter.pieces(text) {
                let tokens = match cache.pieces.get(piece) {
                    Some(tokens) => tokens,
                    None => cache.learn(piece, self.merge(model, piece)?),
                };
                for &(id, length) in tokens {
                    out.push(id, at..at + length as usize);
                    at += length as usize;
                }
            }
            Ok(())
        })
    }

    /// The tokens of a piece, each with its length in bytes.
    fn merge(&self, model: &ModelWrapper, piece: &str) -> tokenizers::Result<Box<[(u32, u32)]>> {
        let spelled: String = piece.bytes().map(|byte| self.letters[usize::from(byte)]).collect();
        let tokens = model.tokenize(&spelled)?;
        Ok(tokens.into_iter().map(|token| (token.id, token.value.chars().count() as u32)).collect())
    }
}

/// The pre-tokenizer of a known pattern over bytes: how many digits it keeps together.
fn most_digits(pre_tokenizer: &Value) -> Option<usize> {
    let (split, bytes) = (&pre_tokenizer["pretokenizers"][0], &pre_tokenizer["pretokenizers"][1]);
    let known =
        |pattern| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let is_bytes = bytes["type"] == "ByteLevel" && bytes["add_prefix_space"] == false && bytes["use_regex"] == false;
    let is_pair = pre_tokenizer["pretokenizers"].as_array().is_some_and(|stages| stages.len() == 2);
    match () {
        () if !(is_bytes && is_pair) => None,
        () if *split == known(QWEN2_SPLIT) => Some(1),
        () if *split == known(LLAMA3_SPLIT) => Some(3),
        () => None,
    }
}

/// Whether the model merges bytes and nothing else, and knows all of them.
fn merges_bytes(model: &ModelWrapper, letters: &[char; 256]) -> bool {
    let ModelWrapper::BPE(bpe) = model else { return false };
    let affix = |affix: &Option<String>| affix.as_ref().is_some_and(|affix| !affix.is_empty());
    let alters = affix(&bpe.continuing_subword_prefix) || affix(&bpe.end_of_word_suffix) || bpe.dropout.is_some();
    let known = |letter: &char| bpe.token_to_id(letter.encode_utf8(&mut [0; 4])).is_some();
    !alters && !bpe.byte_fallback && letters.iter().all(known)
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::default();
}

/// The pieces that one thread has met, of one tokenizer at a time.
#[derive(Default)]
struct Cache {
    owner: u64,
    pieces: HashMap<Box<str>, Box<[(u32, u32)]>>,
    /// The last piece that was not worth keeping.
    uncached: Box<[(u32, u32)]>,
}

impl Cache {
    fn claim(&mut self, owner: u64) {
        if self.owner != owner {
            self.pieces.clear();
            self.owner = owner;
        }
    }

    fn learn(&mut self, piece: &str, tokens: Box<[(u32, u32)]>) -> &[(u32, u32)] {
        if piece.len() > MAX_CACHED_BYTES {
            self.uncached = tokens;
            return &self.uncached;
        }
        if self.pieces.len() >= MAX_CACHED_PIECES {
            self.pieces.clear();
        }
        self.pieces.entry(piece.into()).or_insert(tokens)
    }
}
