//! Tokenizers from tiktoken files: Qwen's first (`qwen.tiktoken`) and Llama 3's (`tokenizer.model`).
//!
//! Such a file has one token per line, its bytes in base64 and its rank, which is its id. tiktoken cuts text by a
//! pattern, takes a piece that is a token as it is, and otherwise joins, again and again, the neighbours whose union
//! has the lowest rank, the leftmost of equals. As byte-level BPE that is: whole pieces first (`ignore_merges`), and a
//! merge for every way to cut a token into two tokens, in the order of the ranks of what they make.

use std::collections::HashSet;

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Tokenizer};

use crate::ProcessorError;
use crate::tokenizer::{QWEN2_SPLIT, byte_level_tokenizer};

pub(crate) const QWEN_FILE: &str = "qwen.tiktoken";
pub(crate) const LLAMA3_FILE: &str = "tokenizer.model";

/// How Llama 3 cuts text: as Qwen does, with up to three digits together.
pub(crate) const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a tiktoken file does not say about its tokenizer.
pub(crate) struct Family {
    pub(crate) file: &'static str,
    split: &'static str,
    /// Whether text is brought to Unicode's composed form first.
    composes: bool,
    /// Special tokens, at the ids that follow the last rank.
    specials: fn() -> Vec<String>,
    /// The keys of `tokenizer_config.json` that its publisher keeps in code.
    roles: [(&'static str, Option<&'static str>); 3],
}

const FAMILIES: [Family; 2] = [
    Family {
        file: QWEN_FILE,
        split: QWEN2_SPLIT,
        composes: true,
        specials: qwen_specials,
        roles: [("bos_token", None), ("eos_token", Some("<|endoftext|>")), ("pad_token", Some("<|endoftext|>"))],
    },
    Family {
        file: LLAMA3_FILE,
        split: LLAMA3_SPLIT,
        composes: false,
        specials: llama3_specials,
        roles: [
            ("bos_token", Some("<|begin_of_text|>")),
            ("eos_token", Some("<|eot_id|>")),
            ("pad_token", Some("<|finetune_right_pad_id|>")),
        ],
    },
];

fn qwen_specials() -> Vec<String> {
    let named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
    named.into_iter().chain((0..205).map(|index| format!("<|extra_{index}|>"))).collect()
}

/// The 256 of Llama 3.1 and later; those without a use are numbered in the order of their ids.
fn llama3_specials() -> Vec<String> {
    const NAMED: [(usize, &str); 8] = [
        (0, "<|begin_of_text|>"),
        (1, "<|end_of_text|>"),
        (4, "<|finetune_right_pad_id|>"),
        (6, "<|start_header_id|>"),
        (7, "<|end_header_id|>"),
        (8, "<|eom_id|>"),
        (9, "<|eot_id|>"),
        (10, "<|python_tag|>"),
    ];
    let mut reserved = 0..;
    let mut next_reserved = || format!("<|reserved_special_token_{}|>", reserved.next().unwrap_or_default());
    let name = |at: usize| NAMED.iter().find(|(id, _)| *id == at).map(|(_, name)| (*name).to_owned());
    (0..256).map(|at| name(at).unwrap_or_else(&mut next_reserved)).collect()
}

impl Family {
    /// The family that reads this file.
    pub(crate) fn of_file(name: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.file == name)
    }

    /// Special tokens of a file with `num_ranks` tokens, each as `added_tokens_decoder` lists it, by id. What the
    /// config lists already stays as it is.
    pub(crate) fn declare(&self, num_ranks: usize, config: &mut Map<String, Value>) {
        for (key, token) in self.roles {
            config.entry(key).or_insert_with(|| token.into());
        }
        let listed = config.entry("added_tokens_decoder").or_insert_with(|| json!({}));
        for (id, content) in (num_ranks..).zip((self.specials)()) {
            if listed[id.to_string()].is_null() {
                listed[id.to_string()] = json!({
                    "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                    "special": true,
                });
            }
        }
    }

    /// The tokenizer of this file's ranks; `added` follow them, by id.
    pub(crate) fn tokenizer(&self, content: &[u8], added: &[AddedToken]) -> Result<Tokenizer, ProcessorError> {
        let fault = |source| ProcessorError::tokenizer(format!("building it from `{}`", self.file), source);
        let ranks = parse(self.file, content)?;
        let letters = byte_letters();
        let spell = |bytes: &[u8]| bytes.iter().map(|&byte| letters[usize::from(byte)]).collect::<String>();
        let merges = merges(&ranks).into_iter().map(|(left, right)| (spell(left), spell(right))).collect();
        let vocab: Vocab = (0..).zip(&ranks).map(|(id, token)| (spell(token), id)).collect();
        let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(true).build().map_err(fault)?;
        byte_level_tokenizer(model, self.split, self.composes, added).map_err(fault)
    }
}

/// The tokens of a tiktoken file, in the order of their ranks, which must be 0, 1, 2, ...
pub(crate) fn parse(file: &'static str, content: &[u8]) -> Result<Vec<Vec<u8>>, ProcessorError> {
    let lines = content.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
    let mut tokens = Vec::new();
    for (index, line) in lines.filter(|(_, line)| !line.is_empty()) {
        let token = parse_line(line, tokens.len());
        tokens.push(token.ok_or_else(|| ProcessorError::Setting {
            file,
            key: format!("line {}", index + 1),
            expected: format!(
                "a token in base64 and its rank {} (a sentencepiece model is none: save the fast tokenizer)",
                tokens.len()
            ),
            found: String::from_utf8_lossy(&line[..line.len().min(40)]).escape_debug().to_string(),
        })?);
    }
    let mut single: Vec<&[u8]> = tokens.iter().map(Vec::as_slice).filter(|token| token.len() == 1).collect();
    single.sort_unstable();
    single.dedup();
    if single.len() != 256 {
        return Err(ProcessorError::Setting {
            file,
            key: "tokens of one byte".into(),
            expected: "all 256".into(),
            found: single.len().to_string(),
        });
    }
    Ok(tokens)
}

fn parse_line(line: &[u8], rank: usize) -> Option<Vec<u8>> {
    let space = line.iter().position(|&byte| byte == b' ')?;
    let found: usize = std::str::from_utf8(&line[space + 1..]).ok()?.parse().ok()?;
    (found == rank).then(|| decode_base64(&line[..space])).flatten().filter(|token| !token.is_empty())
}

/// RFC 4648, with padding.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let letters = text.trim_ascii_end();
    let digits = letters.strip_suffix(b"==").or_else(|| letters.strip_suffix(b"=")).unwrap_or(letters);
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let bits = group.iter().try_fold(0u32, |bits, &letter| Some((bits << 6) | u32::from(value(letter)?)))?;
        let bits = bits << (6 * (4 - group.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    (letters.len().is_multiple_of(4) && digits.len() % 4 != 1).then_some(bytes)
}

/// Every pair of tokens that makes a token, by the rank of what it makes.
fn merges(ranks: &[Vec<u8>]) -> Vec<(&[u8], &[u8])> {
    let known: HashSet<&[u8]> = ranks.iter().map(Vec::as_slice).collect();
    ranks
        .iter()
        .flat_map(|token| (1..token.len()).map(|at| token.split_at(at)))
        .filter(|(left, right)| known.contains(left) && known.contains(right))
        .collect()
}

/// The letter that stands for each byte in byte-level vocabularies: printable Latin-1 for itself, the others from
/// U+0100 on, in order.
pub(crate) fn byte_letters() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|byte| match byte as u8 {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte as u8),
        _ => {
            next += 1;
            char::from_u32(next - 1).unwrap_or_default()
        }
    })
}

#[cfg(test)]
mod tests {
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    use super::*;

    #[test]
    fn base64_is_read_with_its_padding_and_nothing_else() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmE=", "fooba")] {
            assert_eq!(decode_base64(text.as_bytes()), Some(bytes.as_bytes().to_vec()), "{text}");
        }
        assert_eq!(decode_base64(b"+/8="), Some(vec![0xFB, 0xFF]));
        for text in ["Zg", "Zg=", "Z===", "Zm9*", "Zm 9"] {
            assert_eq!(decode_base64(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn letters_of_bytes_are_those_of_the_library() {
        let letters = byte_letters();
        assert_eq!((letters[0], letters[32], letters[127], letters[173], letters[255]), ('Ā', 'Ġ', 'ġ', 'Ń', 'ÿ'));
        assert_eq!(ByteLevel::alphabet(), letters.into_iter().collect());
    }

    #[test]
    fn specials_stand_where_the_publishers_put_them() {
        let (qwen, llama) = (qwen_specials(), llama3_specials());
        assert_eq!((qwen.len(), qwen[3].as_str(), qwen[207].as_str()), (208, "<|extra_0|>", "<|extra_204|>"));
        assert_eq!((llama.len(), llama[9].as_str()), (256, "<|eot_id|>"));
        assert_eq!(
            (llama[2].as_str(), llama[5].as_str()),
            ("<|reserved_special_token_0|>", "<|reserved_special_token_2|>")
        );
        assert_eq!(
            (llama[11].as_str(), llama[255].as_str()),
            ("<|reserved_special_token_3|>", "<|reserved_special_token_247|>")
        );
    }

    #[test]
    fn other_files_of_that_name_are_refused_with_the_remedy() {
        for content in [&b"\n\x10\n\x05<unk>\x15"[..], b"IQ== 1", b"IQ== 0\nIg== 0", b"IQ== 0\nIg== 2", b""] {
            assert!(parse(LLAMA3_FILE, content).is_err(), "{}", content.escape_ascii());
        }
        let message = parse(LLAMA3_FILE, b"\n\x0e<unk>").expect_err("sentencepiece").to_string();
        assert!(message.contains("`tokenizer.model`") && message.contains("save the fast tokenizer"), "{message}");
    }
}
