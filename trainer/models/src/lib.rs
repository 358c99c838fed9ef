//! Vision towers, projectors, language models, the joined VLM, weights under their Hugging Face names, generation.
