//! The frame of every command: telemetry, signals, one outcome, one exit code.

use std::any::Any;
use std::error::Error;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use serde::Serialize;

use crate::{ConfigError, Shutdown, telemetry};

/// What the exit code of a command says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// The work is done.
    Done = 0,
    /// Anything that is not one of the others.
    Failure = 1,
    /// Wrong flags or config.
    Usage = 2,
    /// The data is below the accepted quality.
    Quality = 3,
}

/// Why a command failed, with the exit code it ends with.
///
/// Made from any error by `?`; one that has a [`ConfigError`] in its chain is [`ExitStatus::Usage`].
#[derive(Debug)]
pub struct CommandError {
    /// The exit code.
    pub status: ExitStatus,
    source: Box<dyn Error + Send + Sync>,
}

impl CommandError {
    /// A plain failure; takes errors, boxed errors and text.
    pub fn failure(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { status: ExitStatus::Failure, source: error.into() }
    }

    /// Wrong flags or config.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { status: ExitStatus::Usage, source: error.into() }
    }

    /// Data below the accepted quality.
    pub fn quality(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { status: ExitStatus::Quality, source: error.into() }
    }

    /// `error: ...` and one `caused by: ...` line for each source; a source whose text its parent already ends with
    /// is not repeated.
    fn report(&self) -> String {
        let mut text = format!("error: {}\n", self.source);
        let mut last_said = self.source.to_string();
        let mut cause = self.source.source();
        while let Some(error) = cause {
            let said = error.to_string();
            if !last_said.ends_with(&said) {
                text.push_str(&format!("caused by: {said}\n"));
            }
            last_said = said;
            cause = error.source();
        }
        text
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for CommandError {
    fn from(error: E) -> Self {
        let status = match stems_from_config(&error) {
            true => ExitStatus::Usage,
            false => ExitStatus::Failure,
        };
        Self { status, source: Box::new(error) }
    }
}

fn stems_from_config<E: Error + 'static>(error: &E) -> bool {
    let mut cause = error.source();
    while let Some(source) = cause {
        if source.is::<ConfigError>() {
            return true;
        }
        cause = source.source();
    }
    (error as &dyn Any).is::<ConfigError>()
}

/// What a command that ran to its end says.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The object printed under `--json`.
    pub json: serde_json::Value,
    /// The text printed otherwise.
    pub human: String,
    /// The exit code.
    pub status: ExitStatus,
}

impl Outcome {
    /// Done, with `report` as the JSON object.
    pub fn done(report: &impl Serialize, human: impl Into<String>) -> Result<Self, serde_json::Error> {
        Ok(Self { json: serde_json::to_value(report)?, human: human.into(), status: ExitStatus::Done })
    }

    /// The same outcome with another exit code.
    pub fn with_status(self, status: ExitStatus) -> Self {
        Self { status, ..self }
    }
}

/// Runs one command from start to exit code.
///
/// Installs telemetry (stderr, `RUST_LOG`) and signal handling, runs `body`, then prints: the human text to stdout, or
/// with `json` the JSON object as the only line of stdout and the human text to stderr. An error is printed to stderr
/// with its causes. A panic in `body` is a failure like any other.
pub fn run_command(json: bool, body: impl FnOnce(&Shutdown) -> Result<Outcome, CommandError>) -> ExitCode {
    telemetry::install();
    let result = Shutdown::on_signals().map_err(CommandError::from).and_then(|shutdown| {
        let panicked = |_| Err(CommandError::failure("the command panicked; this is a bug, please report it"));
        catch_unwind(AssertUnwindSafe(|| body(&shutdown))).unwrap_or_else(panicked)
    });
    match result.and_then(|outcome| print_outcome(&outcome, json)) {
        Ok(status) => ExitCode::from(status as u8),
        Err(error) => {
            // With stderr gone there is nobody left to tell; the exit code still speaks.
            let _ = std::io::stderr().write_all(error.report().as_bytes());
            ExitCode::from(error.status as u8)
        }
    }
}

fn print_outcome(outcome: &Outcome, json: bool) -> Result<ExitStatus, CommandError> {
    let human = outcome.human.trim_end();
    let mut stdout = std::io::stdout().lock();
    match json {
        true => {
            let _ = writeln!(std::io::stderr(), "{human}");
            writeln!(stdout, "{}", outcome.json)?;
        }
        false if human.is_empty() => {}
        false => writeln!(stdout, "{human}")?,
    }
    stdout.flush()?;
    Ok(outcome.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer at `{place}`")]
    struct Outer {
        place: &'static str,
        source: std::num::ParseIntError,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("recipe cannot be used")]
    struct Recipe {
        source: ConfigError,
    }

    fn outer() -> Outer {
        Outer { place: "here", source: "x".parse::<u8>().expect_err("not a number") }
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let report = CommandError::from(outer()).report();
        assert_eq!(report, "error: outer at `here`\ncaused by: invalid digit found in string\n");
    }

    #[test]
    fn a_config_error_anywhere_in_the_chain_means_wrong_use() {
        let config = || crate::parse_config::<u8>("", "test", &["nonsense".into()]).expect_err("no `=`");
        assert_eq!(CommandError::from(config()).status, ExitStatus::Usage);
        assert_eq!(CommandError::from(Recipe { source: config() }).status, ExitStatus::Usage);
        assert_eq!(CommandError::from(outer()).status, ExitStatus::Failure);
        assert_eq!(CommandError::quality("too many rejects").status, ExitStatus::Quality);
    }

    #[test]
    fn exit_codes_follow_the_outcome() {
        let code = |body: fn(&Shutdown) -> Result<Outcome, CommandError>| format!("{:?}", run_command(true, body));
        let exit = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(code(|_| Ok(Outcome::done(&1, "fine")?)), exit(0));
        assert_eq!(code(|_| Ok(Outcome::done(&1, "poor")?.with_status(ExitStatus::Quality))), exit(3));
        assert_eq!(code(|_| Err(CommandError::usage("wrong flag"))), exit(2));
        assert_eq!(code(|_| Err(outer().into())), exit(1));
        assert_eq!(code(|_| panic!("on purpose")), exit(1));
    }
}
