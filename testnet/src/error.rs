//! Why a testnet could not be run at all; one that ran and failed is a [`crate::Report`].

use std::io;
use std::path::{Path, PathBuf};

use crate::manifest::ManifestError;

/// Why a testnet could not be run.
#[derive(Debug, thiserror::Error)]
pub enum TestnetError {
    /// No manifest.
    #[error("`{}` is no testnet", .path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// A file, folder or process.
    #[error("cannot {doing} `{}`", .path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// Of what.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The folder that a run is to make is there.
    #[error("`{}` exists, and a run makes its own folder: give another with --out, or none", .0.display())]
    FolderExists(PathBuf),
    /// A text that a manifest names is not bundled.
    #[error("silo `{silo}` asks for the bundled text `{text}`: there are {known}")]
    NoSuchText {
        /// Whose.
        silo: String,
        /// Which.
        text: String,
        /// Those that there are.
        known: String,
    },
    /// The bundled model and texts could not be written.
    #[error("cannot write the bundled model and texts to `{}`", .path.display())]
    Bundle {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A silo lies, and the program that does is not there.
    #[error(
        "silo `{silo}` lies, which is done by a program of its own, and there is no `{}`; build it with `cargo build \
         --release -p fedprune-tests --bin fedprune-lying-node`, or say where it is with `--lying-program FILE`",
        .path.display()
    )]
    NoLyingProgram {
        /// Whose.
        silo: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// One of the commands that set a testnet up failed.
    #[error("`{command}` ended with {status}:\n{said}")]
    Command {
        /// As it is typed.
        command: String,
        /// Its exit code or signal.
        status: String,
        /// The last that it said.
        said: String,
    },
    /// One of the commands did not end.
    #[error("`{command}` did not end within {seconds} s")]
    CommandTime {
        /// As it is typed.
        command: String,
        /// The limit.
        seconds: u64,
    },
    /// One of the commands made or said something that the runner cannot use.
    #[error("`{command}` succeeded, and {problem}")]
    Answer {
        /// As it is typed.
        command: String,
        /// What is wrong.
        problem: String,
    },
    /// Someone asked to stop.
    #[error("stopped on request; all nodes were ended")]
    Stopped,
}

/// For `map_err`: what was done to which path.
pub(crate) fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> TestnetError + 'a {
    move |source| TestnetError::Io { doing, path: path.to_owned(), source }
}
