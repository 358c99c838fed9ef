//! What Hugging Face calls a processor: tokenizer, chat template, labels, image decode and resize, exact.
