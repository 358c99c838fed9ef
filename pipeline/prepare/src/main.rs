//! The `pipeline` binary; everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    vela_prepare::cli::run()
}
