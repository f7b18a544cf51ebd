//! Writing ballots and masks, piece by piece: one matrix's mask is in memory at a time.

use super::bitmap_section;
use super::budgets::check_budgets;
use super::compress::Squeezer;
use super::container::{Header, Kind, MaskHeader, VoteHeader, check_header};
use super::error::{BallotError, EncodeError, check_shape};
use super::norm_section::{self, Planes};
use super::{EncodedBytes, Encoding};
use crate::layout::Layout;
use crate::matrix_mask::MatrixMask;
use crate::norms::NormVector;
use crate::select::derive_mask;
use crate::sparsity::{Group, Sparsity};
use crate::weights::MatrixSource;

/// Which encodings a ballot may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encodings {
    /// The smallest: norms, save for taps that feed next to nothing.
    #[default]
    Auto,
    /// Functions of the mask alone (the round's `ballots = "mask-only"`).
    MaskOnly,
}

/// Where bytes go; called with whole sections, in order.
pub type Sink<'s, E> = dyn FnMut(&[u8]) -> Result<(), E> + 's;

/// Writes the ballot of one silo.
///
/// `norms` has one vector for each tap of the layout, and is ignored for a data-free pruner. Weights are
/// read only for taps that are written as bitmaps, in layout order, and are given back through
/// [`MatrixSource::done_with`].
///
/// # Errors
/// [`EncodeError::Ballot`] when header, norms, layout and weights do not fit each other;
/// [`EncodeError::Caller`] with the sink's own error.
pub fn encode_ballot<E>(
    header: &VoteHeader,
    layout: &Layout,
    norms: &[NormVector],
    encodings: Encodings,
    weights: &dyn MatrixSource,
    sink: &mut Sink<'_, E>,
) -> Result<EncodedBytes, EncodeError<E>> {
    encode_ballot_with(header, layout, norms, encodings, Planes::Smallest, weights, sink)
}

pub(super) fn encode_ballot_with<E>(
    header: &VoteHeader,
    layout: &Layout,
    norms: &[NormVector],
    encodings: Encodings,
    planes: Planes,
    weights: &dyn MatrixSource,
    sink: &mut Sink<'_, E>,
) -> Result<EncodedBytes, EncodeError<E>> {
    let header_bytes = checked_header(Header::Vote(header.clone()), layout)?;
    let no_norms = NormVector::default();
    let uses_norms = header.pruner.scorer().uses_norms();
    if uses_norms {
        check_widths(layout, norms)?;
    }
    let norms_of = |tap: usize| if uses_norms { &norms[tap] } else { &no_norms };
    let mask_of = |tap: usize, index: usize| -> Result<MatrixMask, BallotError> {
        let matrix = &layout.matrices()[index];
        let view = weights.matrix(index);
        check_shape(matrix, view.rows(), view.columns())?;
        let mask = derive_mask(header.pruner, header.group, header.sparsity, view, norms_of(tap))
            .map_err(|source| BallotError::Derive { matrix: matrix.name.clone(), source });
        weights.done_with(index);
        mask
    };
    let mut squeezer = Squeezer::new();

    // Bitmaps that won against their norms; both are tiny there, so they may wait in memory.
    let mut won: Vec<Option<Vec<u8>>> = vec![None; layout.taps().len()];
    let mut all_norms = None;
    if encodings == Encodings::Auto && uses_norms {
        let section = norm_section::encode(norms.iter(), planes);
        let together = section.len() as u64;
        all_norms = Some(section);
        let channels: u64 = norms.iter().map(|norms| norms.len() as u64).sum();
        for (tap, range) in layout.taps().iter().enumerate() {
            let norm_bytes = (norms[tap].len() as u64 * together).div_ceil(channels.max(1));
            let packed_bytes: u64 = layout.matrices()[range.clone()].iter().map(|matrix| matrix.packed_bytes()).sum();
            if packed_bytes > 2 * norm_bytes {
                continue;
            }
            let mut sections = Vec::new();
            for index in range.clone() {
                sections.extend(bitmap_section::encode(&mask_of(tap, index)?, &mut squeezer));
            }
            if (sections.len() as u64) < norm_bytes {
                won[tap] = Some(sections);
            }
        }
    }
    let encoding_of = |tap: usize| match encodings {
        Encodings::Auto if won[tap].is_none() => Encoding::Norms,
        _ => Encoding::Bitmap,
    };

    let mut head = header_bytes;
    head.extend((0..layout.taps().len()).map(|tap| encoding_of(tap) as u8));
    let mut written = EncodedBytes { header: head.len() as u64, ..EncodedBytes::default() };
    sink(&head).map_err(EncodeError::Caller)?;
    let by_norms: Vec<usize> = (0..layout.taps().len()).filter(|&tap| encoding_of(tap) == Encoding::Norms).collect();
    if uses_norms && !by_norms.is_empty() {
        let section = match all_norms {
            Some(section) if by_norms.len() == norms.len() => section,
            _ => norm_section::encode(by_norms.iter().map(|&tap| &norms[tap]), planes),
        };
        written.norms += section.len() as u64;
        sink(&section).map_err(EncodeError::Caller)?;
    }
    for (tap, range) in layout.taps().iter().enumerate() {
        if encoding_of(tap) == Encoding::Norms {
            continue;
        }
        if let Some(sections) = &won[tap] {
            written.bitmaps += sections.len() as u64;
            sink(sections).map_err(EncodeError::Caller)?;
            continue;
        }
        for index in range.clone() {
            let section = bitmap_section::encode(&mask_of(tap, index)?, &mut squeezer);
            written.bitmaps += section.len() as u64;
            sink(&section).map_err(EncodeError::Caller)?;
        }
    }
    Ok(written)
}

/// Writes an explicit mask; `masks` is asked for each matrix once, in layout order.
///
/// # Errors
/// [`EncodeError::Ballot`] when a mask has another shape or budget than layout and header say;
/// [`EncodeError::Caller`] with the error of `masks` or `sink`.
pub fn encode_mask<E>(
    header: &MaskHeader,
    layout: &Layout,
    masks: &mut dyn FnMut(usize) -> Result<MatrixMask, E>,
    sink: &mut Sink<'_, E>,
) -> Result<EncodedBytes, EncodeError<E>> {
    let mut head = checked_header(Header::Mask(header.clone()), layout)?;
    head.extend(layout.taps().iter().map(|_| Encoding::Bitmap as u8));
    let mut written = EncodedBytes { header: head.len() as u64, ..EncodedBytes::default() };
    sink(&head).map_err(EncodeError::Caller)?;
    let mut squeezer = Squeezer::new();
    for (index, matrix) in layout.matrices().iter().enumerate() {
        let mask = masks(index).map_err(EncodeError::Caller)?;
        check_shape(matrix, mask.rows(), mask.columns())?;
        check_mask(&mask, &matrix.name, header.group, header.sparsity)?;
        let section = bitmap_section::encode(&mask, &mut squeezer);
        written.bitmaps += section.len() as u64;
        sink(&section).map_err(EncodeError::Caller)?;
    }
    Ok(written)
}

/// [`check_budgets`], with the matrix named.
pub(super) fn check_mask(mask: &MatrixMask, name: &str, group: Group, sparsity: Sparsity) -> Result<(), BallotError> {
    check_budgets(mask, group, sparsity).map_err(|source| BallotError::Budget { matrix: name.to_owned(), source })
}

fn checked_header(header: Header, layout: &Layout) -> Result<Vec<u8>, BallotError> {
    debug_assert_ne!(header.kind(), Kind::Tally);
    check_header(&header, layout)?;
    Ok(header.to_bytes())
}

fn check_widths(layout: &Layout, norms: &[NormVector]) -> Result<(), BallotError> {
    if norms.len() != layout.taps().len() {
        return Err(BallotError::NormCount { given: norms.len(), taps: layout.taps().len() });
    }
    for (norms, range) in norms.iter().zip(layout.taps()) {
        let matrix = &layout.matrices()[range.start];
        if norms.len() != matrix.columns as usize {
            let source = crate::score::WidthError::new(norms.len(), matrix.columns as usize).into();
            return Err(BallotError::Derive { matrix: matrix.name.clone(), source });
        }
    }
    Ok(())
}
