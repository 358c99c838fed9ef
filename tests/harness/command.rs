//! Running the real binaries.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use serde_json::Value;

/// A command that has ended.
pub struct Finished {
    /// Exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
}

impl Finished {
    /// The JSON object on the last line of standard output.
    ///
    /// # Panics
    /// If there is none: the message shows both streams.
    pub fn json(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|fault| panic!("no JSON on the last line ({fault}): {self}"))
    }

    /// The command itself, if it ended with `code`.
    ///
    /// # Panics
    /// If it did not: the message shows both streams.
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "exit {:?}\n--- stdout\n{}\n--- stderr\n{}", self.code, self.stdout, self.stderr)
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A command still running; killed when dropped.
pub struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    /// Reads standard error until a line contains `mark`, and gives that line.
    ///
    /// # Panics
    /// If the command ends first: the message shows what it said.
    pub fn wait_for(&mut self, mark: &str) -> String {
        let mut said = String::new();
        loop {
            let mut line = String::new();
            let length = self.stderr.read_line(&mut line).expect("standard error can be read");
            assert!(length > 0, "the command ended before it said `{mark}`:\n{said}");
            if line.contains(mark) {
                return line;
            }
            said.push_str(&line);
        }
    }

    /// Ends the process without a chance to clean up (SIGKILL) and waits for it.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The child may have ended by itself; there is nothing left to do then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Path of a binary of this workspace, built beside the test that runs.
fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(|deps| deps.parent()).expect("tests lie in target/<profile>/deps");
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not built; run `cargo test --workspace` or `cargo build`", path.display());
    path
}

fn command(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary(name));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a binary of this workspace to its end.
pub fn run(name: &str, arguments: &[&str]) -> Finished {
    command(name, arguments).output().expect("a built binary starts").into()
}

/// Starts a binary of this workspace; standard error is kept for [`Running::wait_for`].
pub fn start(name: &str, arguments: &[&str]) -> Running {
    let mut command = command(name, arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a built binary starts");
    let stderr = BufReader::new(child.stderr.take().expect("standard error is piped"));
    Running { child, stderr }
}
