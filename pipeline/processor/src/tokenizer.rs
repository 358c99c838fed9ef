//! Text to ids and back, by the `tokenizers` library, built from whichever files the folder has.

use std::ops::Range;

use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, Encoding, Model, Normalizer, OffsetType, PostProcessorWrapper, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, SplitDelimiterBehavior, Token, Tokenizer,
};
use vela_types::IMAGE_MARK;

use crate::byte_level::ByteLevelBpe;
use crate::folder::{Folder, MERGES_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
use crate::{ProcessorError, Rendered};

/// How Qwen2's tokenizer cuts text before merging bytes (`Qwen2Tokenizer` in transformers).
pub(crate) const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokenizer with its added tokens.
pub(crate) struct TextTokenizer {
    tokenizer: Tokenizer,
    /// Longest first.
    added: Vec<(AddedToken, u32)>,
    /// Whether an added token starts with this byte.
    starts_added: [bool; 256],
    num_ids: u32,
    /// The short way, if every stage of the tokenizer is known.
    byte_level: Option<ByteLevelBpe>,
}

/// Ids, and the bytes of the text that each stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    pub(crate) spans: Vec<Range<usize>>,
}

impl Encoded {
    pub(crate) fn push(&mut self, id: u32, span: Range<usize>) {
        self.ids.push(id);
        self.spans.push(span);
    }
}

impl From<Encoding> for Encoded {
    fn from(encoding: Encoding) -> Self {
        let spans = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Self { ids: encoding.get_ids().to_vec(), spans }
    }
}

impl TextTokenizer {
    /// Builds the tokenizer that the folder describes.
    pub(crate) fn load(folder: &Folder) -> Result<Self, ProcessorError> {
        let fault = |source| ProcessorError::tokenizer("building it from its files", source);
        let mut tokenizer = match (folder.get(TOKENIZER_FILE), folder.tiktoken()) {
            (Some(text), _) => Tokenizer::from_bytes(text).map_err(fault)?,
            (None, Some((family, content))) => family.tokenizer(content, &declared_tokens(folder)?)?,
            (None, None) => qwen2_tokenizer(folder)?,
        };
        // All that it could still do is to take the blanks off tokens' spans, and so the label off a token of blanks.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let mut added: Vec<(AddedToken, u32)> =
            tokenizer.get_added_tokens_decoder().into_iter().map(|(id, token)| (token, id)).collect();
        let by_length = |token: &AddedToken| (std::cmp::Reverse(token.content.len()), token.content.clone());
        added.sort_by_cached_key(|(token, _)| by_length(token));
        let mut starts_added = [false; 256];
        added.iter().filter_map(|(token, _)| token.content.bytes().next()).for_each(|byte| {
            starts_added[usize::from(byte)] = true;
        });
        let num_ids = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id + 1);
        check_declared_ids(folder, &tokenizer)?;
        let byte_level = ByteLevelBpe::of(&tokenizer);
        Ok(Self { tokenizer, added, starts_added, num_ids, byte_level })
    }

    /// Ids of a rendering and the bytes that they stand for; nothing is added to it.
    pub(crate) fn encode(&self, rendered: &Rendered) -> Result<Encoded, ProcessorError> {
        let encoded = match &self.byte_level {
            Some(short) if short.takes(&rendered.text) => self.encode_pieces(short, rendered),
            _ => self.encode_by_library(rendered),
        };
        encoded.map_err(|source| ProcessorError::tokenizer("encoding a dialogue", source))
    }

    /// Ids of `text`, in which no special token is seen.
    pub(crate) fn encode_plain(&self, text: &str) -> Result<Vec<u32>, ProcessorError> {
        let plain_spans = self.special_spans(text, false).collect();
        let rendered = Rendered { text: text.to_owned(), assistant_spans: Vec::new(), plain_spans, cuts: Vec::new() };
        Ok(self.encode(&rendered)?.ids)
    }

    fn encode_by_library(&self, rendered: &Rendered) -> tokenizers::Result<Encoded> {
        let encoding = match rendered.plain_spans.is_empty() && rendered.cuts.is_empty() {
            true => self.tokenizer.encode(rendered.text.as_str(), false),
            false => self.encode_stretches(rendered),
        };
        Ok(encoding?.into())
    }

    fn encode_pieces(&self, short: &ByteLevelBpe, rendered: &Rendered) -> tokenizers::Result<Encoded> {
        let mut encoded = Encoded::default();
        for (span, id) in self.stretches(rendered) {
            match id {
                Some(id) => encoded.push(id, span),
                None => {
                    short.encode(self.tokenizer.get_model(), &rendered.text[span.clone()], span.start, &mut encoded)?
                }
            }
        }
        Ok(encoded)
    }

    /// As the library encodes, but a special token in a plain span is text, and nothing is merged across a cut.
    fn encode_stretches(&self, rendered: &Rendered) -> tokenizers::Result<Encoding> {
        let stretches = self.stretches(rendered);
        let mut text = PreTokenizedString::from(rendered.text.as_str());
        text.split(|_, whole| {
            let piece = |(span, id): &(Range<usize>, Option<u32>)| {
                let piece = whole.slice(tokenizers::tokenizer::normalizer::Range::Original(span.clone()))?;
                let token = |id: &u32| vec![Token::new(*id, piece.get().to_owned(), (0, piece.len()))];
                let tokens = id.as_ref().map(token);
                Some((piece, tokens))
            };
            Ok(stretches.iter().filter_map(piece).collect::<Vec<_>>())
        })?;
        if let Some(normalizer) = self.tokenizer.get_normalizer() {
            text.normalize(|piece| normalizer.normalize(piece))?;
        }
        if let Some(splitter) = self.tokenizer.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut text)?;
        }
        text.tokenize(|piece| self.tokenizer.get_model().tokenize(piece.get()))?;
        text.into_encoding(None, 0, OffsetType::Byte)
    }

    /// The text in pieces: added tokens with their ids, and what stands between them and the cuts.
    fn stretches(&self, rendered: &Rendered) -> Vec<(Range<usize>, Option<u32>)> {
        let Rendered { text, plain_spans, cuts, .. } = rendered;
        let mut stretches: Vec<(Range<usize>, Option<u32>)> = Vec::new();
        let mut cuts = cuts.iter().copied().peekable();
        let mut done = 0;
        let mut push_text = |stretches: &mut Vec<_>, mut done: usize, end: usize| {
            while let Some(cut) = cuts.next_if(|&cut| cut < end) {
                if cut > done {
                    stretches.push((done..cut, None));
                    done = cut;
                }
            }
            stretches.extend((done < end).then_some((done..end, None)));
        };
        for (span, token, id) in self.added_tokens(text) {
            let is_plain =
                token.special && plain_spans.iter().any(|plain| plain.start < span.end && span.start < plain.end);
            let (before, after) = (&text[done.min(span.start)..span.start], &text[span.end..]);
            let inside_word = token.single_word && (before.ends_with(is_word) || after.starts_with(is_word));
            if is_plain || inside_word || span.start < done {
                continue;
            }
            let blanks_before = if token.lstrip { before.len() - before.trim_end().len() } else { 0 };
            let blanks_after = if token.rstrip { after.len() - after.trim_start().len() } else { 0 };
            let (start, end) = (span.start - blanks_before, span.end + blanks_after);
            push_text(&mut stretches, done, start);
            stretches.push((start..end, Some(id)));
            done = end;
        }
        push_text(&mut stretches, done, text.len());
        stretches
    }

    /// Where `text` has added tokens: the longest at each place, from left to right, none within another.
    fn added_tokens<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (Range<usize>, &'a AddedToken, u32)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            loop {
                let start =
                    from + text.as_bytes()[from..].iter().position(|byte| self.starts_added[usize::from(*byte)])?;
                match self.added.iter().find(|(token, _)| text[start..].starts_with(&token.content)) {
                    Some((token, id)) => {
                        from = start + token.content.len();
                        return Some((start..from, token, *id));
                    }
                    None => from = start + text[start..].chars().next().map_or(1, char::len_utf8),
                }
            }
        })
    }

    /// Where `text` has the text of special tokens; `<image>` is left out if it is meant as a mark.
    pub(crate) fn special_spans<'a>(
        &'a self,
        text: &'a str,
        marks_images: bool,
    ) -> impl Iterator<Item = Range<usize>> + 'a {
        let is_text = move |token: &AddedToken| token.special && !(marks_images && token.content == IMAGE_MARK);
        self.added_tokens(text).filter(move |(_, token, _)| is_text(token)).map(|(span, _, _)| span)
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
        let (token, id) = self.added.iter().find(|(token, _)| text.starts_with(&token.content))?;
        Some((token.content.len(), *id))
    }

    /// Ids are below this.
    pub(crate) fn num_ids(&self) -> u32 {
        self.num_ids
    }
}

/// The letters that `single_word` tokens do not touch.
fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The added tokens that `tokenizer_config.json` lists, by id.
fn declared_tokens(folder: &Folder) -> Result<Vec<AddedToken>, ProcessorError> {
    let listed = added_tokens(&folder.json(TOKENIZER_CONFIG_FILE)?);
    let fault = |source| ProcessorError::Json { file: TOKENIZER_CONFIG_FILE.into(), source };
    listed.into_iter().map(|token| serde_json::from_value(token).map_err(fault)).collect()
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

/// Qwen2's tokenizer of `vocab.json` and `merges.txt`.
fn qwen2_tokenizer(folder: &Folder) -> Result<Tokenizer, ProcessorError> {
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
    let vocab: Vocab = folder.vocab()?.into_iter().collect();
    let fault = |source| ProcessorError::tokenizer("building it from `vocab.json` and `merges.txt`", source);
    let model = BPE::builder().vocab_and_merges(vocab, merges(folder)?).build().map_err(fault)?;
    byte_level_tokenizer(model, QWEN2_SPLIT, true, &declared_tokens(folder)?).map_err(fault)
}

/// A tokenizer that cuts text by the pattern `split`, after composing it (NFC) if it `composes`, and merges bytes by `model`; `added` are
/// its added tokens, by id.
pub(crate) fn byte_level_tokenizer(
    model: BPE,
    split: &str,
    composes: bool,
    added: &[AddedToken],
) -> tokenizers::Result<Tokenizer> {
    let split = Split::new(SplitPattern::Regex(split.into()), SplitDelimiterBehavior::Isolated, false)?;
    let stages: Vec<PreTokenizerWrapper> = vec![split.into(), ByteLevel::new(false, true, false).into()];
    let mut tokenizer = Tokenizer::new(model);
    if composes {
        tokenizer.with_normalizer(Some(NFC))?;
    }
    tokenizer.with_pre_tokenizer(Some(Sequence::new(stages)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.add_tokens(added.iter().cloned())?;
    Ok(tokenizer)
}

/// Pairs of `merges.txt`: one per line, parts split by a space, after an optional `#version` line.
fn merges(folder: &Folder) -> Result<Vec<(String, String)>, ProcessorError> {
    let text = String::from_utf8_lossy(folder.get(MERGES_FILE).unwrap_or_default()).into_owned();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with("#version"));
    lines
        .map(|(index, line)| {
            let pair = line.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
            pair.ok_or_else(|| ProcessorError::Setting {
                file: MERGES_FILE,
                key: format!("line {}", index + 1),
                expected: "two tokens split by a space".into(),
                found: line.into(),
            })
        })
        .collect()
}

/// What an added token may be, beside its text.
const FLAGS: [&str; 5] = ["single_word", "lstrip", "rstrip", "normalized", "special"];

/// `added_tokens_decoder` as the list of `tokenizer.json`, by id; flags that are not given are off.
fn added_tokens(config: &Value) -> Vec<Value> {
    let listed = config["added_tokens_decoder"].as_object().into_iter().flatten();
    let mut tokens: Vec<(u64, Value)> = listed
        .filter_map(|(id, token)| {
            let id: u64 = id.parse().ok()?;
            let mut fields = Map::from_iter(FLAGS.map(|flag| (flag.to_owned(), false.into())));
            fields.extend(token.as_object()?.clone());
            fields.insert("id".into(), id.into());
            Some((id, fields.into()))
        })
        .collect();
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    use crate::ProcessorOptions;

    fn load(name: &str, template: &str) -> TextTokenizer {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let dir = tempfile::tempdir().expect("a folder");
        for entry in std::fs::read_dir(golden).expect("the golden folder") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("a copy");
        }
        std::fs::write(dir.path().join("preprocessor_config.json"), "{}").expect("written");
        let options = ProcessorOptions { template: Some(template.into()), ..ProcessorOptions::default() };
        let (folder, _) = Folder::read(dir.path(), dir.path(), &options).expect("a whole folder");
        TextTokenizer::load(&folder).expect("a tokenizer")
    }

    fn texts() -> impl Strategy<Value = Rendered> {
        let piece = prop_oneof![
            4 => "[a-zA-Z0-9 ,.!?'\n\r\t-]{1,12}",
            2 => "[\u{4E00}-\u{9FA5}，。！？\u{3000}]{1,8}",
            1 => "'(s|S|ſ|t|re|VE|ll|lx|m|D|x)",
            1 => "\\PC{1,6}",
            1 => "\\p{N}{1,5}",
            1 => any::<char>().prop_map(String::from),
            1 => prop_oneof![Just("<|im_start|>"), Just("<|eot_id|>"), Just("<image>"), Just("<|im_")].prop_map(str::to_owned),
        ];
        proptest::collection::vec((piece, 0..9), 0..12).prop_map(|pieces| {
            let mut rendered =
                Rendered { text: String::new(), assistant_spans: vec![], plain_spans: vec![], cuts: vec![] };
            for (piece, kind) in pieces {
                let start = rendered.text.len();
                rendered.text.push_str(&piece);
                match kind {
                    0 => rendered.plain_spans.push(start..rendered.text.len()),
                    1 => rendered.cuts.push(start),
                    _ => {}
                }
            }
            rendered
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn the_short_way_leads_where_the_library_leads(rendered in texts()) {
            thread_local! {
                static TOKENIZERS: [TextTokenizer; 3] = [
                    load("processor/qwen2", "qwen2"), load("tokenizer/qwen", "qwen-v1"), load("tokenizer/llama3", "llama3.2"),
                ];
            }
            TOKENIZERS.with(|tokenizers| {
                for tokenizer in tokenizers {
                    let short = tokenizer.byte_level.as_ref().expect("its stages are known");
                    if short.takes(&rendered.text) {
                        let found = tokenizer.encode_pieces(short, &rendered).expect("ids");
                        let expected = tokenizer.encode_stretches(&rendered).expect("ids");
                        prop_assert_eq!(&found.ids[..], expected.get_ids());
                        // The library widens a part of a character to the whole of it.
                        for (span, &(start, end)) in found.spans.iter().zip(expected.get_offsets()) {
                            prop_assert!(start <= span.start && span.end <= end, "{:?} in {}..{}", span, start, end);
                        }
                    }
                    let without = Rendered { plain_spans: vec![], cuts: vec![], ..rendered.clone() };
                    let expected = tokenizer.tokenizer.encode(rendered.text.as_str(), false).expect("ids");
                    prop_assert_eq!(&tokenizer.encode(&without).expect("ids").ids[..], expected.get_ids());
                }
                Ok(())
            })?;
        }
    }
}
