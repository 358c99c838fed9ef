//! What Chinese captions answer. Clauses are read left to right by fixed word lists; no segmentation, no guessing.

use super::rules::{Fact, Rules};
use super::wording::Kind;
use super::zh_words::*;

pub(super) static RULES: Rules = Rules { split_first, part_name, facts };

const MAX_NOUN_CHARS: usize = 8;
const MAX_SUBJECT_CHARS: usize = 12;
/// Whom a pronoun may mean.
type Antecedent = Option<String>;

fn split_first(text: &str) -> (&str, &str) {
    match text.char_indices().find(|(_, next)| "。！？".contains(*next)) {
        Some((at, mark)) => text.split_at(at + mark.len_utf8()),
        None => (text, ""),
    }
}

fn part_name(text: &str) -> Option<String> {
    let after = measure(clauses(text).first()?.text)?;
    named_noun(after).map(str::to_owned)
}

/// A clause, and the clause with the mark that ends its sentence.
struct Clause<'a> {
    text: &'a str,
    full: &'a str,
    starts_sentence: bool,
}

/// Splits at commas and sentence marks, but never inside quotation marks or brackets.
fn clauses(text: &str) -> Vec<Clause<'_>> {
    let mut found = Vec::new();
    let (mut start, mut depth, mut starts_sentence) = (0, 0usize, true);
    for (at, next) in text.char_indices().chain([(text.len(), '\n')]) {
        match next {
            '“' | '「' | '《' | '（' => depth += 1,
            '”' | '」' | '》' | '）' => depth = depth.saturating_sub(1),
            '。' | '！' | '？' | '；' | '，' | ',' | ';' | '\n' if depth == 0 || next == '\n' || next == '。' => {
                let ends_sentence = "。！？\n".contains(next);
                let end = if ends_sentence && at < text.len() { at + next.len_utf8() } else { at };
                let (clause, full) = (text[start..at].trim(), text[start..end].trim());
                if !clause.is_empty() {
                    found.push(Clause { text: clause, full, starts_sentence });
                    starts_sentence = ends_sentence;
                }
                start = (at + next.len_utf8()).min(text.len());
                depth = 0;
            }
            _ => {}
        }
    }
    found
}

fn facts(texts: &[&str]) -> Vec<Vec<Fact>> {
    let mut groups: Vec<Vec<Fact>> = texts.iter().flat_map(|text| text_facts(text)).collect();
    // Other things of the colour may stand where no rule reads.
    let num_times = |colour: &str| texts.iter().map(|text| text.matches(colour).count()).sum::<usize>();
    for group in &mut groups {
        group.retain(|fact| fact.kind != Kind::ThingOfColour || num_times(&fact.slots[0]) == 1);
    }
    groups
}

fn text_facts(text: &str) -> Vec<Vec<Fact>> {
    let mut antecedent: Antecedent = None;
    let mut groups = Vec::new();
    for clause in clauses(text) {
        let goes_on = !clause.starts_sentence || PRONOUNS.iter().any(|pronoun| clause.text.starts_with(pronoun));
        let known = antecedent.take().filter(|_| goes_on);
        groups.push(clause_facts(&clause, known.as_deref()));
        antecedent = match measured_nouns(clause.text)[..] {
            [] => known,
            [one] => Some(one.to_owned()),
            _ => None,
        };
    }
    groups
}

fn clause_facts(clause: &Clause<'_>, antecedent: Option<&str>) -> Vec<Fact> {
    let found = |(kind, slots, short): Found| Fact { kind, slots, short, full: clause.full.to_owned() };
    let text = clause.text;
    if let Some(count) = count(text) {
        return vec![found(count)];
    }
    let mut facts = place(text);
    facts.extend(colours(text));
    facts.extend(stay(text));
    facts.extend(action(text, antecedent));
    facts.extend(carried(text, antecedent, Kind::Wearing, &WEARS));
    facts.extend(carried(text, antecedent, Kind::Holding, &HOLDS));
    facts.extend(material(text));
    facts.extend(made_of(text, antecedent));
    facts.extend(writing(text, antecedent));
    facts.extend(topics(text));
    facts.into_iter().map(found).collect()
}

/// Kind, slots, and the words that answer.
type Found = (Kind, Vec<String>, String);

fn found<const N: usize>(kind: Kind, slots: [&str; N], short: &str) -> Found {
    (kind, slots.map(str::to_owned).to_vec(), short.to_owned())
}

/// `图片里有两个图形` answers `图片里有几个图形？`; the counted noun must end the clause. One is a count only of all
/// there is in the image: elsewhere `一` is an article.
fn count(clause: &str) -> Option<Found> {
    let (at, verb) = ["有", "站着", "坐着", "停着", "摆放着", "摆着", "放着", "挂着"]
        .into_iter()
        .filter_map(|verb| Some((clause.find(verb)?, verb)))
        .min()?;
    let (before, after) = (&clause[..at], &clause[at + verb.len()..]);
    let thing = measure(after)?;
    let counted = &after[..after.len() - thing.len()];
    let classifier = counted.chars().next_back()?;
    let name = thing.rsplit('的').next().unwrap_or(thing);
    let is_whole = before.is_empty() || WHOLE.contains(&before);
    let is_count = counted.starts_with(|first| NUMERALS.contains(first)) && (!counted.starts_with('一') || is_whole);
    let is_plain = num_chars(thing) <= MAX_SUBJECT_CHARS && !thing.contains(['、', '和', '与', '或', '“']);
    let sound = is_count && is_plain && is_noun(name) && (is_whole || is_place(before));
    let place = if before.is_empty() { "图片中" } else { before };
    sound.then(|| {
        let slots = vec![format!("{place}{verb}"), classifier.to_string(), thing.to_owned()];
        (Kind::Count, slots, counted.to_owned())
    })
}

/// `左上角是红色的圆形` answers `左上角是什么？` and `红色的圆形在哪里？`.
fn place(clause: &str) -> Vec<Found> {
    let verbs = ["是", "有"].into_iter().chain(STANDS);
    let split = verbs.filter_map(|verb| {
        let (before, thing) = clause.split_once(verb)?;
        (is_place(before) && !thing.is_empty()).then_some((before, verb, thing))
    });
    let Some((before, verb, thing)) = split.min_by_key(|(before, ..)| before.len()) else { return Vec::new() };
    let is_far = ["背景", "远处"].iter().any(|far| before.contains(far));
    let kind = if is_far { Kind::Background } else { Kind::PlaceContent };
    let mut facts = vec![found(kind, [before, verb], thing)];
    let bare = without_measure(thing);
    let is_vague = VAGUE.iter().any(|vague| bare.starts_with(vague));
    let is_name = num_chars(bare) <= 2 * MAX_NOUN_CHARS && !bare.contains(['着', '了', '、', '和', '与', '“', '在']);
    if is_name && !is_vague && is_noun(bare.rsplit('的').next().unwrap_or(bare)) {
        facts.push(found(Kind::Where, [bare], before));
    }
    facts
}

/// A short phrase that tells a place in the image, and needs nothing said before.
fn is_place(text: &str) -> bool {
    let stem = text.strip_suffix(['中', '里', '处', '部']).unwrap_or(text);
    let is_known = PLACES.iter().any(|place| text.ends_with(place) || stem.ends_with(place));
    let is_local = num_chars(text) >= 2 && text.ends_with(|last| LOCALIZERS.contains(last));
    let depends = text.contains(|next: char| DEPENDENT.contains(next) || "着了正，、是有".contains(next));
    (is_known || is_local) && num_chars(text) <= MAX_SUBJECT_CHARS && !depends && !WHOLE.contains(&text)
}

/// `红色的圆形` answers `圆形是什么颜色？` and `红色的是什么？`.
fn colours(clause: &str) -> Vec<Found> {
    let mut facts = Vec::new();
    let mut from = 0;
    while let Some((at, colour)) = next_colour(clause, from) {
        from = at + colour.len();
        let joined = clause[..at].ends_with(['和', '与', '、', '及', '色']);
        let Some(after) = clause[from..].strip_prefix('的').filter(|_| !joined) else { continue };
        if let Some(noun) = leading_noun(after) {
            facts.push(found(Kind::Colour, [noun], colour));
            facts.push(found(Kind::ThingOfColour, [colour], noun));
        }
    }
    facts
}

/// The first colour at or after byte `from`, the longest of those that begin there, its shade included.
fn next_colour(clause: &str, from: usize) -> Option<(usize, &str)> {
    let starts = COLOURS.iter().filter_map(|colour| Some((from + clause[from..].find(colour)?, colour.len())));
    let (at, length) = starts.min_by_key(|&(at, length)| (at, std::cmp::Reverse(length)))?;
    let shade = clause[from..at].chars().next_back().filter(|shade| SHADES.contains(*shade));
    let start = at - shade.map_or(0, char::len_utf8);
    Some((start, &clause[start..at + length]))
}

/// `一辆红色的跑车停在路边` answers `红色的跑车停在哪里？`.
fn stay(clause: &str) -> Option<Found> {
    let (before, place) = match clause.split_once("位于") {
        Some(parts) => parts,
        None => clause.split_once('在')?,
    };
    let stays = STAYS.iter().find_map(|verb| Some((before.strip_suffix(verb)?, *verb)));
    let (subject, verb) = if clause.contains("位于") { (before, "") } else { stays? };
    let subject = without_measure(subject);
    let is_name = is_subject(subject) && !subject.starts_with(|first| DEPENDENT.contains(first));
    (is_name && !place.is_empty()).then(|| (Kind::Where, vec![format!("{subject}{verb}")], place.to_owned()))
}

/// `一位男子正在弹吉他` answers `男子正在做什么？`.
fn action(clause: &str, antecedent: Option<&str>) -> Option<Found> {
    let (before, after) = clause.split_once("正在").or_else(|| clause.split_once('正'))?;
    let who = being(before, antecedent)?;
    let act = after.trim_start_matches(['在', '于']);
    let starts_well = !act.starts_with(['中', '前', '上', '下', '对', '面', '方', '是']) && num_chars(act) >= 2;
    starts_well.then(|| found(Kind::Action, [&who], act))
}

/// What someone wears or holds: `女子穿着白色的裙子`, or `一位穿着蓝色围裙的摊贩`.
fn carried(clause: &str, antecedent: Option<&str>, kind: Kind, verbs: &[(&str, &str)]) -> Option<Found> {
    let (at, verb, asked) = verbs.iter().filter_map(|(verb, asked)| Some((clause.find(verb)?, *verb, *asked))).min()?;
    let (before, after) = (&clause[..at], &clause[at + verb.len()..]);
    if let Some((thing, who)) = after.rsplit_once('的')
        && let Some(who) = leading_noun(who).filter(|who| is_being(who))
    {
        let is_measured = measure(before).is_some();
        return (is_measured && !thing.is_empty()).then(|| found(kind, [who, asked], thing));
    }
    let who = being(before, antecedent)?;
    (!after.is_empty()).then(|| found(kind, [&who, asked], after))
}

/// `木质的长椅` answers `长椅是什么材质的？`.
fn material(clause: &str) -> Option<Found> {
    let words = MATERIALS.iter().filter_map(|word| Some((clause.find(word)?, *word)));
    let (at, word) = words.min_by_key(|&(at, word)| (at, std::cmp::Reverse(word.len())))?;
    let joined = clause[..at].ends_with(['和', '与', '、', '及']);
    let after = &clause[at + word.len()..];
    let noun = leading_noun(after.strip_prefix('的').unwrap_or(after)).filter(|_| !joined)?;
    (num_chars(noun) >= 2).then(|| found(Kind::Material, [noun], word))
}

/// `小屋由圆木搭建而成` answers `小屋是什么材质的？`.
fn made_of(clause: &str, antecedent: Option<&str>) -> Option<Found> {
    let (before, after) = clause.split_once('由')?;
    let of = MADE.iter().find_map(|made| after.split_once(made)).map(|(of, _)| of).filter(|of| !of.is_empty())?;
    let what = subject(before, antecedent)?;
    Some(found(Kind::Material, [&what], of))
}

/// `招牌上写着“新鲜蔬菜”` answers `招牌上写着什么？`.
fn writing(clause: &str, antecedent: Option<&str>) -> Option<Found> {
    let (at, verb) = WRITES.iter().filter_map(|verb| Some((clause.find(verb)?, *verb))).min()?;
    let (before, after) = (&clause[..at], &clause[at + verb.len()..]);
    let (open, close) = *QUOTES.iter().find(|(open, _)| after.starts_with(*open))?;
    let length = after[open.len_utf8()..].find(close)? + open.len_utf8() + close.len_utf8();
    let (text, rest) = after.split_at(length);
    if num_chars(text) <= 2 {
        return None;
    }
    let host = match rest.trim_start_matches(['字', '样']).strip_prefix('的') {
        Some(host) => leading_noun(host).map(str::to_owned),
        None => match before.split_once('上') {
            Some(("", _)) => antecedent.map(str::to_owned),
            Some((host, _)) => subject(host, antecedent).or_else(|| plain_host(host)),
            None => subject(before, antecedent),
        },
    };
    Some(match host {
        Some(host) => found(Kind::Text, [&host], text),
        None => found(Kind::LooseText, [], text),
    })
}

/// A word of Chinese characters that needs nothing said before, known or not.
fn plain_host(text: &str) -> Option<String> {
    let is_word = |next: char| ('\u{4e00}'..='\u{9fff}').contains(&next) && !DEPENDENT.contains(next);
    let host = without_measure(text);
    ((2..=6).contains(&num_chars(host)) && host.chars().all(is_word)).then(|| host.to_owned())
}

fn topics(clause: &str) -> Vec<Found> {
    let speaks_of = |words: &[&str]| words.iter().any(|word| clause.contains(word));
    TOPICS.iter().filter(|(_, words)| speaks_of(words)).map(|(kind, _)| found(*kind, [], clause)).collect()
}

/// Who acts: the words before the verb, or whom a pronoun or nothing before it means.
fn being(before: &str, antecedent: Option<&str>) -> Option<String> {
    subject(before, antecedent).filter(|who| is_being(who))
}

/// What is spoken of: the words before the verb, or what a pronoun or nothing before it means.
fn subject(before: &str, antecedent: Option<&str>) -> Option<String> {
    let before = before.trim_end_matches(['则', '也', '还', '都', '上']);
    let before = IN_HAND.iter().fold(before, |text, hand| text.strip_suffix(hand).unwrap_or(text));
    if before.is_empty() || PRONOUNS.contains(&before) {
        return antecedent.map(str::to_owned);
    }
    let subject = WHOLE.iter().fold(before, |text, whole| text.strip_prefix(whole).unwrap_or(text));
    let subject = without_measure(subject.strip_prefix('有').unwrap_or(subject));
    is_subject(subject).then(|| subject.to_owned())
}

/// A noun with what describes it, free of words that point back.
fn is_subject(text: &str) -> bool {
    let name = text.rsplit('的').next().unwrap_or(text);
    let is_free = !text.contains(|next: char| DEPENDENT.contains(next) || "着了正，、是有和与在“".contains(next));
    is_free && num_chars(text) <= MAX_SUBJECT_CHARS && is_noun(name)
}

fn is_being(noun: &str) -> bool {
    BEINGS.iter().any(|ending| noun.ends_with(ending))
}

/// Nouns after a numeral and a classifier, what describes them left out: `一位穿着蓝色围裙的摊贩` gives `摊贩`.
fn measured_nouns(clause: &str) -> Vec<&str> {
    let mut nouns = Vec::new();
    for (at, _) in clause.char_indices() {
        let Some(after) = measure(&clause[at..]) else { continue };
        let inside_number = clause[..at].ends_with(|before| NUMERALS.contains(before) || before == '另');
        nouns.extend(named_noun(after).filter(|noun| num_chars(noun) >= 2 && !inside_number));
    }
    nouns
}

/// The noun after a numeral and a classifier: at once, or behind what describes it.
fn named_noun(after: &str) -> Option<&str> {
    let own = after.split(['，', '、', '“', '和', '与']).next().unwrap_or(after);
    leading_noun(own).or_else(|| own.rsplit('的').find_map(leading_noun))
}

/// What follows a numeral and a classifier at the start of `text`, or `另` and them.
fn measure(text: &str) -> Option<&str> {
    let text = text.strip_prefix('另').unwrap_or(text);
    let number = text.trim_start_matches(|next| NUMERALS.contains(next));
    let mut chars = number.chars();
    let classifier = chars.next()?;
    (number.len() < text.len() && CLASSIFIERS.contains(classifier)).then_some(chars.as_str())
}

/// `一辆白色的面包车` without its numeral and classifier.
fn without_measure(thing: &str) -> &str {
    measure(thing).unwrap_or(thing)
}

/// The noun that `text` begins with: it runs to the end of the clause, to a word that ends nouns, or to a verb.
fn leading_noun(text: &str) -> Option<&str> {
    let end = text.find(|next| NOUN_ENDS.contains(next)).unwrap_or(text.len());
    let run = &text[..end];
    if text[end..].starts_with('的') {
        return None;
    }
    let cuts = run.char_indices().map(|(at, _)| at).skip(1).chain([run.len()]);
    cuts.filter(|&cut| is_noun(&run[..cut]))
        .filter(|&cut| run[cut..].is_empty() || VERBS.iter().any(|verb| run[cut..].starts_with(verb)))
        .max()
        .map(|cut| &run[..cut])
}

fn is_noun(text: &str) -> bool {
    (1..=MAX_NOUN_CHARS).contains(&num_chars(text))
        && text.chars().all(|next| ('\u{4e00}'..='\u{9fff}').contains(&next) && !NOUN_ENDS.contains(next))
        && text.ends_with(|last| HEADS.contains(last))
}

fn num_chars(text: &str) -> usize {
    text.chars().count()
}
