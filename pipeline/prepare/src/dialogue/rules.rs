//! Multi-turn dialogues cut from a caption: the overall scene, its details and parts, then questions that single clauses answer.
//!
//! Every answer is a run of characters of the global caption or of one local caption: a whole clause or sentence, or the
//! fewest words with `short_answers`. A seeded coin decides whether the description or the questions come first: a model
//! that always reads the description first can answer the rest from the text without looking at the image. At most one
//! question per clause, and no question or answer twice.

use vela_types::{Language, SeedStream, Turn};

use super::wording::Kind;
use super::{DialogueConfig, en, without_marks, zh};
use crate::sources::RawCaption;

/// Local captions asked for one by one.
const MAX_PARTS: usize = 3;

/// A question that a clause of the caption answers. Both answers are substrings of the caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) kind: Kind,
    /// What the wordings of the kind leave open.
    pub(super) slots: Vec<String>,
    /// The words that answer.
    pub(super) short: String,
    /// The clause or sentence that holds them.
    pub(super) full: String,
}

/// A question with its answer, before it becomes two turns.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    question: String,
    answer: String,
}

/// What a language's rules find in a text.
pub(super) struct Rules {
    /// Splits off the first sentence.
    pub(super) split_first: fn(&str) -> (&str, &str),
    /// What a local caption is about, if the rules know.
    pub(super) part_name: fn(&str) -> Option<String>,
    /// One group of facts per clause or sentence.
    pub(super) facts: fn(&[&str]) -> Vec<Vec<Fact>>,
}

pub(super) fn turns(caption: &RawCaption, config: DialogueConfig, language: Language, seed: u64) -> Vec<Turn> {
    let rules = if language == Language::Zh { &zh::RULES } else { &en::RULES };
    let mut draw = SeedStream::named(seed, "rules dialogue", &caption.id);
    let wording = SeedStream::named(seed, "rules wording", &caption.id);
    let global = without_marks(&caption.global);
    let parts = new_parts(caption, &global);
    let mut asker = Asker { language, plain: config.short_answers, wording, pairs: Vec::new() };
    asker.describe(rules, &global, &parts, &mut draw);
    let description = std::mem::take(&mut asker.pairs);
    let texts: Vec<&str> = std::iter::once(global.as_str()).chain(parts.iter().copied()).collect();
    let mut groups = (rules.facts)(&texts);
    drop_ambiguous(&mut groups, language);
    let described = if config.description { description.clone() } else { Vec::new() };
    asker.ask(groups, config.max_facts, &described, &mut draw);
    let facts = asker.pairs;
    let described = if facts.is_empty() { description } else { described };
    let pairs: Vec<Pair> = match draw.below(2) {
        0 => described.into_iter().chain(facts).collect(),
        _ => facts.into_iter().chain(described).collect(),
    };
    pairs.into_iter().flat_map(|pair| [Turn::user(pair.question), Turn::assistant(pair.answer)]).collect()
}

/// Local captions that say something else than the global one, each once.
fn new_parts<'a>(caption: &'a RawCaption, global: &str) -> Vec<&'a str> {
    let mut parts: Vec<&str> = Vec::new();
    for part in caption.locals.iter().map(String::as_str) {
        if !global.contains(part) && !part.contains(vela_types::IMAGE_MARK) && !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts
}

/// Puts facts into words and keeps questions and answers from coming twice.
struct Asker {
    language: Language,
    plain: bool,
    wording: SeedStream,
    pairs: Vec<Pair>,
}

impl Asker {
    fn describe(&mut self, rules: &Rules, global: &str, parts: &[&str], draw: &mut SeedStream) {
        let (first, rest) = (rules.split_first)(global);
        let question = Kind::Overall.question(self.language, &[], self.plain, draw);
        self.pairs.push(Pair { question, answer: first.trim().to_owned() });
        if !rest.trim().is_empty() {
            let question = Kind::Details.question(self.language, &[], self.plain, draw);
            self.add(question, rest, &[]);
        }
        for (at, part) in parts.iter().take(MAX_PARTS).enumerate() {
            let name = (rules.part_name)(part).filter(|_| !self.plain);
            let kind = match name {
                Some(_) => Kind::NamedPart,
                None if at == 0 => Kind::Part,
                None => Kind::NextPart,
            };
            let question = kind.question(self.language, &Vec::from_iter(name), self.plain, &mut self.wording);
            self.add(question, part, &[]);
        }
    }

    /// One fact per group, groups in a drawn order, at most `max_facts`; kinds that were not asked yet go first.
    fn ask(&mut self, mut groups: Vec<Vec<Fact>>, max_facts: usize, described: &[Pair], draw: &mut SeedStream) {
        groups.retain(|group| !group.is_empty());
        for last in (1..groups.len()).rev() {
            groups.swap(last, draw.below(last as u64 + 1) as usize);
        }
        let mut asked: Vec<Kind> = Vec::new();
        let mut later: Vec<Fact> = Vec::new();
        let mut chosen: Vec<Fact> = Vec::new();
        for group in &groups {
            let fresh: Vec<&Fact> = group.iter().filter(|fact| self.plain || !asked.contains(&fact.kind)).collect();
            match fresh.is_empty() {
                true => later.push(draw.choose(group).clone()),
                false => {
                    let fact = *draw.choose(&fresh);
                    asked.push(fact.kind);
                    chosen.push(fact.clone());
                }
            }
        }
        for fact in chosen.into_iter().chain(later) {
            if self.pairs.len() < max_facts {
                let question = fact.kind.question(self.language, &fact.slots, self.plain, &mut self.wording);
                self.add(question, if self.plain { &fact.short } else { &fact.full }, described);
            }
        }
    }

    fn add(&mut self, question: String, answer: &str, others: &[Pair]) {
        let answer = answer.trim().to_owned();
        let is_new = |pair: &Pair| pair.question != question && (self.plain || bare(&pair.answer) != bare(&answer));
        if answer.chars().any(char::is_alphanumeric) && self.pairs.iter().chain(others).all(is_new) {
            self.pairs.push(Pair { question, answer });
        }
    }
}

/// An answer without the mark that ends it.
fn bare(text: &str) -> &str {
    text.trim_end_matches(|last: char| !last.is_alphanumeric())
}

/// Keeps what stands once: a question with two answers in one caption has none. Of open kinds the first clause stays.
fn drop_ambiguous(groups: &mut [Vec<Fact>], language: Language) {
    let facts: Vec<(Kind, String)> =
        groups.iter().flatten().map(|fact| (fact.kind, fact.kind.plain_question(language, &fact.slots))).collect();
    let mut at = 0;
    for group in groups {
        group.retain(|fact| {
            let (kind, question) = &facts[at];
            let same = |other: &(Kind, String)| other.1 == *question;
            let first = !facts[..at].iter().any(same);
            let only = first && !facts[at + 1..].iter().any(same);
            let blurred = facts.iter().enumerate().any(|(other, (other_kind, longer))| {
                other != at && other_kind == kind && longer != question && is_about_more(longer, question, fact)
            });
            at += 1;
            let partial = *kind == Kind::LooseText
                && facts.iter().any(|other| other.0 == Kind::Text || other.0 == *kind && other.1 != *question);
            let blurred = blurred || partial;
            if kind.is_open() { first } else { only && !blurred }
        });
    }
}

/// True if `longer` asks the same of a thing whose name ends as this one's does: `the sports car` beside `the car`.
fn is_about_more(longer: &str, question: &str, fact: &Fact) -> bool {
    let is_named = matches!(fact.kind, Kind::Colour | Kind::Material | Kind::Action | Kind::Wearing | Kind::Holding);
    let Some(name) = fact.slots.first().filter(|_| is_named) else { return false };
    let Some((before, after)) = question.split_once(name.as_str()) else { return false };
    let inner = longer.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    inner.is_some_and(|other| other.len() > name.len() && other.ends_with(name.as_str()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vela_types::{IMAGE_MARK, ImageRef, Role, Sample};

    use super::*;
    use crate::dialogue::DialogueMode;

    fn caption(id: &str, global: &str, locals: &[&str]) -> RawCaption {
        RawCaption {
            id: id.to_owned(),
            source: "test",
            image: ImageRef::Path("x.png".into()),
            global: global.to_owned(),
            locals: locals.iter().map(|text| (*text).to_owned()).collect(),
            prompts: &[],
        }
    }

    const SHORT: DialogueConfig =
        DialogueConfig { mode: DialogueMode::Rules, max_facts: 5, description: true, short_answers: true };

    fn pairs(global: &str, locals: &[&str], language: Language) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for seed in 0..40 {
            let turns = turns(&caption("a", global, locals), SHORT, language, seed);
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
        let config = DialogueConfig { max_facts: 1, description: false, ..SHORT };
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

    #[test]
    fn clauses_are_quoted_whole_unless_short_answers_are_asked_for() {
        let text = "街道左侧停着一辆白色的面包车，远处是山。一位老人坐在长椅上，头戴草帽。";
        let scene = caption("a", text, &[]);
        let mut answers: Vec<String> = Vec::new();
        for seed in 0..20 {
            let turns = turns(&scene, DialogueMode::Rules.into(), Language::Zh, seed);
            answers.extend(turns.chunks(2).map(|pair| pair[1].text.clone()));
        }
        for answer in ["街道左侧停着一辆白色的面包车", "远处是山。", "一位老人坐在长椅上", "头戴草帽。"]
        {
            assert!(answers.iter().any(|given| given == answer), "{answer}: {answers:?}");
        }
        assert!(!answers.iter().any(|answer| answer == "白色"), "{answers:?}");
    }

    #[test]
    fn a_pronoun_is_asked_about_by_whom_it_means() {
        let found = pairs("A young man is running toward the train. He is wearing blue jeans.", &[], Language::En);
        asserts(&found, "What is the young man wearing?", "blue jeans");
        let found = pairs("画面中央是一位穿着围裙的摊贩，他正在整理蔬菜。", &[], Language::Zh);
        asserts(&found, "摊贩正在做什么？", "整理蔬菜");
        let found = pairs("一位男子和一位女子站在路边，他正在看书。", &[], Language::Zh);
        assert!(!found.iter().any(|(question, _)| question.contains("正在做什么")), "{found:#?}");
    }

    /// `short_answers` is what the generated data of the demo are asked with; its trained answers hang on every byte.
    #[test]
    fn dialogues_of_generated_scenes_have_not_changed() {
        let mut hasher = blake3::Hasher::new();
        for (at, global) in [
            "图片里有一个图形。上方是黄色的条纹。",
            "图片里有两个图形。左上角是红色的圆形，右下角是蓝色的十字。",
            "图片里有三个图形。左侧是绿色的方形，中间是绿色的圆环，右侧是黑色的三角形。",
        ]
        .into_iter()
        .enumerate()
        {
            for (seed, max_facts, description) in (0..50).flat_map(|seed| [(seed, 1, false), (seed, 5, true)]) {
                let config = DialogueConfig { max_facts, description, ..SHORT };
                for turn in turns(&caption(&format!("sa1b/{at}"), global, &[]), config, Language::Zh, seed) {
                    hasher.update(turn.text.as_bytes()).update(b"\n");
                }
            }
        }
        assert_eq!(hasher.finalize().to_hex()[..16], *"3f42fe9c687ffd97");
    }

    const WORDS: &str = "([A-Za-z]{1,6} |red |two |is |on the |cats|a man |wearing |holding |wooden |dogs |sunset|\\. |, |\"|reads \
         |左上角|有|是|红色|的|三个|一位|男子|人|他|正在|穿着|手里拿着|写着“|”|木质|招牌|天气晴朗|，|。|<image>){1,24}x";

    proptest! {
        #[test]
        fn an_answer_only_ever_quotes_the_caption_and_nothing_comes_twice(
            global in WORDS,
            locals in proptest::collection::vec("[a-z红色的圆形。 ]{1,12}y", 0..3),
            seed in any::<u64>(),
            max_facts in 0usize..6,
            description in any::<bool>(),
            short_answers in any::<bool>(),
        ) {
            let caption = RawCaption { locals, ..caption("p", global.trim(), &[]) };
            let language = Language::guess(&caption.global);
            let config = DialogueConfig { max_facts, description, short_answers, ..DialogueMode::Rules.into() };
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
            let mut said: Vec<&str> = turns
                .iter()
                .filter(|turn| turn.role == Role::User || !short_answers)
                .map(|turn| turn.text.as_str())
                .collect();
            let num_said = said.len();
            said.sort_unstable();
            said.dedup();
            prop_assert_eq!(said.len(), num_said, "{:?}", turns);
            let sample = Sample { id: "p".into(), source: "t".into(), language, images: Vec::new(), turns };
            prop_assert_eq!(sample.check(), Ok(()));
        }
    }
}
