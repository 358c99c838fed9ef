//! What an OpenAI-compatible server answers, and what of it counts.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::judge::Reply;
use super::request::estimate;

/// An answer as it is kept: paid for once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) finish_reason: Option<String>,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
    /// The server did not say what it cost.
    pub(super) is_estimate: bool,
}

impl Answer {
    /// Reads the body of a chat completion. `prompt_tokens` is the estimate where the server does not count.
    ///
    /// # Errors
    /// What is missing or of another type.
    pub(super) fn of_body(body: &[u8], prompt_tokens: u64) -> Result<Self, String> {
        let body: Value = serde_json::from_slice(body).map_err(|fault| format!("expected JSON: {fault}"))?;
        let choices =
            body["choices"].as_array().ok_or_else(|| format!("expected `choices`, found {}", beginning(&body)))?;
        let choice = choices.first().ok_or("expected a choice, found none")?;
        let message = &choice["message"];
        let text =
            text_of(&message["content"]).or_else(|| text_of(&message["refusal"]).filter(|text| !text.is_empty()));
        let text = text.ok_or_else(|| format!("expected `choices[0].message.content`, found {}", beginning(choice)))?;
        let finish_reason = choice["finish_reason"].as_str().map(str::to_owned);
        let count = |key: &str| body["usage"][key].as_u64();
        let (prompt, completion) = (count("prompt_tokens"), count("completion_tokens"));
        Ok(Self {
            is_estimate: prompt.is_none() || completion.is_none(),
            prompt_tokens: prompt.unwrap_or(prompt_tokens),
            completion_tokens: completion.unwrap_or_else(|| estimate(&text)),
            text,
            finish_reason,
        })
    }

    pub(super) fn tokens(&self) -> u64 {
        self.prompt_tokens + self.completion_tokens
    }

    pub(super) fn into_reply(self) -> Reply {
        Reply { text: self.text, finish_reason: self.finish_reason }
    }
}

/// A text, or the texts of a list of content parts.
fn text_of(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Vec<&str> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            (!texts.is_empty()).then(|| texts.concat())
        }
        _ => None,
    }
}

fn beginning(value: &Value) -> String {
    let text = value.to_string();
    format!("`{}`", text.chars().take(120).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_parts_and_refusals_are_read_and_missing_counts_are_estimated() {
        let read = |body: &str| Answer::of_body(body.as_bytes(), 50).expect(body);
        let usage = r#""usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}"#;
        let whole =
            read(&format!(r#"{{"choices":[{{"message":{{"content":"Hi."}},"finish_reason":"stop"}}],{usage}}}"#));
        assert_eq!((whole.tokens(), whole.is_estimate, whole.text.as_str()), (10, false, "Hi."));
        let bare = read(r#"{"choices":[{"message":{"content":[{"type":"text","text":"Hi"},{"text":"."}]}}]}"#);
        assert_eq!((bare.prompt_tokens, bare.is_estimate, bare.text.as_str()), (50, true, "Hi."));
        assert!(bare.completion_tokens > 0);
        assert_eq!(read(r#"{"choices":[{"message":{"content":null,"refusal":"I cannot."}}]}"#).text, "I cannot.");
        assert_eq!(read(r#"{"choices":[{"message":{"content":""},"finish_reason":"length"}]}"#).text, "");
    }

    #[test]
    fn what_is_no_completion_says_what_is_missing() {
        for (body, said) in [
            ("<html>", "JSON"),
            ("{}", "choices"),
            (r#"{"error":{"message":"busy"}}"#, "busy"),
            (r#"{"choices":[]}"#, "none"),
            (r#"{"choices":"no"}"#, "choices"),
            (r#"{"choices":[{"message":{"content":null}}]}"#, "content"),
            (r#"{"choices":[{"text":"old"}]}"#, "content"),
            ("[1]", "choices"),
        ] {
            let fault = Answer::of_body(body.as_bytes(), 1).expect_err(body);
            assert!(fault.contains(said), "{body}: {fault}");
        }
    }
}
