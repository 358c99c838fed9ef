//! What cleaning must know of a record.

use std::fs::File;

use vela_types::{Fingerprint, ImageRef, Language, Role};

use super::{CleanConfig, Likeness};
use crate::sources::RawContent;

/// Characters of a shingle, the unit in which texts are compared.
const SHINGLE_CHARS: usize = 5;
/// Bands of a MinHash signature, and the hashes of each: texts of similarity 0.8 share a band with probability 0.95,
/// of 0.5 with 0.06 (1 - (1 - s^8)^16).
const NUM_BANDS: usize = 16;
const BAND_HASHES: usize = 8;

/// The row of one record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    /// Place of its language in `Language::ALL`-like order: 0 Chinese, 1 English, 2 other.
    pub(super) language: u8,
    /// Characters of the answers or captions.
    pub(super) num_chars: u32,
    /// A number in [0, 1) that its id decides.
    pub(super) draw: f64,
    /// Hashes that two records share if they are alike.
    pub(super) keys: Vec<(Likeness, u64)>,
}

impl Facts {
    /// The facts that `config` asks for.
    pub(super) fn of(content: &RawContent, config: &CleanConfig) -> Self {
        let (answers, all_text, images) = texts(content);
        let mut keys = Vec::new();
        for &likeness in &config.dedupe {
            match likeness {
                Likeness::Text => keys.push((likeness, hash(normal(&all_text).as_bytes()))),
                Likeness::NearText => keys.extend(bands(&normal(&all_text)).into_iter().map(|band| (likeness, band))),
                Likeness::Image => keys.extend(image_key(&images).map(|key| (likeness, key))),
            }
        }
        Self {
            language: language_code(Language::guess(&all_text)),
            num_chars: answers.chars().count() as u32,
            draw: id_draw(content.id()),
            keys,
        }
    }
}

/// The code of a language in [`Facts::language`].
pub(super) fn language_code(language: Language) -> u8 {
    match language {
        Language::Zh => 0,
        Language::En => 1,
        Language::Other => 2,
    }
}

/// A number in [0, 1) from the hash of an id: the same in every build, whatever else is built with it.
pub(super) fn id_draw(id: &str) -> f64 {
    (hash(id.as_bytes()) >> 11) as f64 / (1u64 << 53) as f64
}

/// The answers, all text, and the images of a record.
fn texts(content: &RawContent) -> (String, String, Vec<&ImageRef>) {
    match content {
        RawContent::Caption(caption) => {
            let all = [std::slice::from_ref(&caption.global), &caption.locals].concat().join("\n");
            (all.clone(), all, vec![&caption.image])
        }
        RawContent::Dialogue(sample) => {
            let join = |wanted: &dyn Fn(Role) -> bool| {
                let turns = sample.turns.iter().filter(|turn| wanted(turn.role)).map(|turn| turn.text.as_str());
                turns.collect::<Vec<_>>().join("\n")
            };
            (join(&|role| role == Role::Assistant), join(&|_| true), sample.images.iter().collect())
        }
    }
}

/// Letters and digits in lower case, full-width forms as ASCII: what does not change a text's meaning does not make it another.
fn normal(text: &str) -> String {
    let narrow = |letter: char| match letter {
        '\u{FF01}'..='\u{FF5E}' => char::from_u32(letter as u32 - 0xFEE0).unwrap_or(letter),
        letter => letter,
    };
    text.chars().map(narrow).filter(|letter| letter.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// MinHash bands of a text (Broder 1997): in each of 128 orders of all shingles the text's first one, eight to a band.
fn bands(text: &str) -> Vec<u64> {
    let letters: Vec<char> = text.chars().collect();
    let shingles: Vec<u64> = match letters.len() {
        0 => return vec![],
        len => (0..=len.saturating_sub(SHINGLE_CHARS))
            .map(|at| hash(letters[at..len.min(at + SHINGLE_CHARS)].iter().collect::<String>().as_bytes()))
            .collect(),
    };
    let first = |order: u64| shingles.iter().map(|shingle| shuffle(shingle ^ shuffle(order))).min().unwrap_or_default();
    let band = |band: usize| {
        let hashes = (0..BAND_HASHES).map(|at| first((band * BAND_HASHES + at) as u64));
        hash(&std::iter::once(band as u64).chain(hashes).flat_map(u64::to_le_bytes).collect::<Vec<u8>>())
    };
    (0..NUM_BANDS).map(band).collect()
}

/// SplitMix64's output function: another order of all numbers for each number mixed in.
fn shuffle(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// A hash over the content of all images; none without images, or if one cannot be read (the build says why).
fn image_key(images: &[&ImageRef]) -> Option<u64> {
    let mut hasher = blake3::Hasher::new();
    for image in images {
        match image {
            ImageRef::Path(path) => _ = hasher.update_reader(File::open(path).ok()?).ok()?,
            ImageRef::Bytes { data, .. } => _ = hasher.update(data),
            ImageRef::Url(_) => return None,
        }
        hasher.update(b"\n");
    }
    (!images.is_empty()).then(|| Fingerprint(*hasher.finalize().as_bytes()).to_seed())
}

fn hash(bytes: &[u8]) -> u64 {
    Fingerprint(*blake3::hash(bytes).as_bytes()).to_seed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared_bands(left: &str, right: &str) -> usize {
        let right = bands(&normal(right));
        bands(&normal(left)).iter().filter(|band| right.contains(band)).count()
    }

    #[test]
    fn near_texts_share_bands_and_others_do_not() {
        let text =
            "A wooden table stands in front of a window, and on it lie two red apples, a knife and a folded newspaper.";
        assert_eq!(shared_bands(text, &text.to_uppercase().replace(", ", "  ")), NUM_BANDS);
        assert!(shared_bands(text, &text.replace("folded", "folding")) > 0);
        assert_eq!(
            shared_bands(text, "Three dogs run along a beach while a man in a yellow coat throws a ball far out."),
            0
        );
        assert_eq!(bands(""), Vec::<u64>::new());
    }

    #[test]
    fn draws_are_even_and_fixed() {
        let draws: Vec<f64> = (0..4000).map(|index| id_draw(&format!("llava/a/{index}"))).collect();
        let below = draws.iter().filter(|&&draw| draw < 0.1).count();
        assert!((320..480).contains(&below), "{below}");
        assert_eq!(id_draw("llava/a/7"), draws[7]);
    }
}
