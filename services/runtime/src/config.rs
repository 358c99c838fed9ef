//! TOML configs: read, overridden by `--set`, refused where a key is unknown.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// A config that cannot be used. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config `{}` cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("config `{origin}` is not TOML")]
    Syntax {
        /// The file.
        origin: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// `--set` is not `key=value`, or its key passes through something that is no table.
    #[error("config `{origin}`: `--set {set}`: {fault}")]
    Set {
        /// The file.
        origin: String,
        /// The flag's value.
        set: String,
        /// What is wrong with it.
        fault: String,
    },
    /// A key that the config does not have.
    #[error("config `{origin}`: unknown key `{key}`{}", suggestion(nearest, known))]
    UnknownKey {
        /// The file.
        origin: String,
        /// The key with the tables it is in.
        key: String,
        /// The known key spelled most like it, if any is close.
        nearest: Option<String>,
        /// All keys known at that place.
        known: Vec<String>,
    },
    /// A value of the wrong type, or a key that is missing.
    #[error("config `{origin}`: {message}")]
    Value {
        /// The file.
        origin: String,
        /// Which key, what was expected and found.
        message: String,
    },
}

/// Reads the TOML file at `path`, applies each `a.b=c` of `sets` in order, and checks every key.
///
/// The part after `=` is taken as a TOML value (`3`, `true`, `[1, 2]`, `"text"`), or else as text. Tables on the way
/// are made where absent. `T` should refuse unknown fields (`#[serde(deny_unknown_fields)]`): the refusal then names
/// the key, the file and the nearest known key.
pub fn load_config<T: DeserializeOwned>(path: &Path, sets: &[String]) -> Result<T, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(read)?;
    parse_config(&text, &path.display().to_string(), sets)
}

/// [`load_config`] for text already at hand; `origin` stands for the file in messages.
pub fn parse_config<T: DeserializeOwned>(text: &str, origin: &str, sets: &[String]) -> Result<T, ConfigError> {
    let syntax = |source| ConfigError::Syntax { origin: origin.to_owned(), source: Box::new(source) };
    let mut table: Table = toml::from_str(text).map_err(syntax)?;
    for set in sets {
        let fault = |fault| ConfigError::Set { origin: origin.to_owned(), set: set.clone(), fault };
        apply_set(&mut table, set).map_err(fault)?;
    }
    T::deserialize(Value::Table(table)).map_err(|error| explain(origin, &error))
}

fn apply_set(table: &mut Table, set: &str) -> Result<(), String> {
    let (path, text) = set.split_once('=').ok_or("expected `key=value`")?;
    let keys: Vec<&str> = path.trim().split('.').collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(format!("expected a key such as `a.b`, found `{path}`"));
    }
    let (leaf, parents) = keys.split_last().ok_or("expected a key before `=`")?;
    let mut place = table;
    for key in parents {
        let next = place.entry(*key).or_insert_with(|| Value::Table(Table::new()));
        let found = next.type_str();
        place = next.as_table_mut().ok_or_else(|| format!("expected `{key}` to be a table, found {found}"))?;
    }
    place.insert((*leaf).to_owned(), parse_value(text.trim()));
    Ok(())
}

/// `text` as one TOML value, or else as a string.
fn parse_value(text: &str) -> Value {
    let document = toml::from_str::<Table>(&format!("value = {text}"));
    match document {
        Ok(mut table) if table.len() == 1 => table.remove("value").unwrap_or_else(|| Value::String(text.to_owned())),
        _ => Value::String(text.to_owned()),
    }
}

/// Serde tells an unknown field as text only: "unknown field `x`, expected one of `a`, `b`", then toml's place of it.
fn explain(origin: &str, error: &toml::de::Error) -> ConfigError {
    let origin = origin.to_owned();
    let message = error.to_string();
    let table = message.lines().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'));
    let Some(rest) = error.message().strip_prefix("unknown field `") else {
        return ConfigError::Value { origin, message: message.trim().replace('\n', " ") };
    };
    let (field, expected) = rest.split_once('`').unwrap_or((rest, ""));
    let known: Vec<String> = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let nearest = nearest_name(field, &known);
    let key = match table {
        Some(table) if table.rsplit('.').next() == Some(field) => table.to_owned(),
        Some(table) => format!("{table}.{field}"),
        None => field.to_owned(),
    };
    ConfigError::UnknownKey { origin, key, nearest, known }
}

fn suggestion(nearest: &Option<String>, known: &[String]) -> String {
    match (nearest, known) {
        (Some(name), _) => format!("; did you mean `{name}`?"),
        (None, []) => "; no key is known here".to_owned(),
        (None, known) => format!("; known keys are `{}`", known.join("`, `")),
    }
}

/// The known name at the least edit distance, if no more than half of it would change.
fn nearest_name(name: &str, known: &[String]) -> Option<String> {
    let distances = known.iter().map(|candidate| (edit_distance(name, candidate), candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    (2 * distance <= candidate.chars().count().max(2)).then(|| candidate.clone())
}

/// Levenshtein distance in characters.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, symbol) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for column in 0..right.len() {
            let replaced = diagonal + usize::from(symbol != right[column]);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::ByteSize;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Recipe {
        steps: u32,
        name: Option<String>,
        optimizer: Optimizer,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Optimizer {
        learning_rate: f64,
        memory: Option<ByteSize>,
    }

    const TEXT: &str = "steps = 3\n[optimizer]\nlearning_rate = 0.1\n";

    fn parse(text: &str, sets: &[&str]) -> Result<Recipe, ConfigError> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        parse_config(text, "run.toml", &sets)
    }

    fn fault(text: &str, sets: &[&str]) -> String {
        parse(text, sets).expect_err("a fault").to_string()
    }

    #[test]
    fn sets_override_and_add() {
        let sets = ["steps=7", "name=a b", "optimizer.memory=2MiB", "optimizer.learning_rate=1e-3"];
        let recipe = parse(TEXT, &sets).expect("a recipe");
        let optimizer = Optimizer { learning_rate: 1e-3, memory: Some(ByteSize(2 << 20)) };
        assert_eq!(recipe, Recipe { steps: 7, name: Some("a b".into()), optimizer });
        assert_eq!(parse(TEXT, &["name=\"7\""]).expect("a recipe").name.as_deref(), Some("7"));
        assert_eq!(parse(TEXT, &["name=a=b"]).expect("a recipe").name.as_deref(), Some("a=b"));
    }

    #[test]
    fn an_unknown_key_is_named_with_file_and_nearest_name() {
        assert_eq!(
            fault(&TEXT.replace("learning_rate", "learning_rat"), &[]),
            "config `run.toml`: unknown key `optimizer.learning_rat`; did you mean `learning_rate`?"
        );
        assert_eq!(fault(TEXT, &["step=1"]), "config `run.toml`: unknown key `step`; did you mean `steps`?");
        assert_eq!(
            fault(TEXT, &["zzz=1"]),
            "config `run.toml`: unknown key `zzz`; known keys are `steps`, `name`, `optimizer`"
        );
    }

    #[test]
    fn a_wrong_value_names_key_and_both_types() {
        let message = fault(TEXT, &["optimizer.learning_rate=fast"]);
        assert!(message.starts_with("config `run.toml`: "), "{message}");
        assert!(message.contains("\"fast\"") && message.contains("f64"), "{message}");
        assert!(message.contains("optimizer.learning_rate"), "{message}");
        assert!(fault("steps = 1", &[]).contains("optimizer"));
    }

    #[test]
    fn a_malformed_set_is_refused() {
        for set in ["steps", "=1", "a..b=1", "steps.x=1"] {
            let message = fault(TEXT, &[set]);
            assert!(message.starts_with(&format!("config `run.toml`: `--set {set}`: ")), "{message}");
        }
        // A newline cannot smuggle in a second key.
        assert_eq!(parse(TEXT, &["name=1\nsteps=9"]).expect("a recipe").name.as_deref(), Some("1\nsteps=9"));
    }

    #[test]
    fn a_file_that_is_absent_or_no_toml_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("none.toml");
        let absent = load_config::<Recipe>(&path, &[]).expect_err("absent").to_string();
        assert!(absent.contains("none.toml"), "{absent}");
        std::fs::write(&path, "steps = = 3").expect("written");
        let broken = load_config::<Recipe>(&path, &[]).expect_err("broken").to_string();
        assert!(broken.contains("none.toml") && broken.contains("not TOML"), "{broken}");
    }

    #[test]
    fn edit_distance_counts_changes() {
        for (left, right, distance) in [("", "", 0), ("abc", "abc", 0), ("abc", "ab", 1), ("kitten", "sitting", 3)] {
            assert_eq!(edit_distance(left, right), distance);
            assert_eq!(edit_distance(right, left), distance);
        }
    }
}
