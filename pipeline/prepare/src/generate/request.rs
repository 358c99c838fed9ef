//! What is sent for one image, and under which key its answer is kept.

use serde_json::{Value, json};
use vela_types::Fingerprint;

use super::GenerateConfig;
use super::facts::ImageFacts;
use super::prompts::{examples, system_message};

/// Tokens that a message costs besides its text.
const MESSAGE_TOKENS: u64 = 8;

/// A request for one image. Equal bodies are one request: whoever answered the first has answered the second.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) body: Vec<u8>,
    pub(super) key: Fingerprint,
    /// No fewer than its prompt costs, as far as can be said without the model's tokenizer.
    pub(super) prompt_tokens: u64,
}

impl Request {
    pub(super) fn new(config: &GenerateConfig, facts: &ImageFacts) -> Self {
        let kind = config.kind;
        let message = |role: &str, text: String| json!({ "role": role, "content": text });
        let mut messages = vec![message("system", system_message(kind, facts.language()))];
        for example in examples(kind) {
            messages.push(message("user", kind.context(&example.facts())));
            messages.push(message("assistant", example.answer.to_owned()));
        }
        messages.push(message("user", kind.context(facts)));
        let prompt_tokens =
            messages.iter().map(|message| estimate(message["content"].as_str().unwrap_or_default())).sum();
        Self::of_messages(config, messages, prompt_tokens)
    }

    fn of_messages(config: &GenerateConfig, messages: Vec<Value>, prompt_tokens: u64) -> Self {
        let body = json!({
            "model": config.model,
            "messages": messages,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "seed": config.seed,
        });
        let body = body.to_string().into_bytes();
        Self { key: Fingerprint(*blake3::hash(&body).as_bytes()), body, prompt_tokens }
    }
}

/// Tokens of a text by its letters: English takes a token per four or so, so three are on the safe side; letters of other
/// scripts are counted twice.
pub(super) fn estimate(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count() as u64;
    let other = text.chars().filter(|letter| !letter.is_ascii()).count() as u64;
    ascii.div_ceil(3) + other * 2 + MESSAGE_TOKENS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::{FactInput, FactSource, GenerateKind};

    fn config(kind: GenerateKind) -> GenerateConfig {
        let facts = FactInput { source: FactSource::CapsBoxes, input: "a".into(), instances: None };
        GenerateConfig::new(kind, facts, "o", "http://h/v1", "m")
    }

    fn facts(caption: &str) -> ImageFacts {
        ImageFacts { id: "1".into(), image: "1.jpg".into(), captions: vec![caption.into()], boxes: vec![] }
    }

    #[test]
    fn the_key_is_of_what_is_asked_and_not_of_whom() {
        let request = |change: fn(&mut GenerateConfig), caption: &str| {
            let mut config = config(GenerateKind::Complex);
            change(&mut config);
            Request::new(&config, &facts(caption)).key
        };
        let first = request(|_| {}, "A cat.");
        assert_eq!(request(|config| config.endpoint = "http://other/v1".into(), "A cat."), first);
        assert_eq!(request(|config| config.api_key = Some(crate::ApiKey::new("k")), "A cat."), first);
        assert_ne!(request(|_| {}, "A dog."), first);
        assert_ne!(request(|config| config.model = "n".into(), "A cat."), first);
        assert_ne!(request(|config| config.kind = GenerateKind::Detail, "A cat."), first);
        assert_ne!(request(|config| config.temperature = 0.0, "A cat."), first);
    }

    #[test]
    fn the_image_comes_last_after_the_examples() {
        let request = Request::new(&config(GenerateKind::Conversation), &facts("A cat."));
        let body: Value = serde_json::from_slice(&request.body).expect("JSON");
        let roles: Vec<&str> = body["messages"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|message| message["role"].as_str())
            .collect();
        assert_eq!(roles, ["system", "user", "assistant", "user", "assistant", "user"]);
        assert_eq!(body["messages"][5]["content"], "A cat.");
    }

    #[test]
    fn estimates_are_above_what_tokenizers_say() {
        assert!(estimate("A cat sits on a mat.") >= 7);
        assert!(estimate("一只猫坐在垫子上") >= 8);
    }
}
