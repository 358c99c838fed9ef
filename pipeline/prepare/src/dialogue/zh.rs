//! What Chinese captions answer. Clauses are read left to right by fixed word lists; no segmentation, no guessing.

use super::rules::{Fact, Rules, drop_ambiguous};

pub(super) static RULES: Rules = Rules {
    overall: &["图片中展示了什么？", "请概括一下这张图片。"],
    details: &["还有哪些细节？", "请详细描述图片中的内容。"],
    first_part: "请描述图片中的一处局部。",
    next_part: "请再描述一处局部。",
    split_first,
    facts,
};

const PLACES: [&str; 24] = [
    "左上角",
    "右上角",
    "左下角",
    "右下角",
    "左上方",
    "右上方",
    "左下方",
    "右下方",
    "左侧",
    "右侧",
    "左边",
    "右边",
    "正中间",
    "中间",
    "中央",
    "中心",
    "顶部",
    "底部",
    "上方",
    "下方",
    "前景",
    "背景",
    "远处",
    "近处",
];
const COLOURS: [&str; 14] =
    ["红色", "绿色", "蓝色", "黄色", "紫色", "黑色", "白色", "灰色", "橙色", "粉色", "棕色", "青色", "银色", "金色"];
const NUMERALS: &str = "一二两三四五六七八九十";
const CLASSIFIERS: &str = "个只条张辆座位名棵朵件把块本匹架头艘盏扇幅";
/// A noun ends where one of these begins.
const NOUN_ENDS: &str = "的在是和与有上下里中着了、：“”（）及";
const MAX_NOUN_CHARS: usize = 8;

fn split_first(text: &str) -> (&str, &str) {
    match text.char_indices().find(|(_, next)| "。！？".contains(*next)) {
        Some((at, mark)) => text.split_at(at + mark.len_utf8()),
        None => (text, ""),
    }
}

fn facts(texts: &[&str]) -> Vec<Vec<Fact>> {
    let clauses = texts.iter().flat_map(|text| text.split(['。', '！', '？', '；', '，', ',', ';', '\n']));
    let mut groups: Vec<Vec<Fact>> = clauses.map(|clause| clause_facts(clause.trim())).collect();
    drop_ambiguous(&mut groups);
    groups
}

fn clause_facts(clause: &str) -> Vec<Fact> {
    let mut facts = Vec::new();
    facts.extend(count(clause));
    if facts.is_empty() {
        facts.extend(place(clause).unwrap_or_default());
        facts.extend(colour(clause).unwrap_or_default());
    }
    facts
}

fn fact(question: String, answer: &str) -> Fact {
    Fact { question, answer: answer.to_owned() }
}

/// `图片里有两个图形` answers `图片里有几个图形？`; the counted noun must end the clause.
fn count(clause: &str) -> Option<Fact> {
    let (before, after) = clause.split_once('有')?;
    let mut chars = after.chars();
    let (numeral, classifier) = (chars.next()?, chars.next()?);
    let noun = chars.as_str();
    let sound = NUMERALS.contains(numeral) && CLASSIFIERS.contains(classifier) && is_noun(noun);
    let counted = &after[..numeral.len_utf8() + classifier.len_utf8()];
    sound.then(|| fact(format!("{before}有几{classifier}{noun}？"), counted))
}

/// `左上角是红色的圆形` answers `左上角是什么？`, and, after a bare place, `红色的圆形在哪里？`.
fn place(clause: &str) -> Option<Vec<Fact>> {
    let (before, verb, thing) = ["是", "有"].iter().find_map(|verb| {
        let (before, thing) = clause.split_once(verb)?;
        let ends_in_place = PLACES.iter().any(|place| before.ends_with(place));
        (ends_in_place && !thing.is_empty()).then_some((before, *verb, thing))
    })?;
    let mut facts = vec![fact(format!("{before}{verb}什么？"), thing)];
    let bare = without_measure(thing);
    if bare.chars().count() <= 2 * MAX_NOUN_CHARS {
        facts.push(fact(format!("{bare}在哪里？"), before));
    }
    Some(facts)
}

/// `红色的圆形` answers `圆形是什么颜色？` and `红色的是什么？`.
fn colour(clause: &str) -> Option<Vec<Fact>> {
    let (at, colour) = COLOURS.iter().filter_map(|colour| Some((clause.find(colour)?, *colour))).min()?;
    let after = clause[at + colour.len()..].strip_prefix('的')?;
    let end = after.find(|next| NOUN_ENDS.contains(next)).unwrap_or(after.len());
    let noun = &after[..end];
    is_noun(noun).then(|| vec![fact(format!("{noun}是什么颜色？"), colour), fact(format!("{colour}的是什么？"), noun)])
}

/// `一辆白色的面包车` without its numeral and classifier.
fn without_measure(thing: &str) -> &str {
    let mut chars = thing.chars();
    match (chars.next(), chars.next()) {
        (Some(numeral), Some(classifier)) if NUMERALS.contains(numeral) && CLASSIFIERS.contains(classifier) => {
            chars.as_str()
        }
        _ => thing,
    }
}

fn is_noun(text: &str) -> bool {
    let num_chars = text.chars().count();
    (1..=MAX_NOUN_CHARS).contains(&num_chars)
        && text.chars().all(|next| ('\u{4e00}'..='\u{9fff}').contains(&next) && !NOUN_ENDS.contains(next))
}
