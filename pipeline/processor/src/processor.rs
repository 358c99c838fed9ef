//! The processor: one folder's tokenizer, template and image settings, applied to samples.

use std::fs;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use serde_json::Value;
use vela_types::{
    Fingerprint, IGNORE_LABEL, IMAGE_MARK, ImageRef, ImageTensor, ProcessorSummary, Record, Role, Sample, Turn,
};

use crate::folder::{Folder, PREPROCESSOR_FILE, TEMPLATE_FILE, TEMPLATE_JSON_FILE, TOKENIZER_CONFIG_FILE};
use crate::pixels::{self, ImageMode, PreprocessorConfig};
use crate::settings::{Settings, known_templates};
use crate::template::{ChatTemplate, SpecialTokens, TemplateDate};
use crate::tokenizer::TextTokenizer;
use crate::{ProcessorError, spans};

/// Largest image file that is read: encoded bytes are held beside the pixels.
const MAX_ENCODED_BYTES: u64 = 256 << 20;
/// Read of an image of which only the header is wanted.
const HEADER_BYTES: u64 = 64 << 10;

/// What the caller chooses. What is left open is as the folder's `vela_processor.json` says, else as by default; a
/// saved processor has the choice in that file, so that whoever loads the copy gets the same ids and pixels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessorOptions {
    /// Whose pixels are reproduced; by default Pillow's.
    pub image_mode: Option<ImageMode>,
    /// A built-in chat template ([`template_names`](crate::template_names)), which counts before the folder's own.
    pub template: Option<String>,
    /// The day that `strftime_now` tells in templates that ask for it: fixed, so that bytes never depend on the clock.
    /// By default 26 July 2024.
    pub template_date: Option<TemplateDate>,
    /// The system turn of dialogues that bring none; by default whatever the template does without one.
    pub system: Option<String>,
}

/// A sample turned into a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processed {
    /// What a shard stores.
    pub record: Record,
    /// Turns dropped whole from the end to fit the length limit.
    pub dropped_turns: usize,
}

/// A dialogue as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte spans of the assistant turns within `text`, end-of-turn token included, in order.
    pub assistant_spans: Vec<Range<usize>>,
    /// Byte spans where a turn says what a special token is written as: encoded as the plain text that it is.
    pub plain_spans: Vec<Range<usize>>,
    /// Bytes before which the template starts a new piece of text: no token spans them.
    pub cuts: Vec<usize>,
}

/// Token ids with their labels, of equal length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Ids; one image token per image.
    pub input_ids: Vec<u32>,
    /// The id where the assistant speaks, `IGNORE_LABEL` elsewhere.
    pub labels: Vec<i32>,
}

/// A processor loaded from a Hugging Face model folder. Share it behind an `Arc`: all methods take `&self`.
pub struct Processor {
    folder: Folder,
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    image: PreprocessorConfig,
    summary: ProcessorSummary,
    stop_ids: Vec<u32>,
}

impl Processor {
    /// Loads a tokenizer (`tokenizer.json`, or Qwen2's `vocab.json` with `merges.txt`, or the tiktoken files
    /// `qwen.tiktoken` or `tokenizer.model`), `tokenizer_config.json`, the chat template (a built-in one that the
    /// options or `vela_processor.json` name, else `chat_template.jinja`, `chat_template.json` or the tokenizer
    /// config's) and `preprocessor_config.json`. A tokenizer without `<image>` gets it as a special token at the next
    /// free id.
    ///
    /// # Errors
    /// A file that is absent, malformed or asks for what is not supported; a template that alters answers, closes
    /// them with no token or starts twice.
    pub fn load(dir: &Path, options: &ProcessorOptions) -> Result<Self, ProcessorError> {
        Self::load_parts(dir, dir, options)
    }

    /// [`Processor::load`] of a language model's folder and a vision tower's, of which `preprocessor_config.json` is
    /// read and nothing else: the processor of a model joined from the two.
    ///
    /// # Errors
    /// As [`Processor::load`].
    pub fn load_parts(text: &Path, images: &Path, options: &ProcessorOptions) -> Result<Self, ProcessorError> {
        let (folder, settings) = Folder::read(text, images, options)?;
        let config = folder.json(TOKENIZER_CONFIG_FILE)?;
        let special_tokens = special_tokens(&config);
        let tokenizer = TextTokenizer::load(&folder)?;
        let template = chat_template(&folder, &config, &settings, special_tokens.clone())?;
        let image =
            PreprocessorConfig::parse(folder.get(PREPROCESSOR_FILE).unwrap_or_default(), settings.image_mode())?;

        let mut stop_ids = probe_end_of_turn(&template, &tokenizer)?;
        let end_of_turn_id = stop_ids[0];
        let id_of = |token: &Option<String>| token.as_ref().and_then(|token| tokenizer.id(token));
        check_start(&template, &tokenizer, id_of(&special_tokens.bos_token))?;
        let eos_id = id_of(&special_tokens.eos_token);
        stop_ids.extend(eos_id.filter(|id| !stop_ids.contains(id)));
        let image_token_id = tokenizer.id(IMAGE_MARK).ok_or_else(|| setting("added_tokens", IMAGE_MARK, "none"))?;
        let mode = settings.image_mode().as_str();
        let date = String::from(settings.template_date());
        let builtin = settings.builtin()?;
        let mut hashed = vec![mode, &date];
        // The folder's own template is hashed with its file.
        hashed.extend(builtin.map(|builtin| builtin.source));
        let summary = ProcessorSummary {
            fingerprint: folder.fingerprint(&hashed),
            image_shape: image.shape,
            normalization: image.normalization.clone(),
            image_mode: mode.to_owned(),
            template: builtin.map_or("folder", |builtin| builtin.name).to_owned(),
            template_date: date,
            vocab_size: tokenizer.num_ids(),
            image_token_id,
            pad_token_id: id_of(&special_tokens.pad_token).or(eos_id).unwrap_or(end_of_turn_id),
            end_of_turn_id,
        };
        Ok(Self { folder, tokenizer, template, image, summary, stop_ids })
    }

    /// What a model must know of this processor. Its fingerprint is blake3 over the folder's files, the image mode,
    /// the template's date and the built-in template, if one is chosen.
    pub fn summary(&self) -> &ProcessorSummary {
        &self.summary
    }

    /// Turns a sample into a record of at most `max_length` tokens, each image counted as one.
    ///
    /// Questions with their answers are dropped whole from the end until the rest fits, their images with them.
    ///
    /// # Errors
    /// Whatever makes the sample untrainable; [`ProcessorError::cause`] names it.
    pub fn process(&self, sample: &Sample, max_length: usize) -> Result<Processed, ProcessorError> {
        sample.check()?;
        let (turns, tokens) = self.encode_fitting(&sample.turns, max_length)?;
        let num_images = turns.iter().map(|turn| turn.text.matches(IMAGE_MARK).count()).sum();
        self.check_image_tokens(&tokens.input_ids, num_images)?;
        let images = sample.images.iter().take(num_images).map(|image| self.load_image(image));
        let record = Record {
            id: sample.id.clone(),
            source: sample.source.clone(),
            language: sample.language,
            images: images.collect::<Result<_, _>>()?,
            input_ids: tokens.input_ids,
            labels: tokens.labels,
        };
        Ok(Processed { record, dropped_turns: sample.turns.len() - turns.len() })
    }

    /// Renders a dialogue by the folder's template; with `generation_prompt` it ends where the assistant begins.
    ///
    /// # Errors
    /// If the template refuses the dialogue or alters an answer.
    pub fn render(&self, turns: &[Turn], generation_prompt: bool) -> Result<Rendered, ProcessorError> {
        spans::render(&self.template, &self.tokenizer, turns, generation_prompt)
    }

    /// Ids of a dialogue with labels on every assistant turn, its end-of-turn token included.
    ///
    /// A token is labelled if it shares a byte with a span, as in transformers' assistant masks. Only the template
    /// writes special tokens: what looks like one in a turn is encoded as plain text, but for a user turn's `<image>`.
    ///
    /// # Errors
    /// As [`Processor::render`]; and if no token is labelled.
    pub fn encode_dialogue(&self, turns: &[Turn]) -> Result<Tokens, ProcessorError> {
        let rendered = self.render(turns, false)?;
        let encoded = self.tokenizer.encode(&rendered)?;
        let mut spans = rendered.assistant_spans.iter().peekable();
        let label = |(&id, bytes): (&u32, &Range<usize>)| {
            while spans.next_if(|span| span.end <= bytes.start).is_some() {}
            let spoken = spans.peek().is_some_and(|span| span.start < bytes.end && bytes.start < span.end);
            if spoken { id as i32 } else { IGNORE_LABEL }
        };
        let labels: Vec<i32> = encoded.ids.iter().zip(&encoded.spans).map(label).collect();
        // The first token is never predicted.
        if labels.iter().skip(1).all(|&label| label == IGNORE_LABEL) {
            return Err(ProcessorError::NoLabels);
        }
        Ok(Tokens { input_ids: encoded.ids, labels })
    }

    /// Ids of a dialogue up to where the assistant answers next: what generation starts from.
    ///
    /// # Errors
    /// As [`Processor::render`].
    pub fn encode_prompt(&self, turns: &[Turn]) -> Result<Vec<u32>, ProcessorError> {
        let rendered = spans::render_prompt(&self.template, &self.tokenizer, turns)?;
        Ok(self.tokenizer.encode(&rendered)?.ids)
    }

    /// Ids of a text that belongs to no dialogue: no template, nothing added, no special token seen in it.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, ProcessorError> {
        self.tokenizer.encode_plain(text)
    }

    /// The text of `ids`, without special tokens if `skip_special`.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ProcessorError> {
        self.tokenizer.decode(ids, skip_special)
    }

    /// Decodes an image by its first bytes, sets it upright, makes it RGB, resizes and crops it: u8 CHW of
    /// `summary().image_shape`.
    ///
    /// # Errors
    /// The image variants of [`ProcessorError`].
    pub fn load_image(&self, image: &ImageRef) -> Result<ImageTensor, ProcessorError> {
        let encoded = read_image(image)?;
        let data = Bytes::from(pixels::load_tensor(&encoded, image.name(), &self.image)?);
        let hash = Fingerprint(*blake3::hash(&data).as_bytes());
        Ok(ImageTensor { shape: self.image.shape, data, hash })
    }

    /// Writes the files that [`Processor::load`] reads, so that the copy has the same fingerprint.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), ProcessorError> {
        self.folder.write(dir)
    }

    /// Those files, by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.folder.files()
    }

    /// Ids that end generation: what closes the template's turns, and the tokenizer's eos token where it is another.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// One above the largest id of the tokenizer, added tokens included.
    pub fn vocab_size(&self) -> u32 {
        self.summary.vocab_size
    }

    /// The longest run of whole question-answer pairs from the start that fits, and its tokens.
    fn encode_fitting<'a>(&self, turns: &'a [Turn], max_length: usize) -> Result<(&'a [Turn], Tokens), ProcessorError> {
        let shortest = 2 + usize::from(turns.first().is_some_and(|turn| turn.role == Role::System));
        let mut kept = turns;
        loop {
            let tokens = self.encode_dialogue(kept)?;
            let found = tokens.input_ids.len();
            if found <= max_length {
                return Ok((kept, tokens));
            }
            if kept.len() <= shortest {
                return Err(ProcessorError::TooLong { found, max_length });
            }
            kept = &kept[..kept.len() - 2];
        }
    }

    fn check_image_tokens(&self, ids: &[u32], expected: usize) -> Result<(), ProcessorError> {
        let found = ids.iter().filter(|&&id| id == self.summary.image_token_id).count();
        match found == expected {
            true => Ok(()),
            false => Err(ProcessorError::ImageTokens { expected, found }),
        }
    }
}

/// How much of an image [`check_image`] looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageCheck {
    /// The file, its format and its extent.
    Header,
    /// Every pixel.
    Pixels,
}

/// Finds what would keep an image from being read, without a processor.
///
/// # Errors
/// The image variants of [`ProcessorError`], the same as [`Processor::load_image`] gives.
pub fn check_image(image: &ImageRef, depth: ImageCheck) -> Result<(), ProcessorError> {
    let whole = || read_image(image).and_then(|encoded| pixels::check_header(&encoded, image.name()));
    match (depth, image) {
        (ImageCheck::Pixels, _) => pixels::decode_rgb(&read_image(image)?, image.name()).map(drop),
        // Few headers are longer; the whole file has the last word on those.
        (ImageCheck::Header, ImageRef::Path(path)) => match read_file(Path::new(path), HEADER_BYTES) {
            Ok(start) if pixels::check_header(&start, image.name()).is_ok() => Ok(()),
            _ => whole(),
        },
        (ImageCheck::Header, _) => whole(),
    }
}

fn read_image(image: &ImageRef) -> Result<Bytes, ProcessorError> {
    let name = image.name().to_owned();
    match image {
        ImageRef::Bytes { data, .. } => Ok(data.clone()),
        ImageRef::Url(_) => Err(ProcessorError::RemoteImage { name }),
        ImageRef::Path(path) => match read_file(Path::new(path), MAX_ENCODED_BYTES) {
            Ok(content) => Ok(content.into()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                Err(ProcessorError::MissingImage { name, source })
            }
            Err(source) => Err(ProcessorError::UnreadableImage { name, source }),
        },
    }
}

/// The first `limit` bytes of a regular file: a pipe would never end, a device would fill the memory.
fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let found = fs::metadata(path)?;
    match () {
        () if !found.is_file() => Err(io::Error::other("expected a file, found a folder, pipe or device")),
        () if found.len() > MAX_ENCODED_BYTES => {
            Err(io::Error::other(format!("expected at most {MAX_ENCODED_BYTES} bytes, found {}", found.len())))
        }
        () => {
            let mut bytes = Vec::with_capacity(found.len().min(limit) as usize);
            fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
            Ok(bytes)
        }
    }
}

/// A special token is written as its text or as an object that holds it.
fn special_tokens(config: &Value) -> SpecialTokens {
    let token = |key: &str| config[key].as_str().or_else(|| config[key]["content"].as_str()).map(str::to_owned);
    SpecialTokens {
        bos_token: token("bos_token"),
        eos_token: token("eos_token"),
        pad_token: token("pad_token"),
        unk_token: token("unk_token"),
    }
}

/// The template that the settings name, else the folder's.
fn chat_template(
    folder: &Folder,
    config: &Value,
    settings: &Settings,
    tokens: SpecialTokens,
) -> Result<ChatTemplate, ProcessorError> {
    let date = settings.template_date();
    let template = match settings.builtin()? {
        Some(builtin) => ChatTemplate::builtin(builtin, tokens, date)?,
        None => ChatTemplate::new(&template_source(folder, config)?, tokens, date)?,
    };
    Ok(template.with_system(settings.system()))
}

/// A template in its own file counts before the tokenizer config's, whose named templates offer `default`.
fn template_source(folder: &Folder, config: &Value) -> Result<String, ProcessorError> {
    if let Some(text) = folder.get(TEMPLATE_FILE) {
        return Ok(String::from_utf8_lossy(text).into_owned());
    }
    let from_json = folder.json(TEMPLATE_JSON_FILE)?["chat_template"].clone();
    let template = if from_json.is_null() { &config["chat_template"] } else { &from_json };
    let named = template.as_array().into_iter().flatten().find(|entry| entry["name"] == "default");
    let source = template.as_str().or_else(|| named.and_then(|entry| entry["template"].as_str()));
    source.map(str::to_owned).ok_or_else(|| {
        let expected = format!(
            "a template, or a list with one named `default`; or, under `template` in `vela_processor.json`, one of {}",
            known_templates()
        );
        setting("chat_template", &expected, &template.to_string())
    })
}

/// Ids of what closes assistant turns: first that of a single answer, then any other that earlier turns close with.
fn probe_end_of_turn(template: &ChatTemplate, tokenizer: &TextTokenizer) -> Result<Vec<u32>, ProcessorError> {
    let pair = [Turn::user("<image>\nquestion"), Turn::assistant("answer")];
    let rendered = spans::render(template, tokenizer, &pair, false)?;
    let mut ids = spans::end_of_turn_ids(template, tokenizer, &rendered)?;
    if ids.is_empty() {
        return Err(ProcessorError::NoEndOfTurn { found: rendered.text });
    }
    // A template may refuse more than one pair.
    if let Ok(rendered) = spans::render(template, tokenizer, &[pair.clone(), pair].concat(), false) {
        let more = spans::end_of_turn_ids(template, tokenizer, &rendered)?;
        ids.extend(more.into_iter().filter(|id| !ids.contains(id)).collect::<Vec<_>>());
    }
    Ok(ids)
}

/// A sequence starts with one start token at most.
fn check_start(template: &ChatTemplate, tokenizer: &TextTokenizer, bos: Option<u32>) -> Result<(), ProcessorError> {
    let rendered = spans::render_prompt(template, tokenizer, &[Turn::user("<image>\nquestion")])?;
    match &tokenizer.encode(&rendered)?.ids[..] {
        [first, second, ..] if Some(*first) == bos && first == second => {
            Err(setting("chat_template", "one start token", &rendered.text))
        }
        _ => Ok(()),
    }
}

fn setting(key: &str, expected: &str, found: &str) -> ProcessorError {
    ProcessorError::Setting {
        file: TOKENIZER_CONFIG_FILE,
        key: key.into(),
        expected: expected.into(),
        found: found.into(),
    }
}
