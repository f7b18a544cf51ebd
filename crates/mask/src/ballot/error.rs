//! What can be wrong with a ballot or a mask, and what to do about it.

use super::budgets::BudgetError;
use super::container::{Kind, VERSION};
use crate::codec::CodecError;
use crate::layout::LayoutError;
use crate::matrix_mask::PackedMaskError;
use crate::norms::NormError;
use crate::select::DeriveError;
use crate::sparsity::SparsityError;
use crate::{Digest, Matrix};

/// Why bytes are no ballot (or mask) for this model.
#[derive(Debug, thiserror::Error)]
pub enum BallotError {
    /// Some other file.
    #[error("this is no fedprune file: it does not start with `fedprune`")]
    NotOurs,
    /// A format that this program does not know.
    #[error(
        "it is written in format version {0}, and this program reads version {VERSION}; use a program of that version"
    )]
    Version(u16),
    /// Neither ballot, mask nor tally.
    #[error("it is of an unknown kind, {0}; it is damaged or from a newer program")]
    UnknownKind(u8),
    /// A file of ours in the wrong place.
    #[error("it is a {found}, and {wanted} is wanted here")]
    WrongKind {
        /// What it is.
        found: Kind,
        /// What would do.
        wanted: &'static str,
    },
    /// It ends too early.
    #[error("it is cut short: {what} needs {needed} bytes and {left} are left; fetch or compute it again")]
    Truncated {
        /// The part that is incomplete.
        what: &'static str,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are there.
        left: u64,
    },
    /// It goes on after its end.
    #[error("{0} bytes follow its end; it is damaged: fetch or compute it again")]
    Trailing(u64),
    /// The header is not one.
    #[error("its header is damaged; fetch or compute it again")]
    Header(#[from] CodecError),
    /// Made for another architecture or size.
    #[error(
        "it was made for another model: its layout is {found}, and this model's is {expected}; \
         use the checkpoint that it was made for",
        found = found.short(), expected = expected.short()
    )]
    OtherLayout {
        /// This model's layout.
        expected: Digest,
        /// The file's.
        found: Digest,
    },
    /// Group and sparsity contradict each other.
    #[error(transparent)]
    Sparsity(#[from] SparsityError),
    /// The group does not fit the model.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// An encoding that does not exist, or not for this kind of file.
    #[error(
        "matrices from `{matrix}` on have the encoding {byte}, which a {kind} does not have; it is damaged or from a newer program"
    )]
    Encoding {
        /// First matrix of the tap.
        matrix: String,
        /// The encoding byte.
        byte: u8,
        /// What the file is.
        kind: Kind,
    },
    /// The norms of all taps together are damaged.
    #[error("its norms are damaged: {0}")]
    NormSection(&'static str),
    /// The norms of one tap are damaged, or not as many as it has inputs.
    #[error("the norms for `{matrix}` cannot be used")]
    Norms {
        /// First matrix of the tap.
        matrix: String,
        /// What is wrong.
        source: NormError,
    },
    /// The caller gave a number of norm vectors, or of norms, that is not the layout's.
    #[error("there are {given} norm vectors for the {taps} inputs of the layout")]
    NormCount {
        /// Vectors given.
        given: usize,
        /// Taps of the layout.
        taps: usize,
    },
    /// The thresholds of all taps together are damaged.
    #[error("its column thresholds are damaged: {0}")]
    ThresholdSection(&'static str),
    /// The thresholds of one tap or matrix are damaged, or not those of a mask.
    #[error("the column thresholds of `{matrix}` are damaged: {problem}")]
    Thresholds {
        /// Tensor name; of a tap, its first matrix.
        matrix: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A bitmap is damaged.
    #[error("the bitmap of `{matrix}` is damaged: {problem}")]
    Bitmap {
        /// Tensor name.
        matrix: String,
        /// What is wrong with its compressed bytes.
        problem: &'static str,
    },
    /// A bitmap is not the packed bits of its matrix.
    #[error("the bitmap of `{matrix}` is damaged")]
    Packed {
        /// Tensor name.
        matrix: String,
        /// What is wrong.
        source: PackedMaskError,
    },
    /// A mask that prunes too much or too little.
    #[error("the mask of `{matrix}` breaks the rule of its header; its maker must compute it again")]
    Budget {
        /// Tensor name.
        matrix: String,
        /// In which pool.
        source: BudgetError,
    },
    /// Weights of another shape than the layout says.
    #[error(
        "`{matrix}` has the shape ({rows}, {columns}) in the layout, and what was given is ({given_rows}, {given_columns})"
    )]
    Shape {
        /// Tensor name.
        matrix: String,
        /// out_features in the layout.
        rows: u32,
        /// in_features in the layout.
        columns: u32,
        /// out_features given.
        given_rows: usize,
        /// in_features given.
        given_columns: usize,
    },
    /// A tally names a member in a way that is not shown on a terminal.
    #[error(
        "`{0}` cannot name a member: names have 1 to 64 bytes and no control characters; rename the ballot and tally again"
    )]
    MemberName(String),
    /// Norms, group and weights do not fit each other.
    #[error("the mask of `{matrix}` cannot be derived")]
    Derive {
        /// Tensor name.
        matrix: String,
        /// Why.
        source: DeriveError,
    },
}

/// Why a ballot, mask or tally could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError<E> {
    /// What was to be written is not valid.
    #[error(transparent)]
    Ballot(#[from] BallotError),
    /// The caller's sink, or its source of masks, failed.
    #[error(transparent)]
    Caller(E),
}

/// Refuses a shape other than the layout's.
pub(crate) fn check_shape(matrix: &Matrix, rows: usize, columns: usize) -> Result<(), BallotError> {
    if (rows, columns) == (matrix.rows as usize, matrix.columns as usize) {
        return Ok(());
    }
    Err(BallotError::Shape {
        matrix: matrix.name.clone(),
        rows: matrix.rows,
        columns: matrix.columns,
        given_rows: rows,
        given_columns: columns,
    })
}
