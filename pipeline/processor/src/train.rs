//! Training a small tokenizer from texts, for generated data.

use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{SplitDelimiterBehavior, TokenizerBuilder};
use vela_types::IMAGE_MARK;

use crate::ProcessorError;
use crate::folder::{TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
use crate::tokenizer::QWEN2_SPLIT;

/// One token opens a user turn, one an answer, one closes each: in a small model every other token would cost as much
/// as a word of the question.
const CHAT_TEMPLATE: &str = "\
{%- for message in messages -%}
    {{- '<|' + message.role + '|>' + message.content + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}";

const END_OF_TEXT: &str = "<|endoftext|>";
const END_OF_TURN: &str = "<|end|>";
const OPENINGS: [&str; 3] = ["<|system|>", "<|user|>", "<|assistant|>"];

/// Trains a byte-level BPE tokenizer of at most `vocab_size` tokens (Qwen2's normalizer and split, a template with
/// one special token per role) and returns its files as (name, content). The same texts give the same bytes.
///
/// # Errors
/// If `vocab_size` has no room for the 256 bytes and six special tokens, or the library fails.
pub fn train_tokenizer(texts: &[&str], vocab_size: usize) -> Result<Vec<(String, String)>, ProcessorError> {
    let [system, user, assistant] = OPENINGS;
    let specials = [END_OF_TEXT, system, user, assistant, END_OF_TURN, IMAGE_MARK];
    let minimum = 256 + specials.len();
    if vocab_size < minimum {
        let reason = format!("expected a vocabulary of at least {minimum} tokens, found {vocab_size}");
        return Err(ProcessorError::tokenizer("training", reason));
    }
    let fault = |source| ProcessorError::tokenizer("training", source);
    let split = Split::new(SplitPattern::Regex(QWEN2_SPLIT.into()), SplitDelimiterBehavior::Isolated, false);
    let bytes = ByteLevel::new(false, true, false);
    let stages: Vec<PreTokenizerWrapper> = vec![split.map_err(fault)?.into(), bytes.into()];
    let mut tokenizer =
        TokenizerBuilder::<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>::new()
            .with_model(BPE::default())
            .with_normalizer(Some(NFC.into()))
            .with_pre_tokenizer(Some(Sequence::new(stages).into()))
            .with_decoder(Some(ByteLevel::default().into()))
            .build()
            .map_err(fault)?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(specials.iter().map(|token| AddedToken::from(*token, true).normalized(false)).collect())
        .build();
    tokenizer.train(&mut trainer, texts.iter()).map_err(fault)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TEXT,
        "unk_token": null,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    let config = format!("{config:#}\n");
    Ok(vec![(TOKENIZER_FILE.into(), tokenizer.to_string(true).map_err(fault)?), (TOKENIZER_CONFIG_FILE.into(), config)])
}
