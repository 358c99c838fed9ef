//! Questions that need thought.

use super::Example;

pub(super) const TASK: &str = "Ask one question about this photo that cannot be answered by pointing at something: why \
something is as it is, what is likely to have happened before or to happen next, what somebody here should take care of, what \
is unusual, how one would go about something in this situation. Do not give away in the question what can be seen; whoever \
answers should have to look first. Then answer it in one or two paragraphs: name what in the photo the answer rests on, and \
reason from there with general knowledge, step by step, as far as it is safe to go.";

pub(super) const EXAMPLES: [Example; 2] = [
    Example {
        captions: &[
            "A man on a ladder cleans the windows of a shop.",
            "A worker stands on a tall ladder beside the entrance of a store.",
            "A man washing a window while people walk below.",
            "A ladder leans against a storefront on a crowded sidewalk.",
            "Someone cleaning glass from a ladder with a bucket hanging from it.",
        ],
        boxes: &[
            ("person", [0.421, 0.112, 0.552, 0.498]),
            ("person", [0.298, 0.552, 0.384, 0.948]),
            ("person", [0.612, 0.561, 0.701, 0.962]),
            ("person", [0.731, 0.548, 0.812, 0.931]),
            ("handbag", [0.672, 0.702, 0.722, 0.788]),
        ],
        answer: "Question:
What could make this job safer for everyone nearby?
===
Answer:
A man is working high up on a ladder that leans against a storefront, with a bucket hanging from it, while three people walk \
past below, two of them on the right and one on the left. That holds two risks: somebody could bump into the foot of the \
ladder, and water, tools or the bucket itself could fall on a passer-by.

The space around the ladder could be closed off with cones or tape, so that people walk around it, and a second worker could \
hold the ladder and keep an eye on the sidewalk. A non-slip foot and a line that ties the bucket down would help as well. \
Working early in the morning, before the street fills up, would avoid much of the danger from the start.
===",
    },
    Example {
        captions: &[
            "A table set for a birthday with a cake and candles.",
            "A cake with five candles on a table with paper plates.",
            "Children's party table with balloons tied to the chairs.",
            "A decorated table with cake, cups and balloons and nobody there.",
            "An empty room prepared for a kid's birthday party.",
        ],
        boxes: &[
            ("cake", [0.402, 0.421, 0.598, 0.602]),
            ("dining table", [0.052, 0.498, 0.951, 0.982]),
            ("cup", [0.182, 0.561, 0.221, 0.632]),
            ("cup", [0.312, 0.642, 0.352, 0.721]),
            ("cup", [0.682, 0.639, 0.724, 0.718]),
            ("cup", [0.781, 0.558, 0.819, 0.629]),
            ("chair", [0.012, 0.602, 0.152, 0.998]),
            ("chair", [0.852, 0.598, 0.991, 0.998]),
        ],
        answer: "Question:
What is probably about to happen here, and how can one tell?
===
Answer:
A small child's birthday is about to be celebrated. In the middle of the table stands a cake with five candles, which suggests \
a fifth birthday, and the paper plates, the balloons on the chairs and the four cups around the cake speak of a party with a \
few young guests.

Nobody is in the room yet and everything is still untouched, so the party has not begun: most likely the host has just \
finished the preparations and the guests are about to arrive, after which the candles will be lit and blown out.
===",
    },
];
