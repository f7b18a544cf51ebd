//! What can go wrong while a study runs.

use std::path::PathBuf;

use fedprune_mask::ballot::{BallotError, EncodeError};
use fedprune_mask::tally::TallyError;
use fedprune_model::ModelError;
use fedprune_prune::PruneError;

use crate::plan::PlanError;

/// A study could not go on. What was measured before stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StudyError {
    /// The study asks for what cannot be.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The decoder failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A mask could not be computed.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// Ballots could not be counted.
    #[error(transparent)]
    Tally(#[from] TallyError),
    /// A ballot could not be encoded.
    #[error("a ballot could not be written")]
    Encode(#[source] BallotError),
    /// A kept ballot is not what was kept.
    #[error("the kept ballot `{}` is damaged; remove it, and the same command measures it again", path.display())]
    Kept {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: BallotError,
    },
    /// The folder's measurements are not readable.
    #[error("line {line} of `{}` is not a measurement ({why}); remove that line, and the same command measures it again", path.display())]
    Measurement {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Reading or writing a file.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A figure could not be drawn.
    #[error("a figure could not be drawn")]
    Figure(#[from] crate::figures::FigureError),
    /// Whoever runs the study wants it to stop.
    #[error("stopped; the same command goes on")]
    Stopped,
}

impl StudyError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

impl From<EncodeError<std::io::Error>> for StudyError {
    fn from(error: EncodeError<std::io::Error>) -> Self {
        match error {
            EncodeError::Ballot(error) => Self::Encode(error),
            EncodeError::Caller(source) => Self::Io { action: "write", path: PathBuf::from("a ballot"), source },
        }
    }
}
