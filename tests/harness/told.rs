//! Errors as text.

use std::error::Error;

/// An error with its causes, a colon between each two.
pub fn told(fault: &dyn Error) -> String {
    let causes = std::iter::successors(Some(fault), |&fault| fault.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
