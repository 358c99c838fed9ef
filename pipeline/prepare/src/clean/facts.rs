//! What cleaning must know of a record.

use std::fs::File;
use std::ops::Range;

use vela_processor::{ImageCheck, check_image};
use vela_types::{Fingerprint, ImageRef, Language, Role};

use super::{CleanConfig, Likeness};
use crate::sources::{Fault, RawContent};

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
        let normal_text = if config.dedupe.is_empty() { String::new() } else { normal(&all_text) };
        // A record that the build will reject must not stand for a sound one.
        let asked = if config.dedupe.is_empty() || !are_sound(content) { &[][..] } else { &config.dedupe };
        for &likeness in asked {
            match likeness {
                // Texts without a letter or sign are not alike for that.
                Likeness::Text => {
                    keys.extend((!normal_text.is_empty()).then(|| (likeness, hash(normal_text.as_bytes()))))
                }
                Likeness::NearText => keys.extend(bands(&normal_text).into_iter().map(|band| (likeness, band))),
                Likeness::Image => keys.extend(image_key(&images).map(|key| (likeness, key))),
            }
        }
        Self {
            language: language_code(language(content)),
            num_chars: answers.chars().count() as u32,
            draw: id_draw(content.id()),
            keys,
        }
    }
}

/// The language that the record will have.
fn language(content: &RawContent) -> Language {
    match content {
        RawContent::Caption(caption) => Language::guess(&caption.global),
        RawContent::Dialogue(sample) => sample.language,
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

/// True if every image is there and begins as its format wants it. What only its pixels show is not looked at.
fn are_sound(content: &RawContent) -> bool {
    let check = |image: &ImageRef| {
        let check = || check_image(image, ImageCheck::Header).map_err(|fault| Fault::of_processor(&fault));
        Fault::catch(None, check).is_ok()
    };
    content.images().iter().all(check)
}

/// A text without what does not change its meaning: letters in lower case, full-width forms as ASCII, without white space,
/// quotation marks, sentence punctuation, hyphens, bullets, and `*` and `_` around words. Everything else stays, and digits stay apart.
fn normal(text: &str) -> String {
    let letters: Vec<char> = text.chars().map(narrow).filter(|letter| !is_invisible(*letter)).collect();
    let is_markup = find_markup(&letters);
    let mut out = String::with_capacity(text.len());
    for (at, &letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).map_or('\n', |at| letters[at]);
        let after = letters.get(at + 1).copied().unwrap_or('\n');
        if letter.is_whitespace() || is_markup[at] || is_punctuation(before, letter, after) {
            continue;
        }
        if letter.is_numeric() && !before.is_numeric() && out.ends_with(char::is_numeric) {
            out.push(' ');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

fn is_invisible(letter: char) -> bool {
    letter.is_control() && !letter.is_whitespace() || matches!(letter, '\u{AD}' | '\u{200B}' | '\u{2060}' | '\u{FEFF}')
}

/// True of a character between `before` and `after`, line ends at the ends of a text, that says nothing there.
fn is_punctuation(before: char, letter: char, after: char) -> bool {
    match letter {
        '.' => !(after.is_numeric() && (before.is_numeric() || !before.is_alphanumeric())),
        ',' | ':' => !(before.is_numeric() && after.is_numeric()),
        // A factorial, an inequality, a negation.
        '!' => !(before.is_numeric() || after == '=' || after.is_ascii_alphanumeric() && !before.is_alphanumeric()),
        // Feet and inches, minutes and seconds, a derivative.
        '\'' | '"' => !(before.is_numeric() || after == '('),
        '-' => before.is_alphabetic() && after.is_alphabetic() || before == '\n' && after.is_whitespace(),
        '*' | '•' => before == '\n' && after.is_whitespace(),
        '?' | ';' | '…' | '。' | '、' | '¿' | '¡' | '—' | '―' | '`' => true,
        '“' | '”' | '„' | '‘' | '’' | '«' | '»' | '「' | '」' | '『' | '』' => true,
        _ => false,
    }
}

/// Which characters are `*` and `_` around words: equal runs in pairs on one line, outside of words on their outer side.
fn find_markup(letters: &[char]) -> Vec<bool> {
    let mut is_markup = vec![false; letters.len()];
    let is_outside = |letter: char| {
        letter.is_whitespace()
            || letter.is_alphabetic() && !letter.is_ascii()
            || ".,:;!?'\"()[]*_。、“”‘’".contains(letter)
    };
    let (mut open, mut at): (Vec<Range<usize>>, usize) = (Vec::new(), 0);
    while at < letters.len() {
        let sign = letters[at];
        let end = at + letters[at..].iter().take_while(|letter| **letter == sign).count();
        let before = at.checked_sub(1).map_or('\n', |at| letters[at]);
        let after = letters.get(end).copied().unwrap_or('\n');
        match sign {
            '\n' => open.clear(),
            '*' | '_' => {
                let is_pair = |run: &Range<usize>| letters[run.start] == sign && run.len() == end - at;
                let first = open.iter().rposition(is_pair).filter(|_| !before.is_whitespace() && is_outside(after));
                if let Some(first) = first {
                    is_markup[open[first].clone()].fill(true);
                    is_markup[at..end].fill(true);
                    open.truncate(first);
                } else if is_outside(before) && !after.is_whitespace() {
                    open.push(at..end);
                }
            }
            _ => {}
        }
        at = end;
    }
    is_markup
}

/// Full-width forms and the dashes that stand for a minus as ASCII.
fn narrow(letter: char) -> char {
    match letter {
        '\u{FF01}'..='\u{FF5E}' => char::from_u32(letter as u32 - 0xFEE0).unwrap_or(letter),
        '\u{2013}' | '\u{2212}' => '-',
        letter => letter,
    }
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
    use crate::sources::RawCaption;

    fn shared_bands(left: &str, right: &str) -> usize {
        let right = bands(&normal(right));
        bands(&normal(left)).iter().filter(|band| right.contains(band)).count()
    }

    #[test]
    fn the_language_is_the_one_that_the_record_will_have() {
        let caption = RawCaption {
            id: "a/b/1".into(),
            source: "sa1b",
            image: ImageRef::Path("1.jpg".into()),
            global: "A cat on a red sofa.".into(),
            locals: vec!["一只黑色的猫坐在红色的沙发上面看着窗外的树和天空".into()],
            prompts: &[],
        };
        let config = CleanConfig::default();
        let facts = Facts::of(&RawContent::Caption(caption.clone()), &config);
        assert_eq!(facts.language, language_code(Language::En));
        let sample = crate::dialogue::to_sample(RawContent::Caption(caption), crate::DialogueMode::Caption.into(), 0);
        assert_eq!(facts.language, language_code(sample.language));
        let other = vela_types::Sample { language: Language::Other, ..sample };
        assert_eq!(Facts::of(&RawContent::Dialogue(other), &config).language, language_code(Language::Other));
    }

    #[test]
    fn what_changes_the_meaning_of_a_text_is_kept() {
        for (left, right) in [
            ("3.5", "35"),
            ("-5", "5"),
            ("x - y", "x + y"),
            ("1,5", "15"),
            ("1 5", "15"),
            ("1;5", "15"),
            ("12:30", "1230"),
            ("a < b", "a > b"),
            ("5%", "5"),
            ("C++", "C"),
            ("a = b", "a b"),
            ("2/3", "23"),
            (".5", "5"),
            ("3–5", "35"),
            ("2*3", "23"),
            ("x^{2}", "x_{2}"),
            ("a != b", "a = b"),
            ("C#", "C"),
            ("5!", "5"),
            ("!x", "x"),
            ("A ∪ B", "A ∩ B"),
            ("p ∧ q", "p ∨ q"),
            ("∃x", "∀x"),
            ("← left", "→ left"),
            ("✓ done", "✗ done"),
            ("a & b", "a | b"),
            ("(a)(b)", "(a b)"),
            ("2 * 3", "2 3"),
            ("a * b * c", "a b c"),
            ("C* algebra", "C algebra"),
            ("f'(x)", "f(x)"),
            ("5'", "5"),
            ("snake_case", "snakecase"),
            ("~p", "p"),
            ("क्", "क"),
        ] {
            assert_ne!(normal(left), normal(right), "{left} and {right}");
        }
        for (left, right) in [
            ("A cat, a dog.", "a cat a dog"),
            ("Ｒｅｄ　ｃａｔ！", "red cat"),
            ("twenty-one", "twenty one"),
            ("- a cat\n- a dog", "a cat\na dog"),
            ("一只猫。", "一只猫"),
            ("3．5", "3.5"),
            ("\u{2212}5", "-5"),
            ("There are 3, 4 or 5.", "there are 3 4 or 5"),
            ("**bold**", "bold"),
            ("a *b* and __c__, (_d_).", "a b and c, (d)."),
            ("这是**粗体**字", "这是粗体字"),
            ("* a cat\n• a dog", "a cat\na dog"),
            ("“It’s red!” he said…", "its red he said"),
            ("好！一只猫？", "好。一只猫"),
            ("a\u{200B}b", "ab"),
        ] {
            assert_eq!(normal(left), normal(right), "{left} and {right}");
        }
    }

    #[test]
    fn texts_without_a_letter_and_records_without_their_image_are_like_none() {
        let config = CleanConfig { dedupe: vec![Likeness::Text, Likeness::NearText], ..CleanConfig::default() };
        let keys = |text: &str, image: &str| {
            let (id, images) = ("a/b/1".to_owned(), vec![ImageRef::Path(image.to_owned())]);
            let turns = vec![vela_types::Turn::user(text)];
            let images = if image.is_empty() { vec![] } else { images };
            let sample = vela_types::Sample { id, source: "a".into(), language: Language::En, images, turns };
            Facts::of(&RawContent::Dialogue(sample), &config).keys
        };
        assert_eq!(keys("?!...", ""), []);
        assert_eq!(keys("A cat.", "/nowhere/1.png"), []);
        assert_eq!(keys("A cat.", "").len(), 1 + NUM_BANDS);
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
