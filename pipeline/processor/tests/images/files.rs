//! Every file is read to Pillow's pixels or refused where Pillow refuses it.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vela_processor::codec;

use crate::hash::sha256;
use crate::{golden, read_json};

const BY_NAME: &str = "a format that is refused by name";
const TEXT_BOMB: &str = "Pillow unpacks text and profiles up to a limit; Vela never does, and the picture is sound";
const MASKS: &str = "Pillow knows the usual bit fields only";
const TIFF_MODE: &str =
    "a TIFF mode that is refused by name: gray with alpha, palette, 4 bits, YCbCr, Lab, CMYK, 32 bits";

/// Files on which Vela and Pillow disagree, each with the reason (`docs/processor.md` has the same list). A name ends
/// at `*` where all that begin so are meant.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("avif.avif", BY_NAME),
    ("jpeg2000.*", BY_NAME),
    ("pillow/avif_hopper.avif", BY_NAME),
    ("png_ztxt_bomb.png", TEXT_BOMB),
    ("png_iccp_bomb.png", TEXT_BOMB),
    ("pillow/png_decompression_dos.png", TEXT_BOMB),
    ("bmp_masks_rgbx.bmp", MASKS),
    ("bmp_masks_odd.bmp", MASKS),
    (
        "bmp_rle8_jump.bmp",
        "Pillow refuses run-length data that jumps over pixels at its end; Vela leaves them at colour 0",
    ),
    ("tiff_LA_*", TIFF_MODE),
    ("tiff_P_*", TIFF_MODE),
    ("tiff_CMYK_*", TIFF_MODE),
    ("tiff_YCbCr_*", TIFF_MODE),
    ("tiff_LAB_*", TIFF_MODE),
    ("tiff_I_*", TIFF_MODE),
    ("tiff_F_*", TIFF_MODE),
    ("tiff_gray4.tiff", TIFF_MODE),
    (
        "tiff_RGB_jpeg.tiff",
        "JPEG inside TIFF is refused by name: the decoder at hand would not give libjpeg-turbo's pixels",
    ),
];

fn is_meant(pattern: &str, file: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == file, |start| file.starts_with(start))
}

/// How a file's outcome differs from Pillow's, if it does.
fn difference(path: &Path, expected: &Value) -> Option<String> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let pillow_reads = expected["error"].is_null();
    match codec::decode_rgb(&fs::read(path).unwrap(), name) {
        Err(error) => pillow_reads.then(|| format!("refused: {error}")),
        Ok(_) if !pillow_reads => Some(format!("read, Pillow: {}", expected["error"])),
        Ok(image) if (image.width, image.height) != extent(expected) => {
            Some(format!("{} x {} instead of {:?}", image.width, image.height, extent(expected)))
        }
        Ok(image) => (sha256(&image.data) != expected["rgb"].as_str().unwrap()).then(|| "other pixels".into()),
    }
}

fn extent(expected: &Value) -> (u32, u32) {
    let side = |key: &str| expected[key].as_u64().unwrap() as u32;
    (side("width"), side("height"))
}

/// Compares all files under `root`; every difference must be an exception, and every exception's files must differ.
fn compare(root: &Path, expected: &Value) {
    let expected = expected.as_object().unwrap();
    let mut wrong = Vec::new();
    for (name, verdict) in expected {
        let exception = EXCEPTIONS.iter().find(|(pattern, _)| is_meant(pattern, name));
        match (difference(&root.join(name), verdict), exception) {
            (Some(difference), None) => wrong.push(format!("{name}: {difference}")),
            (None, Some((_, reason))) => wrong.push(format!("{name}: an exception that no longer holds: {reason}")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ: {wrong:#?}", wrong.len(), expected.len());
}

#[test]
fn files_of_every_mode_and_format_are_read_as_pillow_reads_them() {
    compare(&golden("files"), &read_json("files.json")["own"]);
}

#[test]
fn real_tricky_files_are_read_as_pillow_reads_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/images_tricky");
    if !root.is_dir() {
        eprintln!("skipped: {} is absent", root.display());
        return;
    }
    compare(&root, &read_json("files.json")["tricky"]);
}

#[test]
fn every_exception_names_a_file() {
    let expected = read_json("files.json");
    let files = |set: &str| expected[set].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let files = [files("own"), files("tricky")].concat();
    for (pattern, _) in EXCEPTIONS {
        assert!(files.iter().any(|file| is_meant(pattern, file)), "{pattern}");
    }
}

#[test]
fn a_header_check_refuses_nothing_that_is_read() {
    for name in read_json("files.json")["own"].as_object().unwrap().keys() {
        let bytes = fs::read(golden("files").join(name)).unwrap();
        if codec::decode_rgb(&bytes, name).is_ok() {
            codec::check_header(&bytes, name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

#[test]
fn formats_that_are_not_decoded_are_refused_by_name() {
    for (file, format) in [("avif.avif", "AVIF"), ("jpeg2000.jp2", "JPEG 2000"), ("jpeg2000.j2k", "JPEG 2000")] {
        let error = codec::decode_rgb(&fs::read(golden("files").join(file)).unwrap(), file).unwrap_err();
        assert_eq!(error.cause(), "unsupported_image");
        assert!(error.to_string().contains(format), "{error}");
    }
}
