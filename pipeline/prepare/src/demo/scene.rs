//! Scenes of coloured shapes on a grid, drawn from a seed.

use serde::{Deserialize, Serialize};
use vela_types::{Fingerprint, SeedStream};

/// An outline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// A filled disk.
    Circle,
    /// A filled square.
    Square,
    /// A filled triangle, tip up.
    Triangle,
    /// A plus sign with thick arms.
    Cross,
    /// A circle with a wide hole.
    Ring,
    /// Three horizontal bars.
    Stripes,
}

/// A fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    Black,
}

impl Shape {
    /// All shapes, the ones that are easiest to tell apart first.
    pub const ALL: [Self; 6] = [Self::Circle, Self::Square, Self::Triangle, Self::Cross, Self::Ring, Self::Stripes];
}

impl Colour {
    /// All colours.
    pub const ALL: [Self; 6] = [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Purple, Self::Black];

    /// Red, green and blue, 0 to 255.
    pub const fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [220, 30, 30],
            Self::Green => [20, 160, 50],
            Self::Blue => [30, 70, 220],
            Self::Yellow => [240, 200, 0],
            Self::Purple => [150, 40, 190],
            Self::Black => [20, 20, 20],
        }
    }
}

/// One shape in its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Object {
    /// Outline.
    pub shape: Shape,
    /// Fill.
    pub colour: Colour,
    /// Row-major cell number.
    pub cell: usize,
}

/// Objects in the order of their cells; shapes, colours and cells are all distinct.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    /// One to `max_shapes` objects.
    pub objects: Vec<Object>,
}

/// What scenes are drawn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenePlan {
    /// Cells per side of the grid, 2 or 3.
    pub cells_per_side: usize,
    /// Most objects in a scene.
    pub max_shapes: usize,
    /// Shapes in use.
    pub shapes: Vec<Shape>,
    /// Colours in use.
    pub colours: Vec<Colour>,
}

/// Which part of all scenes to draw from. Every scene belongs to one part, so that held-out ones are never trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Nine tenths.
    Train,
    /// One tenth.
    HeldOut,
}

impl ScenePlan {
    /// A scene of `split`; numbers of objects are equally likely.
    pub fn draw(&self, draw: &mut SeedStream, split: Split) -> Scene {
        loop {
            let scene = self.draw_any(draw);
            if scene.split() == split {
                return scene;
            }
        }
    }

    fn draw_any(&self, draw: &mut SeedStream) -> Scene {
        let num = 1 + draw.below(self.max_shapes as u64) as usize;
        let cells: Vec<usize> = (0..self.cells_per_side * self.cells_per_side).collect();
        let shapes = choose_distinct(&self.shapes, num, draw);
        let colours = choose_distinct(&self.colours, num, draw);
        let cells = choose_distinct(&cells, num, draw);
        let places = shapes.into_iter().zip(colours).zip(cells);
        let mut objects: Vec<Object> = places.map(|((shape, colour), cell)| Object { shape, colour, cell }).collect();
        objects.sort_by_key(|object| object.cell);
        Scene { objects }
    }
}

impl Scene {
    /// The part this scene belongs to, by a hash of its objects.
    pub fn split(&self) -> Split {
        let key = format!("{:?}", self.objects);
        match Fingerprint(*blake3::hash(key.as_bytes()).as_bytes()).to_seed() % 10 {
            0 => Split::HeldOut,
            _ => Split::Train,
        }
    }
}

/// `num` different items in a drawn order.
pub(super) fn choose_distinct<T: Copy>(items: &[T], num: usize, draw: &mut SeedStream) -> Vec<T> {
    let mut items = items.to_vec();
    for at in 0..num.min(items.len()) {
        let other = at + draw.below((items.len() - at) as u64) as usize;
        items.swap(at, other);
    }
    items.truncate(num);
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_never_share_shape_colour_or_cell_and_splits_never_share_scenes() {
        let plan =
            ScenePlan { cells_per_side: 2, max_shapes: 3, shapes: Shape::ALL.into(), colours: Colour::ALL.into() };
        let mut draw = SeedStream::new(3);
        for split in [Split::Train, Split::HeldOut] {
            for _ in 0..500 {
                let scene = plan.draw(&mut draw, split);
                assert_eq!(scene.split(), split);
                for (at, left) in scene.objects.iter().enumerate() {
                    for right in &scene.objects[at + 1..] {
                        assert!(left.cell < right.cell && left.shape != right.shape && left.colour != right.colour);
                    }
                }
            }
        }
    }
}
