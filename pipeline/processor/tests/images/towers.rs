//! A tower's input equals that of the published image processor, byte for byte, in both modes.

use serde_json::Value;
use vela_processor::{ImageMode, ImageProcessor, codec};

use crate::hash::sha256;
use crate::read_json;

/// The picture that `hashed_pixels` of the golden scripts makes, as a PNG.
fn hashed_png(case: &Value) -> Vec<u8> {
    let number = |key: &str| case[key].as_u64().unwrap() as u32;
    let (width, height, seed) = (number("width"), number("height"), number("seed"));
    let sample = |x: u32, y: u32, channel: u32| {
        let word = x.wrapping_mul(2_654_435_761).wrapping_add(y.wrapping_mul(2_246_822_519));
        let word = word.wrapping_add(channel.wrapping_mul(3_266_489_917)).wrapping_add(seed.wrapping_mul(668_265_263));
        let word = (word ^ (word >> 15)).wrapping_mul(2_246_822_519);
        [(word >> 24) as u8, 0, 255][((x / 7 + y / 5) % 3) as usize]
    };
    let rows = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels: Vec<u8> = rows.flat_map(|(x, y)| [0, 1, 2].map(|channel| sample(x, y, channel))).collect();
    codec::encode_png(&pixels, width, height)
}

fn digest(case: &Value, mode: ImageMode) -> String {
    let processor = ImageProcessor::parse(case["config"].to_string().as_bytes(), mode).unwrap();
    sha256(&processor.tensor(&hashed_png(case), "generated").unwrap())
}

#[test]
fn resizes_and_crops_of_all_sizes_equal_the_torchvision_processors() {
    let expected = read_json("fast.json");
    let cases = expected["resizes"].as_array().unwrap();
    let wrong: Vec<String> = cases
        .iter()
        .filter(|case| digest(case, ImageMode::Torchvision) != case["tensor"])
        .map(Value::to_string)
        .collect();
    assert!(cases.len() > 100 && wrong.is_empty(), "{} of {} wrong: {wrong:#?}", wrong.len(), cases.len());
}

#[test]
fn pictures_are_padded_to_a_square_as_llava_pads_them() {
    let expected = read_json("fast.json");
    for case in expected["squares"].as_array().unwrap() {
        for mode in [ImageMode::Pillow, ImageMode::Torchvision] {
            assert_eq!(digest(case, mode), case[mode.as_str()], "{mode:?}: {case}");
        }
    }
}

#[test]
fn a_photo_resized_while_it_is_decoded_equals_one_decoded_first() {
    let pixels: Vec<u8> = (0..300 * 200 * 3).map(|at| (at * 7 % 251) as u8).collect();
    let jpeg = codec::encode_jpeg(&pixels, 300, 200, 90);
    let decoded = codec::decode_rgb(&jpeg, "photo").unwrap();
    let png = codec::encode_png(&decoded.data, 300, 200);
    for mode in [ImageMode::Pillow, ImageMode::Torchvision] {
        for extra in ["", r#", "image_aspect_ratio": "pad""#, r#", "resample": 0"#, r#", "size": 40, "crop_size": 90"#]
        {
            let config = format!(r#"{{"image_processor_type": "CLIPImageProcessor"{extra}}}"#);
            let processor = ImageProcessor::parse(config.as_bytes(), mode).unwrap();
            let tensors = [&jpeg, &png].map(|file| processor.tensor(file, "photo").unwrap());
            assert!(tensors[0] == tensors[1], "{mode:?} {config}");
        }
    }
}

#[test]
fn a_picture_of_extreme_aspect_is_refused_before_its_resized_self_takes_memory() {
    let line = codec::encode_png(&vec![7; 3 * 60_000], 60_000, 1);
    for (config, mode) in [
        (r#"{"image_processor_type": "CLIPImageProcessor"}"#, ImageMode::Torchvision),
        (r#"{"image_processor_type": "CLIPImageProcessor", "image_aspect_ratio": "pad"}"#, ImageMode::Pillow),
    ] {
        let processor = ImageProcessor::parse(config.as_bytes(), mode).unwrap();
        assert_eq!(processor.tensor(&line, "line").unwrap_err().cause(), "image_too_large");
    }
}
