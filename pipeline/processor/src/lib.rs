//! What Hugging Face calls a processor: tokenizer, chat template, labels, image decode and resize, exact.
//!
//! Owns everything between a [`Sample`](vela_types::Sample) and a [`Record`](vela_types::Record): text is rendered by
//! the model's own chat template and encoded once, labels are the assistant's spans of that rendering, and images
//! become the bytes that Pillow and the published image processors give. The same code serves preparation, training
//! and chat. It refuses to guess: an unknown image processor, a template that alters an answer, a file that ends
//! early or a sample without labels is an error with a cause, and it reads neither the network nor the clock.

mod builtin;
mod byte_level;
pub mod codec;
mod error;
mod folder;
mod pieces;
mod pixels;
mod processor;
mod settings;
mod spans;
mod template;
mod tiktoken;
mod token_ids;
mod tokenizer;
mod train;

pub use builtin::template_names;
pub use error::ProcessorError;
pub use pixels::{ImageMode, ImageProcessor};
pub use processor::{ImageCheck, Processed, Processor, ProcessorOptions, Rendered, Tokens, check_image};
pub use template::TemplateDate;
pub use train::train_tokenizer;
