//! Which ids the files of a tokenizer give away, read without keeping their tables: a vocabulary has some hundred thousand tokens.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use vela_types::IMAGE_MARK;

/// What matters of a table of tokens.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenIds {
    /// The largest id that is given away.
    pub(crate) largest: Option<u64>,
    /// Whether `<image>` has one.
    pub(crate) knows_image: bool,
}

impl TokenIds {
    /// Counts `token`, unless it has no id.
    pub(crate) fn take(&mut self, token: &str, id: Option<u64>) {
        self.largest = self.largest.max(id);
        self.knows_image |= id.is_some() && token == IMAGE_MARK;
    }

    pub(crate) fn join(&mut self, other: &Self) {
        self.largest = self.largest.max(other.largest);
        self.knows_image |= other.knows_image;
    }

    /// The id of the next new token.
    pub(crate) fn next(&self) -> u64 {
        self.largest.map_or(0, |id| id + 1)
    }
}

/// What matters of `tokenizer.json`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct TokenizerTables {
    model: ModelTable,
    added_tokens: Vec<AddedEntry>,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct ModelTable {
    vocab: TokenIds,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct AddedEntry {
    content: String,
    id: Option<u64>,
}

impl TokenizerTables {
    pub(crate) fn ids(self) -> TokenIds {
        let mut ids = self.model.vocab;
        self.added_tokens.iter().for_each(|token| ids.take(&token.content, token.id));
        ids
    }
}

impl<'de> Deserialize<'de> for TokenIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Table)
    }
}

/// Tokens with their ids, or pieces in the order of theirs.
struct Table;

impl<'de> Visitor<'de> for Table {
    type Value = TokenIds;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object of ids by token, or a list of pieces")
    }

    fn visit_unit<E>(self) -> Result<TokenIds, E> {
        Ok(TokenIds::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut table: A) -> Result<TokenIds, A::Error> {
        let mut ids = TokenIds::default();
        while let Some((token, id)) = table.next_entry::<String, Value>()? {
            ids.take(&token, id.as_u64());
        }
        Ok(ids)
    }

    /// A unigram model lists its pieces with their scores.
    fn visit_seq<A: SeqAccess<'de>>(self, mut pieces: A) -> Result<TokenIds, A::Error> {
        let mut ids = TokenIds::default();
        let mut id = 0;
        while let Some((piece, _score)) = pieces.next_element::<(String, IgnoredAny)>()? {
            ids.take(&piece, Some(id));
            id += 1;
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_table_is_read() {
        let read = |text: &str| serde_json::from_str::<TokenIds>(text).expect("a table");
        assert_eq!(read(r#"{"a": 3, "b": 7, "<image>": 5}"#), TokenIds { largest: Some(7), knows_image: true });
        assert_eq!(read(r#"[["a", -1.5], ["b", 0]]"#), TokenIds { largest: Some(1), knows_image: false });
        assert_eq!(read("{}").next(), 0);
        let tables = r#"{"model": {"type": "BPE", "vocab": {"a": 1}}, "added_tokens": [{"id": 9, "content": "<image>", "special": true}]}"#;
        let tables: TokenizerTables = serde_json::from_str(tables).expect("tables");
        assert_eq!(tables.ids(), TokenIds { largest: Some(9), knows_image: true });
    }
}
