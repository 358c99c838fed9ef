//! Conversations: short questions about what is there, longer ones about what it means.

use super::Example;

pub(super) const TASK: &str = "Invent the talk that a curious person and you have about this photo. Ask four to six questions \
that differ from one another: what things there are, how many, which colour or kind, what somebody does, where something is in \
relation to something else. Let one question be about something that is clearly not in the photo, if that can be said for sure, \
and let the last one or two need some knowledge or thought beyond the photo, while still being about it. Ask only what can be \
answered with certainty. Answer simple questions in one or two sentences, and the last ones at more length, with reasons.";

pub(super) const EXAMPLES: [Example; 2] = [
    Example {
        captions: &[
            "An old man feeds pigeons from a green bench in a square.",
            "A man in a brown coat throws bread crumbs to a flock of pigeons.",
            "Pigeons gather around a man sitting on a park bench.",
            "A person on a bench with many birds at his feet.",
            "Someone sits on a green bench and feeds the birds beside a fountain.",
        ],
        boxes: &[],
        answer: "Question:
What is the man doing?
===
Answer:
He is sitting on a bench and feeding bread crumbs to pigeons.
===
Question:
What color is the bench?
===
Answer:
The bench is green.
===
Question:
Where are the birds?
===
Answer:
They have gathered on the ground around the man's feet.
===
Question:
Is the man standing in the fountain?
===
Answer:
No, he is sitting on a bench beside the fountain.
===
Question:
Why might some cities ask people not to do this?
===
Answer:
Regular feeding draws large flocks to one place. Their droppings soil benches, statues and buildings and have to be cleaned \
away at some cost, and bread is poor food for the birds themselves. A city may therefore put up signs or fines, although for \
somebody sitting alone in a square, as here, the birds can also be welcome company.
===",
    },
    Example {
        captions: &[
            "Two children in yellow raincoats jump in a puddle.",
            "A boy and a girl splash in a puddle on a street.",
            "Kids wearing yellow coats and boots play in the rain.",
            "Two kids jump in water in front of a red door.",
            "Children playing in a rain puddle outside a house.",
        ],
        boxes: &[],
        answer: "Question:
How many children are there?
===
Answer:
There are two children, a boy and a girl.
===
Question:
What are they wearing?
===
Answer:
Both wear yellow raincoats and boots.
===
Question:
What color is the door behind them?
===
Answer:
The door is red.
===
Question:
How can one tell that the children are well prepared for the weather?
===
Answer:
Their raincoats keep the rain off, and their boots let them step into deep water without getting wet feet. The bright yellow \
also makes them easy to see for drivers, which matters on a street on a dark, rainy day.
===",
    },
];
