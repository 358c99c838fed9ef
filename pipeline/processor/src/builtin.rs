//! The templates that Vela knows by name, for folders that ship none or are to be trained with another.
//!
//! Each renders what its publisher's code does; where that code is no template, the file's own words say what it says.

/// What closes an assistant turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndOfTurn {
    /// A token of the tokenizer's added vocabulary: whichever the template writes.
    AddedToken,
    /// This text, labelled like a token.
    Text(&'static str),
}

/// A template with a name.
pub(crate) struct Builtin {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
    /// The system text where a dialogue brings none and the template asks for one.
    pub(crate) default_system: &'static str,
    pub(crate) end_of_turn: EndOfTurn,
    /// What stands before an answer and belongs to it, because a prompt ends before that.
    pub(crate) answer_lead: &'static str,
}

const CHATML: &str = include_str!("templates/chatml.jinja");

const BUILTINS: [Builtin; 7] = [
    // Qwen's `make_context`, in the last turn `<|endoftext|>`; pieces are encoded one by one, as it does.
    Builtin::new("qwen-v1", include_str!("templates/qwen_v1.jinja")),
    Builtin { default_system: "You are a helpful assistant.", ..Builtin::new("qwen2", CHATML) },
    Builtin {
        default_system: "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        ..Builtin::new("qwen2.5", CHATML)
    },
    Builtin::new("llama3.2", include_str!("templates/llama3_2.jinja")),
    Builtin::new("minimind", include_str!("templates/minimind.jinja")),
    Builtin { answer_lead: " ", ..Builtin::new("llava-v1", include_str!("templates/llava_v1.jinja")) },
    // LLaVA's first stage: images, caption, line feed; the question is thrown away.
    Builtin {
        end_of_turn: EndOfTurn::Text("\n"),
        ..Builtin::new("llava-plain", include_str!("templates/llava_plain.jinja"))
    },
];

impl Builtin {
    const fn new(name: &'static str, source: &'static str) -> Self {
        Self { name, source, default_system: "", end_of_turn: EndOfTurn::AddedToken, answer_lead: "" }
    }

    /// The template of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        BUILTINS.iter().find(|builtin| builtin.name == name)
    }
}

/// The names of built-in chat templates, which a folder's `vela_processor.json` or
/// [`ProcessorOptions::template`](crate::ProcessorOptions) may choose.
pub fn template_names() -> impl Iterator<Item = &'static str> {
    BUILTINS.iter().map(|builtin| builtin.name)
}
