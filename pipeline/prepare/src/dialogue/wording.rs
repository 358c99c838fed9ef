//! The kinds of question that `rules` asks and how each is put, in two languages.
//!
//! The first wordings of a kind are the plain ones; `short_answers` uses no other.

use vela_types::{Language, SeedStream};

/// What a question asks for. Each is answered by a quotation of the caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// The first sentence.
    Overall,
    /// Everything after the first sentence.
    Details,
    /// One local caption. Slot 0: the thing it describes.
    NamedPart,
    /// One local caption that names nothing the rules know.
    Part,
    /// Another local caption of that sort.
    NextPart,
    /// How many. Slots of Chinese: place and verb, measure, thing; of English: the things.
    Count,
    /// Slots: the thing; English: `is` or `are`.
    Colour,
    /// What has a colour. Slot 0: the colour.
    ThingOfColour,
    /// Slots: the thing (Chinese: with its verb); English: the verb.
    Where,
    /// What stands at a place. Slots of Chinese: the place, the verb; of English: the place with its preposition.
    PlaceContent,
    /// What stands behind all else. Slots as of `PlaceContent`.
    Background,
    /// Slots: who; English: `is` or `are`.
    Action,
    /// Slots: who; Chinese: the verb; English: `is` or `are`.
    Wearing,
    /// Slots as of `Wearing`.
    Holding,
    /// Slots: the thing; English: `is` or `are`.
    Material,
    /// What is written. Slot 0: on what.
    Text,
    /// What is written, on nothing that is named.
    LooseText,
    /// Sky and weather.
    Weather,
    /// Time of day, or season.
    Time,
    /// Atmosphere.
    Mood,
    /// Style or medium.
    Style,
    /// From where the picture was taken.
    View,
}

impl Kind {
    /// Kinds of which a caption is asked once, by its first clause about them.
    pub(super) const fn is_open(self) -> bool {
        matches!(
            self,
            Self::Weather | Self::Time | Self::Mood | Self::Style | Self::View | Self::PlaceContent | Self::Background
        )
    }

    /// How many of the wordings, from the first, are plain.
    const fn num_plain(self) -> usize {
        match self {
            Self::Overall | Self::Details => 2,
            _ => 1,
        }
    }

    fn wordings(self, language: Language) -> &'static [&'static str] {
        if language == Language::Zh { self.zh() } else { self.en() }
    }

    /// A wording, drawn; one of the plain ones if `plain`. `{0}`, `{1}`, `{2}` become the slots.
    pub(super) fn question(self, language: Language, slots: &[String], plain: bool, draw: &mut SeedStream) -> String {
        let wordings = self.wordings(language);
        let wordings = if plain { &wordings[..self.num_plain()] } else { wordings };
        fill(draw.choose(wordings), slots)
    }

    /// The first wording: what tells two questions apart.
    pub(super) fn plain_question(self, language: Language, slots: &[String]) -> String {
        fill(self.wordings(language)[0], slots)
    }

    #[rustfmt::skip]
    const fn zh(self) -> &'static [&'static str] {
        match self {
            Self::Overall => &[
                "图片中展示了什么？", "请概括一下这张图片。", "这张图片的主要内容是什么？", "用一句话说说这张图片。",
                "这是一张什么样的图片？", "先总体介绍一下画面。",
            ],
            Self::Details => &[
                "还有哪些细节？", "请详细描述图片中的内容。", "画面里还能看到什么？", "请再具体说说。",
                "其余部分是怎样的？", "请补充画面的细节。",
            ],
            Self::NamedPart => &[
                "图片中的{0}是什么样的？", "请描述一下图中的{0}。", "说说画面里的{0}。", "能仔细看看{0}吗？",
            ],
            Self::Part => &["请描述图片中的一处局部。", "图中有一处细节，请说说看。", "请挑画面的一个局部来描述。"],
            Self::NextPart => &["请再描述一处局部。", "还有别的局部吗？", "再说一处画面的细节。"],
            Self::Count => &["{0}几{1}{2}？", "请数一数，{0}几{1}{2}？", "请问{0}几{1}{2}？"],
            Self::Colour => &["{0}是什么颜色？", "{0}是什么颜色的？", "请问{0}是哪种颜色？", "图中{0}的颜色是什么？"],
            Self::ThingOfColour => &["{0}的是什么？", "图中什么是{0}的？", "画面里有什么是{0}的？"],
            Self::Where => &["{0}在哪里？", "{0}在什么地方？", "请问{0}在哪儿？", "{0}在什么位置？"],
            Self::PlaceContent => &["{0}{1}什么？", "请问{0}{1}什么？", "说说{0}{1}什么。", "看一看，{0}{1}什么？"],
            Self::Background => &["{0}{1}什么？", "请描述一下{0}。", "说说{0}的情况。", "{0}的景象是怎样的？"],
            Self::Action => &["{0}正在做什么？", "{0}在做什么？", "{0}在干什么？", "图中的{0}正在做什么？"],
            Self::Wearing => &["{0}{1}什么？", "图中的{0}{1}什么？", "请问{0}{1}什么？", "从画面看，{0}{1}什么？"],
            Self::Holding => &["{0}{1}什么？", "图中的{0}{1}什么？", "请问{0}{1}什么？", "从图中看，{0}{1}什么？"],
            Self::Material => &["{0}是什么材质的？", "{0}是用什么做的？", "图中的{0}是什么材质？"],
            Self::Text => &["{0}上写着什么？", "{0}上的文字是什么？", "请读出{0}上的文字。", "{0}上写了些什么？"],
            Self::LooseText => &["图片中写着什么？", "图中有哪些文字？", "请读出图中的文字。"],
            Self::Weather => &["天气怎么样？", "画面中的天气如何？", "从图中看，天气是怎样的？", "天空是什么样子？"],
            Self::Time => &["画面是什么时间？", "从画面看，这是什么时候？", "这可能是在什么时间拍摄的？"],
            Self::Mood => &["画面的氛围如何？", "整体给人什么感觉？", "这个场景的气氛怎么样？"],
            Self::Style => &["画面是什么风格？", "说说它的风格。", "图片呈现出怎样的风格？"],
            Self::View => &["画面是从什么角度呈现的？", "这是什么视角？", "拍摄的角度是怎样的？"],
        }
    }

    #[rustfmt::skip]
    const fn en(self) -> &'static [&'static str] {
        match self {
            Self::Overall => &[
                "What does the image show?", "Sum up the image.", "What is this picture of?",
                "Give me the gist of this image.", "What is the main subject here?",
            ],
            Self::Details => &[
                "What else can be seen?", "Describe the rest in detail.", "Can you add more detail?",
                "What other details are there?", "Go on, what else is in the picture?",
            ],
            Self::NamedPart => &[
                "What does the {0} look like?", "Describe the {0} in the image.", "Tell me more about the {0}.",
                "Can you take a closer look at the {0}?",
            ],
            Self::Part => &["Describe one part of the image.", "Pick a detail and describe it.", "Describe a region of the picture."],
            Self::NextPart => &["Describe another part of the image.", "And another detail?", "Describe one more region."],
            Self::Count => &["How many {0} are there?", "How many {0} can be seen?", "Count the {0}.", "How many {0} does the image show?"],
            Self::Colour => &["What color {1} the {0}?", "Tell me the color of the {0}.", "Which color {1} the {0}?"],
            Self::ThingOfColour => &["What is {0}?", "What in the image is {0}?"],
            Self::Where => &["Where {1} the {0}?", "Where in the image {1} the {0}?", "Where can the {0} be found?"],
            Self::PlaceContent => &["What is {0}?", "What can be seen {0}?", "Describe what is {0}."],
            Self::Background => &["What is {0}?", "What can be seen {0}?", "Describe what appears {0}."],
            Self::Action => &["What {1} the {0} doing?", "What {1} the {0} up to?", "Describe what the {0} {1} doing."],
            Self::Wearing => &["What {1} the {0} wearing?", "How {1} the {0} dressed?", "Describe what the {0} {1} wearing."],
            Self::Holding => &["What {1} the {0} holding?", "What does the image show the {0} holding?", "Tell me what the {0} {1} holding."],
            Self::Material => &["What {1} the {0} made of?", "What material {1} the {0} made of?", "Which material can you see in the {0}?"],
            Self::Text => &["What is written on the {0}?", "What does the {0} say?", "Read the text on the {0}."],
            Self::LooseText => &["What text can be seen in the image?", "Which words can be read?", "Read the text in the image."],
            Self::Weather => &["What is the weather like?", "How is the weather in this scene?", "Describe the sky and the weather."],
            Self::Time => &["What time of day or year is it?", "When does this scene seem to take place?", "When was this picture likely taken?"],
            Self::Mood => &["What is the mood of the scene?", "How would you describe the atmosphere?", "What feeling does the scene give?"],
            Self::Style => &["What style is this?", "Describe the style.", "How would you characterize the style?"],
            Self::View => &["From which angle is the scene shown?", "What is the point of view?", "How is the shot taken?"],
        }
    }
}

fn fill(wording: &str, slots: &[String]) -> String {
    let marks = ["{0}", "{1}", "{2}"];
    marks.iter().zip(slots).fold(wording.to_owned(), |text, (mark, slot)| text.replace(mark, slot))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::dialogue) const ALL: [Kind; 22] = [
        Kind::Overall,
        Kind::Details,
        Kind::NamedPart,
        Kind::Part,
        Kind::NextPart,
        Kind::Count,
        Kind::Colour,
        Kind::ThingOfColour,
        Kind::Where,
        Kind::PlaceContent,
        Kind::Background,
        Kind::Action,
        Kind::Wearing,
        Kind::Holding,
        Kind::Material,
        Kind::Text,
        Kind::LooseText,
        Kind::Weather,
        Kind::Time,
        Kind::Mood,
        Kind::Style,
        Kind::View,
    ];

    #[test]
    fn every_kind_has_several_wordings_in_both_languages_and_none_twice() {
        for language in [Language::Zh, Language::En] {
            for kind in ALL {
                let wordings = kind.wordings(language);
                assert!(wordings.len() >= if kind == Kind::ThingOfColour { 2 } else { 3 }, "{kind:?}");
                let distinct: std::collections::BTreeSet<_> = wordings.iter().collect();
                assert_eq!(distinct.len(), wordings.len(), "{kind:?}");
            }
        }
    }

    #[test]
    fn slots_stand_where_the_wording_says() {
        let slots = ["dogs".to_owned(), "are".to_owned()];
        assert_eq!(Kind::Where.plain_question(Language::En, &slots), "Where are the dogs?");
        let slots = ["路边停着".to_owned(), "辆".to_owned(), "汽车".to_owned()];
        assert_eq!(Kind::Count.plain_question(Language::Zh, &slots), "路边停着几辆汽车？");
    }
}
