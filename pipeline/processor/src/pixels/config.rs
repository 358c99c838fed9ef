//! `preprocessor_config.json`, checked: what a tower's image processor does, with its class's defaults filled in.

use serde::Deserialize;
use serde_json::Value;
use vela_types::{ImageNormalization, ImageShape};

use crate::ProcessorError;

use super::ImageMode;
use super::filter::Filter;

pub(crate) const PREPROCESSOR_FILE: &str = "preprocessor_config.json";

/// The extent that a resize aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resize {
    /// Both sides given; the aspect ratio may change.
    Exact { height: u32, width: u32 },
    /// The shorter side given; the aspect ratio stays.
    ShortestEdge(u32),
}

/// An image processor's settings.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PreprocessorConfig {
    /// Whose pixels are reproduced.
    pub(crate) mode: ImageMode,
    /// Colour of the square that pictures are padded to before anything else; `None`: they are not.
    pub(crate) canvas: Option<[u8; 3]>,
    /// `None`: pictures are not resized.
    pub(crate) resize: Option<Resize>,
    /// How a resize weighs its inputs.
    pub(crate) filter: Filter,
    /// Height and width of the centre crop, if there is one.
    pub(crate) crop: Option<(u32, u32)>,
    /// Extent of every result.
    pub(crate) shape: ImageShape,
    /// What the device applies.
    pub(crate) normalization: ImageNormalization,
}

/// The keys that are read. Others (names of classes, tensor types, padding that is off) do not change pixels.
#[derive(Debug, Deserialize)]
struct RawConfig {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_resize: Option<bool>,
    size: Option<Value>,
    resample: Option<u64>,
    do_center_crop: Option<bool>,
    crop_size: Option<Value>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
    do_pad: Option<bool>,
    image_aspect_ratio: Option<String>,
}

/// What a class does where its file is silent.
struct ClassDefaults {
    size: Resize,
    crops: bool,
    mean: [f64; 3],
    std: [f64; 3],
    /// Whether `do_pad` means a square.
    pads: bool,
}

/// Mean and deviation of the pictures that OpenAI's CLIP was trained on.
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

const CLASSES: &str = "CLIPImageProcessor, ChineseCLIPImageProcessor, LlavaImageProcessor or SiglipImageProcessor";

impl ClassDefaults {
    /// `None` for a class that is not supported.
    fn of(class: &str) -> Option<Self> {
        let base = class.strip_suffix("Fast").or_else(|| class.strip_suffix("Pil")).unwrap_or(class);
        match base.replace("FeatureExtractor", "ImageProcessor").as_str() {
            name @ ("CLIPImageProcessor" | "ChineseCLIPImageProcessor" | "LlavaImageProcessor") => {
                let (size, pads) = (Resize::ShortestEdge(224), name == "LlavaImageProcessor");
                Some(Self { size, crops: true, mean: CLIP_MEAN, std: CLIP_STD, pads })
            }
            "SiglipImageProcessor" => {
                let size = Resize::Exact { height: 224, width: 224 };
                Some(Self { size, crops: false, mean: [0.5; 3], std: [0.5; 3], pads: false })
            }
            _ => None,
        }
    }
}

impl PreprocessorConfig {
    /// Reads and checks the file's text.
    pub(crate) fn parse(text: &[u8], mode: ImageMode) -> Result<Self, ProcessorError> {
        let raw: RawConfig = serde_json::from_slice(text)
            .map_err(|source| ProcessorError::Json { file: PREPROCESSOR_FILE.into(), source })?;
        let class = raw.image_processor_type.clone().or_else(|| raw.feature_extractor_type.clone());
        let class = class.unwrap_or_default();
        let defaults =
            ClassDefaults::of(&class).ok_or_else(|| fault("image_processor_type", CLASSES, class.clone()))?;
        let resize = raw.resize(&defaults)?;
        let crop = raw.crop(&defaults)?;
        let (height, width) = fixed_extent(resize, crop)?;
        Ok(Self {
            mode,
            canvas: raw.canvas(&defaults)?,
            resize,
            filter: raw.filter(mode)?,
            crop,
            shape: ImageShape { channels: 3, height, width },
            normalization: raw.normalization(&defaults),
        })
    }
}

impl RawConfig {
    fn resize(&self, defaults: &ClassDefaults) -> Result<Option<Resize>, ProcessorError> {
        if self.do_resize == Some(false) {
            return Ok(None);
        }
        let Some(size) = &self.size else { return Ok(Some(defaults.size)) };
        let edge = |key: &str| size.get(key).and_then(positive);
        let resize = match (edge("height"), edge("width"), edge("shortest_edge")) {
            (Some(height), Some(width), _) => Some(Resize::Exact { height, width }),
            (_, _, Some(short)) if size.get("longest_edge").is_none() => Some(Resize::ShortestEdge(short)),
            _ => positive(size)
                .map(Resize::ShortestEdge)
                .or_else(|| pair(size).map(|(height, width)| Resize::Exact { height, width })),
        };
        let expected = "a number, {\"shortest_edge\"} or {\"height\", \"width\"}, above 0";
        resize.map(Some).ok_or_else(|| fault("size", expected, size))
    }

    fn crop(&self, defaults: &ClassDefaults) -> Result<Option<(u32, u32)>, ProcessorError> {
        if !self.do_center_crop.unwrap_or(defaults.crops) {
            return Ok(None);
        }
        let Some(size) = &self.crop_size else { return Ok(Some((224, 224))) };
        let edge = |key: &str| size.get(key).and_then(positive);
        let square = positive(size).map(|side| (side, side));
        let crop = edge("height").zip(edge("width")).or(square).or_else(|| pair(size));
        crop.map(Some).ok_or_else(|| fault("crop_size", "a number or {\"height\", \"width\"}, above 0", size))
    }

    fn filter(&self, mode: ImageMode) -> Result<Filter, ProcessorError> {
        /// Pillow's number of bicubic, the default of every supported class.
        const BICUBIC: u64 = 3;
        let code = self.resample.unwrap_or(BICUBIC);
        match (Filter::from_code(code), mode) {
            (None, _) => Err(fault("resample", "a number from 0 to 5", code)),
            (Some(Filter::Box | Filter::Hamming), ImageMode::Torchvision) => {
                Err(fault("resample", "a number from 0 to 3 in image mode `torchvision`", code))
            }
            (Some(filter), _) => Ok(filter),
        }
    }

    /// The padding colour, if pictures are padded: LLaVA's `image_aspect_ratio`, or `do_pad` of transformers' class for
    /// LLaVA. It is the mean, brought to 0-255 and cut off, as both do.
    fn canvas(&self, defaults: &ClassDefaults) -> Result<Option<[u8; 3]>, ProcessorError> {
        let pads = match (self.image_aspect_ratio.as_deref(), self.do_pad.unwrap_or(false)) {
            (Some("pad"), _) => true,
            (Some("square") | None, false) => false,
            (None, true) if defaults.pads => true,
            (Some("square") | None, true) => {
                let expected = "false; write \"image_aspect_ratio\": \"pad\" to pad to a square";
                return Err(fault("do_pad", expected, "true"));
            }
            (Some(other), _) => return Err(fault("image_aspect_ratio", "`pad` or `square`", other)),
        };
        let mean = self.image_mean.unwrap_or(defaults.mean);
        Ok(pads.then(|| mean.map(|mean| (mean * 255.0) as u8)))
    }

    fn normalization(&self, defaults: &ClassDefaults) -> ImageNormalization {
        let rescale_factor = match self.do_rescale {
            Some(false) => 1.0,
            _ => self.rescale_factor.unwrap_or(1.0 / 255.0),
        };
        let (mean, std) = match self.do_normalize {
            Some(false) => ([0.0; 3], [1.0; 3]),
            _ => (self.image_mean.unwrap_or(defaults.mean), self.image_std.unwrap_or(defaults.std)),
        };
        ImageNormalization { rescale_factor, mean: mean.to_vec(), std: std.to_vec() }
    }
}

/// Height and width of every result; an error if they would depend on the picture.
fn fixed_extent(resize: Option<Resize>, crop: Option<(u32, u32)>) -> Result<(u32, u32), ProcessorError> {
    match (crop, resize) {
        (Some(extent), _) => Ok(extent),
        (None, Some(Resize::Exact { height, width })) => Ok((height, width)),
        (None, Some(Resize::ShortestEdge(edge))) => {
            let expected = "{\"height\", \"width\"} where nothing is cropped, so that all images have one extent";
            Err(fault("size", expected, format!("{{\"shortest_edge\": {edge}}}")))
        }
        (None, None) => Err(fault("do_resize", "true where nothing is cropped", "false")),
    }
}

fn positive(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).filter(|&number| number > 0)
}

/// `[height, width]`.
fn pair(value: &Value) -> Option<(u32, u32)> {
    match value.as_array()?.as_slice() {
        [height, width] => positive(height).zip(positive(width)),
        _ => None,
    }
}

fn fault(key: &str, expected: &str, found: impl ToString) -> ProcessorError {
    ProcessorError::Setting {
        file: PREPROCESSOR_FILE,
        key: key.into(),
        expected: expected.into(),
        found: found.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PreprocessorConfig, String> {
        PreprocessorConfig::parse(text.as_bytes(), ImageMode::Pillow).map_err(|error| error.to_string())
    }

    #[test]
    fn silence_means_the_class_default() {
        let clip = parse(r#"{"image_processor_type": "CLIPImageProcessor"}"#).expect("all defaults");
        assert_eq!((clip.resize, clip.crop), (Some(Resize::ShortestEdge(224)), Some((224, 224))));
        assert_eq!((clip.filter, clip.normalization.mean[0]), (Filter::Bicubic, CLIP_MEAN[0]));
        let siglip = parse(r#"{"image_processor_type": "SiglipImageProcessor"}"#).expect("all defaults");
        assert_eq!((siglip.crop, siglip.shape.height, siglip.normalization.std[2]), (None, 224, 0.5));
    }

    #[test]
    fn old_class_names_and_sizes_are_understood() {
        let old = parse(r#"{"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336}"#);
        let old = old.expect("first-generation file");
        assert_eq!((old.resize, old.crop), (Some(Resize::ShortestEdge(336)), Some((336, 336))));
        let chinese = r#"{"feature_extractor_type": "ChineseCLIPFeatureExtractor",
            "size": {"height": 224, "width": 224}, "do_center_crop": false}"#;
        let chinese = parse(chinese).expect("Chinese-CLIP file");
        assert_eq!((chinese.resize, chinese.crop), (Some(Resize::Exact { height: 224, width: 224 }), None));
    }

    #[test]
    fn pictures_are_padded_with_the_mean_where_the_file_says_so() {
        let canvas = |text: &str| parse(text).expect(text).canvas;
        let mean = Some([122, 116, 104]);
        assert_eq!(canvas(r#"{"image_processor_type": "CLIPImageProcessor", "image_aspect_ratio": "pad"}"#), mean);
        assert_eq!(canvas(r#"{"image_processor_type": "LlavaImageProcessor", "do_pad": true}"#), mean);
        assert_eq!(canvas(r#"{"image_processor_type": "LlavaImageProcessor"}"#), None);
        assert_eq!(canvas(r#"{"image_processor_type": "CLIPImageProcessor", "image_aspect_ratio": "square"}"#), None);
    }

    #[test]
    fn filters_that_torchvision_lacks_are_refused_in_its_mode() {
        let text = br#"{"image_processor_type": "CLIPImageProcessor", "resample": 4}"#;
        assert!(PreprocessorConfig::parse(text, ImageMode::Pillow).is_ok());
        let refused = PreprocessorConfig::parse(text, ImageMode::Torchvision).expect_err("box");
        assert!(refused.to_string().contains("0 to 3"), "{refused}");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let cases = [
            (r#"{"image_processor_type": "ViTImageProcessor"}"#, "SiglipImageProcessor"),
            (r#"{"size": 224}"#, "image_processor_type"),
            (r#"{"image_processor_type": "CLIPImageProcessor", "do_center_crop": false}"#, "one extent"),
            (r#"{"image_processor_type": "CLIPImageProcessor", "resample": 9}"#, "0 to 5"),
            (r#"{"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 3}}"#, "shortest_edge"),
            (r#"{"image_processor_type": "CLIPImageProcessor", "size": 0}"#, "above 0"),
            (r#"{"image_processor_type": "CLIPImageProcessor", "do_pad": true}"#, "image_aspect_ratio"),
            (r#"{"image_processor_type": "CLIPImageProcessor", "image_aspect_ratio": "anyres"}"#, "`pad` or `square`"),
            (r#"{"image_processor_type": "#, "not valid JSON"),
        ];
        for (text, needle) in cases {
            let message = parse(text).expect_err(text);
            assert!(message.contains(needle), "{text}: {message}");
        }
    }
}
