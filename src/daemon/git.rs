//! Git, as a command and as a library.

use crate::domain::attempt::{Failure, FailureClass};

/// Why something about a repository or worktree failed: a class that decides about the retry, and a sentence for people.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Decides what follows.
    pub class: FailureClass,
    /// For people; says what to do where there is something to do.
    pub message: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.class, error.message)
    }
}
