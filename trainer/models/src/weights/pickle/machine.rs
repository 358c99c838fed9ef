//! Python's pickle machine, less what makes it dangerous: nothing is imported or called. A call stays a value that says
//! what would have been called with what, and the reader decides what it knows. The instructions are those of
//! `pickletools` of Python 3, protocols 2 to 5, as far as saved tensors need them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// What a pickle holds.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Integer(i64),
    Text(Rc<str>),
    /// `module.name`.
    Class(Rc<str>),
    Tuple(Rc<[Value]>),
    Dict(Rc<RefCell<Vec<(Value, Value)>>>),
    /// What stands outside the pickle, by its key.
    Outside(Rc<Value>),
    /// A callable and its arguments.
    Call(Rc<(Value, Value)>),
    /// What no tensor is made of: floats, lists, sets, bytes.
    Other,
}

impl Value {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn class(&self) -> Option<&str> {
        match self {
            Self::Class(name) => Some(name),
            _ => None,
        }
    }

    pub(super) fn tuple(&self) -> Option<&[Value]> {
        match self {
            Self::Tuple(values) => Some(values),
            _ => None,
        }
    }

    /// An integer from 0 up.
    pub(super) fn size(&self) -> Option<usize> {
        match self {
            Self::Integer(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }
}

/// Runs a pickle to its end. `Err` says where it could not go on.
pub(super) fn run(bytes: &[u8]) -> Result<Value, String> {
    let mut machine = Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        let at = machine.at;
        match machine.step() {
            Some(Flow::On) => {}
            Some(Flow::Done(value)) => return Ok(value),
            None => {
                let found = bytes.get(at).map_or("its end".to_owned(), |code| format!("instruction {code:#04x}"));
                return Err(format!(
                    "expected a pickle of tensors, found {found} at byte {at} that cannot be followed"
                ));
            }
        }
    }
}

enum Flow {
    On,
    Done(Value),
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Lengths of the stack where the open marks were set.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
}

impl Machine<'_> {
    /// One instruction; `None` if it is not known or cannot be followed.
    fn step(&mut self) -> Option<Flow> {
        let code = self.number(1)? as u8;
        match code {
            b'.' => return self.stack.pop().map(Flow::Done),
            // Protocol and frame: nothing to do.
            0x80 => _ = self.number(1)?,
            0x95 => _ = self.number(8)?,
            b'(' => self.marks.push(self.stack.len()),
            b'0' => _ = self.stack.pop()?,
            b'1' => _ = self.take_marked()?,
            b'c' | 0x93 => self.name_class(code)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memorise(code)?,
            b'N' | 0x88 | 0x89 | b'J' | b'K' | b'M' | 0x8A => self.push_number(code)?,
            b'X' | 0x8C | 0x8D | b'C' | b'B' | b'G' | b']' | 0x8F => self.push_content(code)?,
            b')' | b't' | 0x85..=0x87 => self.push_tuple(code)?,
            b'}' | b's' | b'u' | b'a' | b'e' | 0x90 => self.collect(code)?,
            b'R' | 0x81 | b'b' | b'Q' => self.combine(code)?,
            _ => return None,
        }
        Some(Flow::On)
    }

    fn take(&mut self, count: u64) -> Option<&[u8]> {
        let end = self.at.checked_add(usize::try_from(count).ok()?)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    /// An unsigned number of `count` bytes, at most 8, the lowest first.
    fn number(&mut self, count: u64) -> Option<u64> {
        Some(self.take(count)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn line(&mut self) -> Option<String> {
        let length = self.bytes.get(self.at..)?.iter().position(|byte| *byte == b'\n')?;
        let text = String::from_utf8(self.take(length as u64)?.to_vec()).ok()?;
        self.at += 1;
        Some(text)
    }

    fn take_marked(&mut self) -> Option<Vec<Value>> {
        let mark = self.marks.pop()?;
        (mark <= self.stack.len()).then(|| self.stack.split_off(mark))
    }

    fn name_class(&mut self, code: u8) -> Option<()> {
        let name = match code {
            b'c' => format!("{}.{}", self.line()?, self.line()?),
            _ => {
                let (name, module) = (self.stack.pop()?, self.stack.pop()?);
                format!("{}.{}", module.text()?, name.text()?)
            }
        };
        self.stack.push(Value::Class(name.into()));
        Some(())
    }

    fn memorise(&mut self, code: u8) -> Option<()> {
        let key = match code {
            b'q' | b'h' => self.number(1)?,
            b'r' | b'j' => self.number(4)?,
            _ => self.memo.len() as u64,
        };
        match code {
            b'h' | b'j' => self.stack.push(self.memo.get(&key)?.clone()),
            _ => _ = self.memo.insert(key, self.stack.last()?.clone()),
        }
        Some(())
    }

    fn push_number(&mut self, code: u8) -> Option<()> {
        let value = match code {
            b'N' => Value::None,
            0x88 => Value::Integer(1),
            0x89 => Value::Integer(0),
            b'J' => Value::Integer(i64::from(self.number(4)? as u32 as i32)),
            b'K' => Value::Integer(self.number(1)? as i64),
            b'M' => Value::Integer(self.number(2)? as i64),
            // As many bytes as said, the highest with the sign.
            _ => match self.number(1)? {
                0 => Value::Integer(0),
                count @ 1..=8 => {
                    let unused = 64 - 8 * count as u32;
                    Value::Integer((self.number(count)? << unused) as i64 >> unused)
                }
                _ => return None,
            },
        };
        self.stack.push(value);
        Some(())
    }

    fn push_content(&mut self, code: u8) -> Option<()> {
        let width = match code {
            0x8C | b'C' => 1,
            b'X' | b'B' => 4,
            0x8D => 8,
            _ => 0,
        };
        let value = match code {
            b'X' | 0x8C | 0x8D => {
                let length = self.number(width)?;
                Value::Text(std::str::from_utf8(self.take(length)?).ok()?.into())
            }
            b'C' | b'B' => {
                let length = self.number(width)?;
                self.take(length)?;
                Value::Other
            }
            b'G' => {
                self.take(8)?;
                Value::Other
            }
            _ => Value::Other,
        };
        self.stack.push(value);
        Some(())
    }

    fn push_tuple(&mut self, code: u8) -> Option<()> {
        let values = match code {
            b')' => Vec::new(),
            b't' => self.take_marked()?,
            _ => {
                let first = self.stack.len().checked_sub(usize::from(code - 0x84))?;
                self.stack.split_off(first)
            }
        };
        self.stack.push(Value::Tuple(values.into()));
        Some(())
    }

    /// Dictionaries, and what goes into them; what goes into lists and sets is let go.
    fn collect(&mut self, code: u8) -> Option<()> {
        let items = match code {
            b'}' => {
                self.stack.push(Value::Dict(Rc::default()));
                return Some(());
            }
            b's' => {
                let first = self.stack.len().checked_sub(2)?;
                self.stack.split_off(first)
            }
            b'a' => vec![self.stack.pop()?],
            _ => self.take_marked()?,
        };
        match (self.stack.last()?, code) {
            (Value::Dict(dict), b's' | b'u') if items.len().is_multiple_of(2) => {
                let pairs = items.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
                dict.borrow_mut().extend(pairs);
            }
            (Value::Other, b'a' | b'e' | 0x90) => {}
            _ => return None,
        }
        Some(())
    }

    /// Calls, state of objects, and what stands outside.
    fn combine(&mut self, code: u8) -> Option<()> {
        let argument = self.stack.pop()?;
        if code == b'Q' {
            self.stack.push(Value::Outside(Rc::new(argument)));
            return Some(());
        }
        let of = self.stack.pop()?;
        let value = match code {
            // The state of an object; an ordered dictionary's are notes of PyTorch's.
            b'b' => of,
            _ if of.class() == Some("collections.OrderedDict") => Value::Dict(Rc::default()),
            _ => Value::Call(Rc::new((of, argument))),
        };
        self.stack.push(value);
        Some(())
    }
}
