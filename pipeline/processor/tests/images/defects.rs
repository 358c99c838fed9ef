//! The defects of published training systems that are an image processor's: what they do wrong, and that this one
//! does not.

use std::fs;

use vela_processor::{ImageMode, ImageProcessor, Processor, ProcessorOptions, codec};

use crate::golden;

const CLIP: &[u8] = br#"{"image_processor_type": "CLIPImageProcessor"}"#;

fn photo(width: u32, height: u32) -> Vec<u8> {
    (0..width * height * 3).map(|at| (at * 11 % 253) as u8).collect()
}

/// Theirs: pixels without the tower's mean and deviation.
#[test]
fn defect_16_mean_and_deviation_travel_with_the_pixels() {
    let processor = Processor::load(&golden("qwen2"), &ProcessorOptions::default()).unwrap();
    let normalization = &processor.summary().normalization;
    let file: serde_json::Value =
        serde_json::from_slice(&fs::read(golden("qwen2").join("preprocessor_config.json")).unwrap()).unwrap();
    let numbers =
        |key: &str| file[key].as_array().map(|list| list.iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>());
    // What the file leaves open is OpenAI's CLIP.
    let mean = numbers("image_mean").unwrap_or_else(|| vec![0.481_454_66, 0.457_827_5, 0.408_210_73]);
    let deviation = numbers("image_std").unwrap_or_else(|| vec![0.268_629_54, 0.261_302_58, 0.275_777_11]);
    assert_eq!((&normalization.mean, &normalization.std), (&mean, &deviation));
    assert!((normalization.rescale_factor * 255.0 - 1.0).abs() < 1e-12);
}

/// Theirs: the file's name decides, an empty file or a CMYK photo ends the run, cameras' turns are lost.
#[test]
fn defect_18_content_decides_and_every_fault_has_a_cause() {
    let read = |name: &str| fs::read(golden("files").join(name)).unwrap();
    for (content, called) in [("gif_mode_P.gif", "a.jpg"), ("png_mode_RGB.png", "b.jpg"), ("webp_RGB_60.webp", "c.png")]
    {
        assert!(codec::decode_rgb(&read(content), called).is_ok(), "{content} as {called}");
    }
    assert_eq!(codec::decode_rgb(&[], "empty.jpg").unwrap_err().cause(), "empty_image");
    assert_eq!(codec::decode_rgb(&[0; 64], "zeros.jpg").unwrap_err().cause(), "unknown_image_format");
    assert!(codec::decode_rgb(&read("jpeg_mode_CMYK.jpg"), "cmyk.jpg").is_ok());
    let (upright, turned) = (read("jpeg_exif_value_9.jpg"), read("jpeg_xmp_orientation.jpg"));
    let extent = |file: &[u8]| codec::decode_rgb(file, "photo").map(|image| (image.width, image.height)).unwrap();
    assert_eq!((extent(&upright), extent(&turned)), ((21, 13), (13, 21)));
}

/// Theirs: each picture is enlarged to 2048, and costs as many tokens as that takes.
#[test]
fn defect_21_every_picture_has_the_towers_extent_and_nothing_chooses_a_larger_one() {
    for mode in [ImageMode::Pillow, ImageMode::Torchvision] {
        let processor = ImageProcessor::parse(CLIP, mode).unwrap();
        let shape = processor.shape();
        assert_eq!((shape.channels, shape.height, shape.width), (3, 224, 224));
        for (width, height) in [(1, 1), (8, 8), (30, 900), (900, 30), (1200, 900)] {
            let tensor = processor.tensor(&codec::encode_png(&photo(width, height), width, height), "photo").unwrap();
            assert_eq!(tensor.len(), 3 * 224 * 224, "{width} x {height}");
        }
    }
}
