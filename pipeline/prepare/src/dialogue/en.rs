//! What English captions answer. Sentences are read word by word with fixed lists; no parsing, no guessing.

use super::en_words::*;
use super::rules::{Fact, Rules};
use super::wording::Kind;

pub(super) static RULES: Rules = Rules { split_first, part_name, facts };

const MAX_PHRASE_WORDS: usize = 4;
/// Longer sentences are answered by their clause.
const MAX_ANSWER_WORDS: usize = 45;
/// Words that may stand between someone and the verb: `a man in a blue shirt is riding`.
const MAX_GAP_WORDS: usize = 6;

fn split_first(text: &str) -> (&str, &str) {
    text.split_at(sentence_end(text))
}

/// Where the first sentence ends: after a mark and closing quotes, before a space or the end.
fn sentence_end(text: &str) -> usize {
    let closes = |next: char| matches!(next, '"' | '\'' | '”' | '’' | ')');
    text.match_indices(['.', '!', '?'])
        .map(|(at, _)| at + 1)
        .map(|at| text.len() - text[at..].trim_start_matches(closes).len())
        .find(|&end| text[end..].starts_with(char::is_whitespace) && !ends_in_short_form(&text[..end]))
        .unwrap_or(text.len())
}

/// `Mr.` and initials end no sentence.
fn ends_in_short_form(text: &str) -> bool {
    let word = text.strip_suffix('.').and_then(|text| text.split_whitespace().next_back()).unwrap_or("");
    SHORT_FORMS.contains(&word) || word.len() == 1 && word.chars().all(|next| next.is_ascii_uppercase())
}

fn part_name(text: &str) -> Option<String> {
    let words = words(text);
    (0..words.len().min(2)).find_map(|at| phrase(text, &words, at)).map(|phrase| phrase.text.to_owned())
}

/// A word without the marks around it.
#[derive(Clone, Debug)]
struct Word {
    lower: String,
    start: usize,
    end: usize,
    /// A mark follows: no phrase goes on.
    ends_clause: bool,
    /// A quotation mark stands before.
    opens_quote: bool,
}

fn words(text: &str) -> Vec<Word> {
    let mut found = Vec::new();
    let mut from = 0;
    for part in text.split_whitespace() {
        let at = from + text[from..].find(part).expect("a part of the text stands in it");
        from = at + part.len();
        let core = part.trim_matches(|next: char| !next.is_alphanumeric());
        let Some(inside) = part.find(core).filter(|_| !core.is_empty()) else { continue };
        let (start, end) = (at + inside, at + inside + core.len());
        let ends_clause = text[end..from].contains([',', '.', ';', ':', '!', '?', ')', '—']);
        let opens_quote = text[at..start].contains(['"', '“', '\'', '‘']);
        found.push(Word { lower: core.to_lowercase(), start, end, ends_clause, opens_quote });
    }
    found
}

/// A noun with the words that describe it, no article.
#[derive(Clone, Debug)]
struct Phrase<'a> {
    text: &'a str,
    /// Index of the word after it.
    next: usize,
    plural: bool,
    being: bool,
}

impl Phrase<'_> {
    fn be(&self) -> &'static str {
        if self.plural { "are" } else { "is" }
    }
}

/// The phrase that begins at word `at`: up to four lower-case words, the last of them a known noun.
fn phrase<'a>(text: &'a str, words: &[Word], at: usize) -> Option<Phrase<'a>> {
    let at = at + usize::from(words.get(at).is_some_and(|word| ARTICLES.contains(&word.lower.as_str())));
    let mut best = None;
    for (offset, word) in words[at.min(words.len())..].iter().take(MAX_PHRASE_WORDS).enumerate() {
        let lower = word.lower.as_str();
        let is_start = word.start == 0;
        let ends = PHRASE_ENDS.contains(&lower) || PREPOSITIONS.contains(&lower) || STAYS.contains(&lower);
        let is_plain = text[word.start..word.end].chars().all(|next| next.is_ascii_lowercase() || next == '-');
        if ends || NUMBERS.contains(&lower) || !(is_plain || is_start) {
            break;
        }
        match noun(lower) {
            Some((plural, being)) => {
                let text = &text[words[at].start..word.end];
                best = Some(Phrase { text, next: at + offset + 1, plural, being });
            }
            None if best.is_some() => break,
            None => {}
        }
        if word.ends_clause {
            break;
        }
    }
    best.filter(|phrase| phrase.text.chars().next().is_some_and(|first| first.is_ascii_lowercase()))
}

/// Whether a word is a known noun: plural, and one who acts.
fn noun(word: &str) -> Option<(bool, bool)> {
    let known = |word: &str| {
        let being = BEINGS.contains(&word);
        (being || THINGS.contains(&word)).then_some(being)
    };
    if let Some(being) = known(word) {
        return Some((PLURALS.contains(&word), being));
    }
    if PLURALS.contains(&word) {
        return Some((true, false));
    }
    let stems = [("ies", "y"), ("es", ""), ("s", ""), ("ves", "fe")];
    stems.iter().find_map(|(ending, stem)| {
        let singular = format!("{}{stem}", word.strip_suffix(ending)?);
        known(&singular).map(|being| (true, being))
    })
}

fn facts(texts: &[&str]) -> Vec<Vec<Fact>> {
    texts.iter().flat_map(|text| text_facts(text)).collect()
}

fn text_facts(mut text: &str) -> Vec<Vec<Fact>> {
    let mut groups = Vec::new();
    let mut antecedent = None;
    while !text.trim().is_empty() {
        let (first, rest) = split_first(text);
        let sentence = Sentence { text: first.trim(), words: words(first.trim()), antecedent };
        groups.push(sentence.facts());
        antecedent = sentence.only_being();
        text = rest;
    }
    groups
}

/// One sentence, and who a pronoun at its start means, with its verb.
struct Sentence<'a> {
    text: &'a str,
    words: Vec<Word>,
    antecedent: Option<(String, bool)>,
}

impl<'a> Sentence<'a> {
    fn facts(&self) -> Vec<Fact> {
        let mut facts = self.places();
        facts.extend(self.topics());
        for at in 0..self.words.len() {
            facts.extend(self.count(at));
            facts.extend(self.colour(at));
            facts.extend(self.material(at));
            facts.extend(self.writing(at));
            if self.starts_phrase(at) {
                facts.extend(self.subject(at));
            }
        }
        facts.extend(self.pronoun());
        facts
    }

    fn fact<const N: usize>(&self, kind: Kind, slots: [&str; N], short: &str) -> Fact {
        let at = short.as_ptr() as usize - self.text.as_ptr() as usize;
        let full = if self.words.len() <= MAX_ANSWER_WORDS { self.text } else { self.clause(at) };
        Fact { kind, slots: slots.map(str::to_owned).to_vec(), short: short.to_owned(), full: full.to_owned() }
    }

    fn lower(&self, at: usize) -> &str {
        self.words.get(at).map_or("", |word| &word.lower)
    }

    /// The clause around byte `at`.
    fn clause(&self, at: usize) -> &'a str {
        let marks = [',', ';', ':'];
        let start = self.text[..at].rfind(marks).map_or(0, |mark| mark + 1);
        let end = self.text[at..].find(marks).map_or(self.text.len(), |mark| at + mark);
        self.text[start..end].trim()
    }

    /// From word `at` to the end of its clause, marks left out.
    fn rest_of_clause(&self, at: usize) -> &'a str {
        let last = self.words[at..].iter().find(|word| word.ends_clause).or(self.words.last());
        &self.text[self.words[at].start..last.map_or(self.text.len(), |word| word.end)]
    }

    /// True where a noun phrase with an article or a number begins.
    fn starts_phrase(&self, at: usize) -> bool {
        ARTICLES.contains(&self.lower(at)) || NUMBERS.contains(&self.lower(at))
    }

    /// The phrase after the article or number at `at`.
    fn phrase_at(&self, at: usize) -> Option<Phrase<'a>> {
        let at = at + usize::from(NUMBERS.contains(&self.lower(at)));
        phrase(self.text, &self.words, at)
    }

    /// `Three dogs play` answers `How many dogs are there?`, unless others are named before.
    fn count(&self, at: usize) -> Option<Fact> {
        let word = &self.words[at];
        let is_number = NUMBERS.contains(&word.lower.as_str()) || word.lower.parse::<u8>().is_ok();
        let is_part = ["of", "other", "more", "another", "the"].contains(&self.lower(at.wrapping_sub(1)));
        let phrase = phrase(self.text, &self.words, at + 1).filter(|phrase| phrase.plural)?;
        let named_apart = ARTICLES.contains(&self.lower(at + 1)) || word.ends_clause || word.lower == "one";
        let sound = is_number && !is_part && !named_apart;
        sound.then(|| self.fact(Kind::Count, [phrase.text], &self.text[word.start..word.end]))
    }

    /// `a red brick house` and `the house is red`.
    fn colour(&self, at: usize) -> Option<Fact> {
        let is_colour = |at: usize| COLOURS.contains(&self.lower(at));
        let shaded = at > 0 && SHADES.contains(&self.lower(at - 1));
        let first = if shaded { at - 1 } else { at };
        let before = if first > 0 { self.lower(first - 1) } else { "" };
        let joined = ["and", "or"].contains(&before) || first > 0 && is_colour(first - 1);
        if !is_colour(at) || joined || is_colour(at + 1) || ["and", "or"].contains(&self.lower(at + 1)) {
            return None;
        }
        let word = &self.words[at];
        let colour = &self.text[self.words[first].start..word.end];
        let listed = first > 0 && self.words[first - 1].ends_clause;
        if ["is", "are"].contains(&before) && word.ends_clause {
            let subject = (0..first - 1).rev().find_map(|at| self.phrase_at(at).filter(|np| np.next == first - 1))?;
            return Some(self.fact(Kind::Colour, [subject.text, subject.be()], colour));
        }
        let phrase = phrase(self.text, &self.words, at + 1).filter(|_| !listed && !word.ends_clause)?;
        let named_apart = ARTICLES.contains(&self.lower(at + 1));
        (!named_apart).then(|| self.fact(Kind::Colour, [phrase.text, phrase.be()], colour))
    }

    /// `a wooden fence` and `a fence made of wood`.
    fn material(&self, at: usize) -> Option<Fact> {
        let word = &self.words[at];
        if word.lower == "made" && ["of", "from"].contains(&self.lower(at + 1)) && at + 2 < self.words.len() {
            let after =
                |np: &Phrase<'_>| np.next == at || np.next + 1 == at && ["is", "are"].contains(&self.lower(at - 1));
            let subject = (0..at).rev().find_map(|at| self.phrase_at(at).filter(after))?;
            return Some(self.fact(Kind::Material, [subject.text, subject.be()], self.rest_of_clause(at + 2)));
        }
        let joined = at > 0 && (["and", "or"].contains(&self.lower(at - 1)) || noun(self.lower(at - 1)).is_some());
        if !MATERIALS.contains(&word.lower.as_str())
            || word.ends_clause
            || joined
            || ARTICLES.contains(&self.lower(at + 1))
        {
            return None;
        }
        let phrase = phrase(self.text, &self.words, at + 1).filter(|phrase| !phrase.being)?;
        Some(self.fact(Kind::Material, [phrase.text, phrase.be()], &self.text[word.start..word.end]))
    }

    /// `a sign that reads "OPEN"` answers `What is written on the sign?`.
    fn writing(&self, at: usize) -> Option<Fact> {
        if !WRITES.contains(&self.lower(at)) || !self.words.get(at + 1)?.opens_quote {
            return None;
        }
        let open = self.words[at + 1].start - self.text[..self.words[at + 1].start].chars().next_back()?.len_utf8();
        let mark = self.text[open..].chars().next()?;
        let close = match mark {
            '“' => '”',
            '‘' => '’',
            mark => mark,
        };
        let inside = open + mark.len_utf8();
        let end = inside + self.text[inside..].find(close)? + close.len_utf8();
        let quoted = &self.text[open..end];
        let host = (0..at).rev().take(MAX_GAP_WORDS).find_map(|at| self.phrase_at(at).filter(|np| !np.being));
        Some(match host {
            Some(host) => self.fact(Kind::Text, [host.text], quoted),
            None => self.fact(Kind::LooseText, [], quoted),
        })
    }

    /// What a subject that begins at word `at` does, wears, holds, and where it is.
    fn subject(&self, at: usize) -> Vec<Fact> {
        let Some(phrase) = self.phrase_at(at) else { return Vec::new() };
        let mut facts = Vec::from_iter(self.stay(&phrase));
        if phrase.being && !self.words[phrase.next - 1].ends_clause {
            let others = |at: &usize| !noun(self.lower(*at)).is_some_and(|(_, being)| being);
            let gap: Vec<usize> = (phrase.next..self.words.len()).take(MAX_GAP_WORDS).take_while(others).collect();
            facts.extend(self.deeds(phrase.text, phrase.be(), &gap));
        }
        facts
    }

    /// What the words at `gap`, which follow someone, say of it: nothing after a comma, one answer per kind.
    fn deeds(&self, who: &str, be: &str, gap: &[usize]) -> Vec<Fact> {
        let mut facts: Vec<Fact> = Vec::new();
        for &at in gap {
            let word = self.lower(at);
            let kind = match word {
                _ if at + 1 >= self.words.len() => None,
                _ if WEARS.contains(&word) => Some(Kind::Wearing),
                _ if HOLDS.contains(&word) => Some(Kind::Holding),
                _ if word.len() > 4
                    && word.ends_with("ing")
                    && self.lower(at - 1) == be
                    && !NO_ACTIONS.contains(&word) =>
                {
                    Some(Kind::Action)
                }
                _ => None,
            };
            if let Some(kind) = kind.filter(|kind| facts.iter().all(|fact| fact.kind != *kind)) {
                let from = if kind == Kind::Action { at } else { at + 1 };
                facts.push(self.fact(kind, [who, be], self.rest_of_clause(from)));
            }
            if self.words[at].ends_clause {
                break;
            }
        }
        facts
    }

    /// `He is wearing a hat` after a sentence with one man.
    fn pronoun(&self) -> Vec<Fact> {
        match &self.antecedent {
            Some((who, plural)) if PRONOUNS.contains(&self.lower(0)) && *plural == (self.lower(0) == "they") => {
                let gap: Vec<usize> = (1..self.words.len().min(MAX_GAP_WORDS)).collect();
                self.deeds(who, if *plural { "are" } else { "is" }, &gap)
            }
            _ => Vec::new(),
        }
    }

    /// `A white cat is sitting on the fence` answers `Where is the white cat?`.
    fn stay(&self, phrase: &Phrase<'_>) -> Option<Fact> {
        if self.words[phrase.next - 1].ends_clause {
            return None;
        }
        let num_verbs =
            self.words[phrase.next..].iter().take_while(|word| STAYS.contains(&word.lower.as_str())).count();
        let at = phrase.next + num_verbs;
        let says_where = num_verbs > 0 && PREPOSITIONS.contains(&self.lower(at)) && at + 1 < self.words.len();
        says_where.then(|| self.fact(Kind::Where, [phrase.text, phrase.be()], self.rest_of_clause(at)))
    }

    /// `In the background, mountains rise` answers `What is in the background?`.
    fn places(&self) -> Vec<Fact> {
        let lower = self.text.to_ascii_lowercase();
        let found = PLACES.iter().filter_map(|place| Some((lower.find(place)?, *place)));
        let Some((at, place)) = found.min_by_key(|&(at, place)| (at, std::cmp::Reverse(place.len()))) else {
            return Vec::new();
        };
        let end = at + place.len();
        let is_word = !lower[end..].starts_with(|next: char| next.is_alphanumeric() || next == '-');
        let rest = lower[end..].trim_start_matches(" side");
        let slot = match rest.strip_prefix(" of the ").map(|of| (of, words(of))) {
            Some((of, words)) if !["image", "picture", "photo", "frame", "scene"].contains(&word_at(&words, 0)) => {
                match phrase(of, &words, 0) {
                    Some(phrase) => format!("{} of the {}", &lower[at..lower.len() - rest.len()], phrase.text),
                    None => return Vec::new(),
                }
            }
            _ if place.starts_with("to the") && !rest.starts_with(" of the ") => return Vec::new(),
            _ => place.to_owned(),
        };
        let far = place == "in the background" || place == "in the distance";
        let kind = if far { Kind::Background } else { Kind::PlaceContent };
        if is_word { vec![self.fact(kind, [&slot], self.text)] } else { Vec::new() }
    }

    fn topics(&self) -> Vec<Fact> {
        let lower = self.text.to_ascii_lowercase();
        let speaks_of = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        TOPICS.iter().filter(|(_, words)| speaks_of(words)).map(|(kind, _)| self.fact(*kind, [], self.text)).collect()
    }

    /// The one who acts in this sentence, if there is one alone.
    fn only_being(&self) -> Option<(String, bool)> {
        let beings: Vec<Phrase<'_>> = (0..self.words.len())
            .filter(|&at| self.starts_phrase(at))
            .filter_map(|at| self.phrase_at(at).filter(|phrase| phrase.being))
            .collect();
        match &beings[..] {
            [one] => Some((one.text.to_owned(), one.plural)),
            _ => None,
        }
    }
}

fn word_at(words: &[Word], at: usize) -> &str {
    words.get(at).map_or("", |word| &word.lower)
}
