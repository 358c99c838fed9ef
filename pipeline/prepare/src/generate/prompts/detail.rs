//! Detailed descriptions.

use super::Example;

pub(super) const TASK: &str = "Describe the photo in detail, in one to three paragraphs. Begin with the scene as a whole, then \
go through what is in it: what stands out, how many there are of each thing, where things are in relation to one another, what \
people or animals do, and what else belongs to the background. Write the description alone, without a heading or a list.";

/// Drawn for each description in English.
pub(super) const QUESTIONS_EN: [&str; 12] = [
    "Please describe this photo in detail.",
    "What can be seen in this picture? Go into detail.",
    "Walk me through everything in the image.",
    "Give a thorough account of what the photo shows.",
    "Could you tell me in detail what is in this picture?",
    "Paint me a full picture of this scene in words.",
    "What is going on here? Leave nothing important out.",
    "Describe the image so that someone who cannot see it can imagine it.",
    "I would like a long and careful description of this image.",
    "What does the photo show, from the foreground to the background?",
    "Tell me about the objects in this image and where they are.",
    "Can you describe the scene and all that belongs to it?",
];

/// Drawn for each description in Chinese.
pub(super) const QUESTIONS_ZH: [&str; 8] = [
    "请详细描述这张照片。",
    "这张图里都有什么？请说得详细一些。",
    "请从整体到细节介绍一下这幅画面。",
    "能仔细讲讲图中的场景吗？",
    "请描述图片中的物体以及它们的位置。",
    "如果要让看不到图的人也能想象出来，你会怎么描述它？",
    "画面里发生了什么？请完整地说明。",
    "请写一段细致的图片描述。",
];

pub(super) const EXAMPLES: [Example; 2] = [
    Example {
        captions: &[
            "A dog sleeps on a rug in front of a fireplace.",
            "A brown dog lying next to two armchairs.",
            "A living room with a dog and a burning fire.",
            "A dog rests by the fire while a cat watches from a chair.",
            "A cozy room with a pet on a striped rug.",
        ],
        boxes: &[
            ("dog", [0.31, 0.642, 0.655, 0.868]),
            ("cat", [0.762, 0.401, 0.884, 0.533]),
            ("chair", [0.01, 0.322, 0.247, 0.871]),
            ("chair", [0.703, 0.321, 0.972, 0.862]),
            ("book", [0.083, 0.502, 0.142, 0.54]),
            ("vase", [0.452, 0.088, 0.498, 0.201]),
        ],
        answer: "The photo shows a cozy living room with a fire burning in the fireplace. In front of it, in the middle of the \
room, a brown dog lies asleep on a striped rug.

Two armchairs stand on either side of the dog. A book lies on the seat of the left one, while a cat sits in the right one and \
looks on. High up in the center, above the fire, stands a single vase, which completes the peaceful, homely scene.",
    },
    Example {
        captions: &[
            "A street vendor sells fruit from a cart.",
            "A woman stands behind a cart loaded with oranges and bananas.",
            "A fruit stand under a blue umbrella on the sidewalk.",
            "A lady selling fruit to a customer with a bicycle.",
            "A market cart full of fresh fruit in a busy street.",
        ],
        boxes: &[
            ("person", [0.452, 0.231, 0.601, 0.702]),
            ("person", [0.085, 0.262, 0.211, 0.881]),
            ("bicycle", [0.122, 0.455, 0.338, 0.923]),
            ("umbrella", [0.322, 0.021, 0.792, 0.268]),
            ("banana", [0.402, 0.571, 0.522, 0.662]),
            ("orange", [0.548, 0.583, 0.582, 0.621]),
            ("orange", [0.588, 0.584, 0.622, 0.623]),
            ("orange", [0.566, 0.552, 0.601, 0.589]),
            ("car", [0.842, 0.301, 0.998, 0.472]),
        ],
        answer: "A woman sells fruit from a cart on the sidewalk of a busy street. She stands behind it in the middle of the \
photo, shaded by a large blue umbrella that spans the whole cart. Bananas are laid out at the front, and just to the right of \
them a few oranges are heaped into a small pile.

On the left, a customer holding a bicycle has stopped to buy something. The person stands closer to us than the vendor, so that \
the bicycle covers the lower left part of the view. In the background on the far right, a car can be seen on the street.",
    },
];
