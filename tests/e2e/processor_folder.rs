//! A processor as a user puts it together: a language model's tokenizer beside a vision tower's image settings.

use std::path::Path;

/// Chinese-CLIP's published image settings for 224 pixels.
const CHINESE_CLIP: &str = r#"{
    "image_processor_type": "ChineseCLIPImageProcessor",
    "do_resize": true, "size": {"height": 224, "width": 224}, "resample": 3,
    "do_center_crop": false,
    "do_rescale": true, "rescale_factor": 0.00392156862745098,
    "do_normalize": true,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": true
}"#;

/// Writes `folder` from the tokenizer files of `tokenizer` and Chinese-CLIP's image settings.
pub(crate) fn write(folder: &Path, tokenizer: &Path) {
    std::fs::create_dir(folder).expect("a new folder");
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        std::fs::copy(tokenizer.join(name), folder.join(name)).expect("a tokenizer file");
    }
    std::fs::write(folder.join("preprocessor_config.json"), CHINESE_CLIP).expect("a writable folder");
}
