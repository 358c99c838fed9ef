//! Multi-turn dialogues cut from a caption: the overall scene, its details and parts, then what colour, how many, where.
//!
//! Every answer is a run of characters of the global caption or of one local caption. A seeded coin decides whether
//! the description or the questions come first: a model that always reads the description first can answer the
//! rest from the text without looking at the image. At most one question per clause keeps answers from standing in
//! a later question.

use vela_types::{Language, SeedStream, Turn};

use super::{DialogueConfig, en, without_marks, zh};
use crate::sources::RawCaption;

/// Local captions asked for one by one.
const MAX_PARTS: usize = 3;

/// A question that a clause of the caption answers; `answer` is a substring of that clause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) question: String,
    pub(super) answer: String,
}

/// What a language's rules find in a text.
pub(super) struct Rules {
    pub(super) overall: &'static [&'static str],
    pub(super) details: &'static [&'static str],
    pub(super) first_part: &'static str,
    pub(super) next_part: &'static str,
    /// Splits off the first sentence.
    pub(super) split_first: fn(&str) -> (&str, &str),
    /// One group of facts per clause.
    pub(super) facts: fn(&[&str]) -> Vec<Vec<Fact>>,
}

pub(super) fn turns(caption: &RawCaption, config: DialogueConfig, language: Language, seed: u64) -> Vec<Turn> {
    let rules = if language == Language::Zh { &zh::RULES } else { &en::RULES };
    let mut draw = SeedStream::named(seed, "rules dialogue", &caption.id);
    let global = without_marks(&caption.global);
    let parts: Vec<&str> = caption.locals.iter().map(String::as_str).filter(|part| !global.contains(part)).collect();
    let mut description = description(rules, &global, &parts, &mut draw);
    let texts: Vec<&str> = std::iter::once(global.as_str()).chain(parts.iter().copied()).collect();
    let facts = choose_facts((rules.facts)(&texts), config.max_facts, &mut draw);
    if !config.description && !facts.is_empty() {
        description.clear();
    }
    let pairs: Vec<Fact> = match draw.below(2) {
        0 => description.into_iter().chain(facts).collect(),
        _ => facts.into_iter().chain(description).collect(),
    };
    pairs
        .into_iter()
        .flat_map(|pair| [Turn::user(pair.question), Turn::assistant(without_marks(&pair.answer))])
        .collect()
}

fn description(rules: &Rules, global: &str, parts: &[&str], draw: &mut SeedStream) -> Vec<Fact> {
    let (first, rest) = (rules.split_first)(global);
    let mut pairs = vec![Fact { question: (*draw.choose(rules.overall)).to_owned(), answer: first.trim().to_owned() }];
    if !rest.trim().is_empty() {
        pairs.push(Fact { question: (*draw.choose(rules.details)).to_owned(), answer: rest.trim().to_owned() });
    }
    for (at, part) in parts.iter().filter(|part| !part.contains(vela_types::IMAGE_MARK)).take(MAX_PARTS).enumerate() {
        let question = if at == 0 { rules.first_part } else { rules.next_part };
        pairs.push(Fact { question: question.to_owned(), answer: (*part).to_owned() });
    }
    pairs
}

/// One fact per group, groups in a drawn order, at most `max_facts`.
fn choose_facts(mut groups: Vec<Vec<Fact>>, max_facts: usize, draw: &mut SeedStream) -> Vec<Fact> {
    groups.retain(|group| !group.is_empty());
    for last in (1..groups.len()).rev() {
        groups.swap(last, draw.below(last as u64 + 1) as usize);
    }
    let mut facts: Vec<Fact> = groups.iter().map(|group| draw.choose(group).clone()).collect();
    facts.retain(|fact| !fact.answer.trim().is_empty());
    facts.truncate(max_facts);
    facts
}

/// Keeps what stands once: a question with two answers in one caption has none.
pub(super) fn drop_ambiguous(groups: &mut [Vec<Fact>]) {
    let questions: Vec<String> = groups.iter().flatten().map(|fact| fact.question.clone()).collect();
    let is_unique = |fact: &Fact| questions.iter().filter(|question| **question == fact.question).count() == 1;
    groups.iter_mut().for_each(|group| group.retain(is_unique));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vela_types::{IMAGE_MARK, ImageRef, Role};

    use super::*;
    use crate::dialogue::DialogueMode;

    fn caption(id: &str, global: &str, locals: &[&str]) -> RawCaption {
        RawCaption {
            id: id.to_owned(),
            source: "test",
            image: ImageRef::Path("x.png".into()),
            global: global.to_owned(),
            locals: locals.iter().map(|text| (*text).to_owned()).collect(),
        }
    }

    fn pairs(global: &str, locals: &[&str], language: Language) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for seed in 0..40 {
            let turns = turns(&caption("a", global, locals), DialogueMode::Rules.into(), language, seed);
            all.extend(turns.chunks(2).map(|pair| (pair[0].text.clone(), pair[1].text.clone())));
        }
        all.sort();
        all.dedup();
        all
    }

    fn asserts(pairs: &[(String, String)], question: &str, answer: &str) {
        assert!(pairs.contains(&(question.to_owned(), answer.to_owned())), "{question} {answer}: {pairs:#?}");
    }

    #[test]
    fn a_chinese_scene_is_asked_for_colour_count_and_place() {
        let found =
            pairs("图片里有两个图形。左上角是红色的圆形，右下角是蓝色的十字。", &["左上角是红色的圆形"], Language::Zh);
        asserts(&found, "图片里有几个图形？", "两个");
        asserts(&found, "圆形是什么颜色？", "红色");
        asserts(&found, "红色的是什么？", "圆形");
        asserts(&found, "红色的圆形在哪里？", "左上角");
        asserts(&found, "右下角是什么？", "蓝色的十字");
        asserts(&found, "还有哪些细节？", "左上角是红色的圆形，右下角是蓝色的十字。");
    }

    #[test]
    fn an_everyday_chinese_caption_gives_sound_questions() {
        let text = "这张照片展示了一条安静的街道。街道左侧有一辆白色的面包车，背景是高大的山。远处有三个行人。";
        let found = pairs(text, &["一块蓝色的路牌"], Language::Zh);
        asserts(&found, "面包车是什么颜色？", "白色");
        asserts(&found, "背景是什么？", "高大的山");
        asserts(&found, "远处有几个行人？", "三个");
        asserts(&found, "请描述图片中的一处局部。", "一块蓝色的路牌");
    }

    #[test]
    fn an_english_caption_is_asked_for_colour_count_and_place() {
        let text = "Three dogs play near a red brick house. A white cat is sitting on the wooden fence.";
        let found = pairs(text, &[], Language::En);
        asserts(&found, "How many dogs are there?", "Three");
        asserts(&found, "What color is the brick house?", "red");
        asserts(&found, "Where is the white cat?", "on the wooden fence");
        asserts(&found, "What else can be seen?", "A white cat is sitting on the wooden fence.");
    }

    #[test]
    fn a_single_fact_can_be_all_that_is_asked() {
        let scene = caption("a", "图片里有两个图形。左上角是红色的圆形，右下角是蓝色的十字。", &[]);
        let config = DialogueConfig { max_facts: 1, description: false, ..DialogueMode::Rules.into() };
        let mut asked: Vec<String> = (0..60)
            .map(|seed| {
                let turns = turns(&scene, config, Language::Zh, seed);
                assert_eq!(turns.len(), 2);
                turns[0].text.clone()
            })
            .collect();
        asked.sort();
        asked.dedup();
        assert_eq!(asked.len(), 9, "{asked:?}");
        let plain = turns(&caption("a", "一张照片。", &[]), config, Language::Zh, 0);
        assert_eq!((plain.len(), plain[1].text.as_str()), (2, "一张照片。"));
    }

    #[test]
    fn a_question_with_two_answers_is_not_asked() {
        let found = pairs("图片里有两个图形。左上角是红色的圆形，右下角是蓝色的圆形。", &[], Language::Zh);
        assert!(!found.iter().any(|(question, _)| question == "圆形是什么颜色？"), "{found:#?}");
    }

    proptest! {
        #[test]
        fn an_answer_only_ever_quotes_the_caption(
            global in "([A-Za-z]{1,6} |red |two |is |on the |cats|\\. |, |左上角|有|是|红色|的|三个|人|。|，|<image>){1,24}x",
            locals in proptest::collection::vec("[a-z红色的圆形。 ]{1,12}y", 0..3),
            seed in any::<u64>(),
            max_facts in 0usize..4,
            description in any::<bool>(),
        ) {
            let caption = RawCaption { locals, ..caption("p", global.trim(), &[]) };
            let language = Language::guess(&caption.global);
            let config = DialogueConfig { max_facts, description, ..DialogueMode::Rules.into() };
            let turns = turns(&caption, config, language, seed);
            prop_assert!(turns.len() >= 2 && turns.len().is_multiple_of(2));
            if !description && turns.len() > 2 * max_facts {
                // Nothing else could be asked.
                let described = DialogueConfig { max_facts: 0, description: true, ..config };
                prop_assert_eq!(&turns, &super::turns(&caption, described, language, seed));
            }
            prop_assert_eq!(turns.clone(), super::turns(&caption, config, language, seed));
            let global = caption.global.replace(IMAGE_MARK, "");
            for turn in turns.iter().filter(|turn| turn.role == Role::Assistant) {
                let quoted = global.contains(&turn.text) || caption.locals.iter().any(|part| part.contains(&turn.text));
                prop_assert!(quoted && !turn.text.is_empty(), "{:?}", turn);
            }
        }
    }
}
