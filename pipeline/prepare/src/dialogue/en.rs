//! What English captions answer, by fixed word lists.

use super::rules::{Fact, Rules, drop_ambiguous};

pub(super) static RULES: Rules = Rules {
    overall: &["What does the image show?", "Sum up the image."],
    details: &["What else can be seen?", "Describe the rest in detail."],
    first_part: "Describe one part of the image.",
    next_part: "Describe another part of the image.",
    split_first,
    facts,
};

const COLOURS: [&str; 14] = [
    "red", "green", "blue", "yellow", "purple", "black", "white", "gray", "grey", "orange", "pink", "brown", "silver",
    "golden",
];
const NUMBERS: [&str; 11] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "several"];
const PREPOSITIONS: [&str; 9] = ["in", "on", "at", "under", "behind", "beside", "near", "next", "above"];
const VERBS: [&str; 8] = ["is", "are", "sits", "stands", "sitting", "standing", "lying", "parked"];
/// A noun phrase ends before one of these, before a preposition and before a verb.
const PHRASE_ENDS: [&str; 22] = [
    "and", "or", "of", "with", "that", "which", "while", "to", "from", "a", "an", "the", "has", "have", "was", "were",
    "by", "for", "into", "over", "down", "up",
];
const MAX_PHRASE_WORDS: usize = 3;

fn split_first(text: &str) -> (&str, &str) {
    let ends = text.match_indices(['.', '!', '?']).map(|(at, _)| at + 1);
    match ends.into_iter().find(|&end| text[end..].starts_with(char::is_whitespace)) {
        Some(end) => text.split_at(end),
        None => (text, ""),
    }
}

fn facts(texts: &[&str]) -> Vec<Vec<Fact>> {
    let clauses = texts.iter().flat_map(|text| text.split(['.', '!', '?', ';', ',', '\n']));
    let mut groups: Vec<Vec<Fact>> = clauses.flat_map(clause_groups).collect();
    drop_ambiguous(&mut groups);
    groups
}

/// Counts and colours are groups of their own, a place is another.
fn clause_groups(clause: &str) -> Vec<Vec<Fact>> {
    let words: Vec<&str> = clause.split_whitespace().collect();
    let mut groups: Vec<Vec<Fact>> = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let lower = word.to_ascii_lowercase();
        let after = phrase(&words[at + 1..]);
        if COLOURS.contains(&lower.as_str()) && !after.is_empty() {
            groups.push(vec![fact(format!("What color is the {}?", after.join(" ")), word)]);
        }
        if (NUMBERS.contains(&lower.as_str()) || is_count(&lower)) && after.last().is_some_and(|noun| is_plural(noun)) {
            groups.push(vec![fact(format!("How many {} are there?", after.join(" ")), word)]);
        }
    }
    groups.extend(place(clause, &words).map(|fact| vec![fact]));
    groups
}

fn fact(question: String, answer: &str) -> Fact {
    Fact { question, answer: answer.to_owned() }
}

/// `A white cat is sitting on the fence` answers `Where is the white cat?`.
fn place(clause: &str, words: &[&str]) -> Option<Fact> {
    let article = words.first()?.to_ascii_lowercase();
    if !["a", "an", "the"].contains(&article.as_str()) {
        return None;
    }
    let subject = phrase(&words[1..]);
    let mut after = &words[1 + subject.len()..];
    let num_verbs = after.iter().take_while(|word| VERBS.contains(word)).count();
    after = &after[num_verbs..];
    let preposition = after.first().filter(|word| PREPOSITIONS.contains(word))?;
    if subject.is_empty() || num_verbs == 0 || after.len() < 2 {
        return None;
    }
    let start = preposition.as_ptr() as usize - clause.as_ptr() as usize;
    Some(fact(format!("Where is the {}?", subject.join(" ")), clause[start..].trim()))
}

/// The words of a noun phrase that starts here.
fn phrase<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let is_end = |word: &str| {
        let known = PHRASE_ENDS.contains(&word) || PREPOSITIONS.contains(&word) || VERBS.contains(&word);
        known || word.ends_with("ing") || word.ends_with("ed") || !word.chars().all(|next| next.is_ascii_lowercase())
    };
    let mut taken: Vec<&str> =
        words.iter().copied().take_while(|word| !is_end(word)).take(MAX_PHRASE_WORDS + 1).collect();
    // A phrase that does not end soon is no plain noun phrase; its plural or first word is the safest cut.
    if let Some(plural) = taken.iter().position(|word| is_plural(word)) {
        taken.truncate(plural + 1);
    }
    if taken.len() > MAX_PHRASE_WORDS {
        taken.clear();
    }
    taken
}

fn is_count(word: &str) -> bool {
    word.parse::<u8>().is_ok()
}

fn is_plural(noun: &str) -> bool {
    let irregular = ["people", "men", "women", "children", "sheep"].contains(&noun);
    irregular || (noun.len() > 3 && noun.ends_with('s') && !noun.ends_with("ss"))
}
