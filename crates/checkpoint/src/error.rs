//! Everything that can be wrong with a checkpoint, each with the file, the tensor and the remedy.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use fedprune_mask::layout::LayoutError;

use crate::config::ModelType;

/// An error of a caller's own code, kept as the cause.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Why a checkpoint cannot be opened, or its copy not be written.
///
/// Messages say what was found and what to do; operating-system and parser errors are the `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The path is no folder.
    #[error("`{}` is not a folder; give the folder that holds `config.json` and `model.safetensors`", path.display())]
    NotAFolder {
        /// As given.
        path: PathBuf,
    },
    /// A file could not be read.
    #[error("cannot {action} `{}`; {remedy}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file that has to be read whole is larger than any honest one.
    #[error("`{}` has {bytes} bytes, more than the {limit} allowed for such a file; replace it by the model's own", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u64,
    },
    /// Not JSON, or not of the expected structure.
    #[error("`{}` is not valid JSON for what it should be; download it again", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// `model_type` is none of the supported architectures.
    #[error(
        "`{}` says `model_type` is `{found}`, which cannot be pruned; supported are {}",
        path.display(), ModelType::list()
    )]
    UnknownModelType {
        /// `config.json`.
        path: PathBuf,
        /// The type found, or what stands in its place.
        found: String,
    },
    /// A field of `config.json` is missing, out of bounds, or asks for what is not supported.
    #[error("`{}`: field `{field}` {problem}; {remedy}", path.display())]
    Config {
        /// `config.json`.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// Neither `model.safetensors` nor an index.
    #[error("`{}` holds neither `model.safetensors` nor `model.safetensors.index.json`; {remedy}", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// Download, or convert what is there.
        remedy: String,
    },
    /// The index is not believed.
    #[error("`{}`: {problem}; download the index again", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file named by the index is not there.
    #[error("shard `{}` is missing: `{}` places tensor `{tensor}` in it; download that file into the folder", shard.display(), index.display())]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The missing file.
        shard: PathBuf,
        /// The first tensor that it should hold.
        tensor: String,
    },
    /// A safetensors header that contradicts itself or its file.
    #[error("`{}`{}: {problem}; {remedy}", path.display(), OfTensor(tensor))]
    Header {
        /// The safetensors file.
        path: PathBuf,
        /// The tensor at fault, where there is one.
        tensor: Option<String>,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: &'static str,
        /// The parser's reason, where a parser refused it.
        source: Option<BoxError>,
    },
    /// Two shards hold the same name.
    #[error(
        "tensor `{tensor}` is stored in both `{}` and `{}`; remove the stale file and correct the index, or download the folder again",
        first.display(), second.display()
    )]
    DuplicateTensor {
        /// The name.
        tensor: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// A tensor that the configuration implies, or the caller asks for, is not stored.
    #[error("tensor `{tensor}` is missing from `{}`; {remedy}", path.display())]
    MissingTensor {
        /// The name.
        tensor: String,
        /// The weight file, or the folder when there are several.
        path: PathBuf,
        /// What to do.
        remedy: String,
    },
    /// A stored shape contradicts `config.json`.
    #[error(
        "`{}`: tensor `{tensor}` has shape {}, but `config.json` implies {}; restore the `config.json` that belongs to these weights",
        path.display(), Shape(stored), Shape(expected)
    )]
    Shape {
        /// The safetensors file.
        path: PathBuf,
        /// The name.
        tensor: String,
        /// The shape in its header.
        stored: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A stored format that is not read.
    #[error(
        "`{}`: tensor `{tensor}` is stored as {dtype}; only BF16, F16 and F32 weights can be read: convert the model to one of them",
        path.display()
    )]
    DType {
        /// The safetensors file.
        path: PathBuf,
        /// The name.
        tensor: String,
        /// The format, as safetensors names it.
        dtype: String,
    },
    /// The model's matrices are no layout.
    #[error("the matrices that `{}` implies cannot be pruned; use the model's own `config.json`", path.display())]
    Layout {
        /// `config.json`.
        path: PathBuf,
        /// Which matrix, and why.
        source: LayoutError,
    },
    /// The place for the copy is taken.
    #[error("`{}` exists already; choose another path for the pruned copy, or remove it first", path.display())]
    OutExists {
        /// As given.
        path: PathBuf,
    },
    /// The place for the copy is no place.
    #[error("`{}` cannot become a folder: {problem}; {remedy}", path.display())]
    OutPath {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The disk is full, or would become so.
    #[error(
        "no room for `{}`: {needed_bytes} bytes are needed and {available_bytes} are available; \
         nothing was left behind: free some space, or choose another disk",
        path.display()
    )]
    NoSpace {
        /// The file or folder that does not fit.
        path: PathBuf,
        /// What it needs.
        needed_bytes: u64,
        /// What the file system (or the process's limit on file size) has.
        available_bytes: u64,
        /// The write that failed; absent when refused before anything was written.
        source: Option<io::Error>,
    },
    /// A link that leads out of the checkpoint would be published with the copy.
    #[error(
        "`{}` is a link to `{}`, outside the checkpoint; replace it by the file that belongs there, or remove it",
        path.display(), target.display()
    )]
    LinkLeaves {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// A file to be added has no usable name.
    #[error("the added file `{name}` {problem}; choose another name")]
    ExtraName {
        /// As given.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The caller's function failed on an added file.
    #[error("cannot write the added file `{name}`; nothing was left behind")]
    Extra {
        /// Its name.
        name: String,
        /// The function's error.
        source: BoxError,
    },
    /// The caller's function failed on a matrix.
    #[error("cannot prune tensor `{tensor}` of `{}`; nothing was left behind", path.display())]
    Edit {
        /// The matrix.
        tensor: String,
        /// The safetensors file that it came from.
        path: PathBuf,
        /// The function's error.
        source: BoxError,
    },
}

/// ` : tensor` for the middle of a message, or nothing.
struct OfTensor<'a>(&'a Option<String>);

impl fmt::Display for OfTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |tensor| write!(f, ", tensor `{}`", shorten(tensor)))
    }
}

/// A shape as `(out, in)`.
pub(crate) struct Shape<'a>(pub &'a [usize]);

impl fmt::Display for Shape<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (index, dimension) in self.0.iter().enumerate() {
            write!(f, "{}{dimension}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str(")")
    }
}

/// Text from a file as far as a message should repeat it: one line, no control characters.
pub(crate) fn shorten(text: &str) -> String {
    const MOST: usize = 120;
    let shown = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    let mut short: String = text.chars().take(MOST).map(shown).collect();
    if text.chars().nth(MOST).is_some() {
        short.push('…');
    }
    short
}

/// Attaches what was tried and where to an I/O error.
pub(crate) fn reading(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    move |source| CheckpointError::Io {
        action,
        path: path.to_owned(),
        remedy: "check that it exists and may be read",
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_files_is_shortened_and_tamed() {
        assert_eq!(shorten("a\nb\u{1b}[31m"), "a\u{fffd}b\u{fffd}[31m");
        let long = shorten(&"é".repeat(5000));
        assert_eq!(long.chars().count(), 121);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn shapes_read_as_tuples() {
        assert_eq!(Shape(&[256, 64]).to_string(), "(256, 64)");
        assert_eq!(Shape(&[64]).to_string(), "(64)");
        assert_eq!(Shape(&[]).to_string(), "()");
    }
}
