//! Writing ballots and masks, piece by piece: one matrix's mask is in memory at a time.

use super::bitmap_section;
use super::budgets::check_budgets;
use super::compress::Squeezer;
use super::container::{Header, Kind, MaskHeader, VoteHeader, check_header};
use super::error::{BallotError, EncodeError, check_shape};
use super::norm_section;
use super::threshold_section::Writer as ThresholdWriter;
use super::{EncodedBytes, Encoding};
use crate::layout::{Layout, Matrix};
use crate::matrix_mask::MatrixMask;
use crate::norms::NormVector;
use crate::select::derive_mask;
use crate::sparsity::{Group, Sparsity};
use crate::thresholds::Gaps;
use crate::thresholds::derive::derive_gaps;
use crate::weights::{DType, MatrixSource};

/// Which encodings a ballot may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encodings {
    /// The smallest: norms, save for taps that feed next to nothing.
    #[default]
    Auto,
    /// Functions of the mask alone (the round's `ballots = "mask-only"`): column thresholds where the mask has
    /// them and they are smaller than its bits, which for the group `layer` they nearly always are.
    MaskOnly,
}

/// How many times larger than its norms a tap's packed bits may be for other encodings to be tried against
/// them: with more rows than that they lose, or win by a hair, and trying them reads the weights.
const WORTH_A_LOOK: u64 = 16;
/// Thresholds never take more a column.
const MOST_BYTES_A_COLUMN: u64 = 8;

/// What a tap is written as.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    Norms,
    Thresholds,
    /// With the sections, if they have been made.
    Bitmaps(Option<Vec<u8>>),
}

impl Choice {
    fn encoding(&self) -> Encoding {
        match self {
            Choice::Norms => Encoding::Norms,
            Choice::Thresholds => Encoding::ColumnThresholds,
            Choice::Bitmaps(_) => Encoding::Bitmap,
        }
    }
}

/// The gaps of all matrices of a tap and how they are stored, if all masks are column prefixes and one format.
fn gaps_of_tap<E>(
    range: std::ops::Range<usize>,
    weights: &dyn MatrixSource,
    mut gaps_of: impl FnMut(usize) -> Result<Option<Gaps>, E>,
) -> Result<Option<(DType, Vec<Gaps>)>, E> {
    let dtype = weights.matrix(range.start).dtype();
    if range.clone().any(|index| weights.matrix(index).dtype() != dtype) {
        return Ok(None);
    }
    let mut all = Vec::with_capacity(range.len());
    for index in range {
        match gaps_of(index)? {
            Some(gaps) => all.push(gaps),
            None => return Ok(None),
        }
    }
    Ok(Some((dtype, all)))
}

/// Where bytes go; called with whole sections, in order.
pub type Sink<'s, E> = dyn FnMut(&[u8]) -> Result<(), E> + 's;

/// Writes the ballot of one silo.
///
/// `norms` has one vector for each tap of the layout, and is ignored for a data-free pruner; a tap with an empty one is
/// pruned by magnitude, and carried as its mask. Weights are
/// read only for taps that may be written as thresholds or bitmaps, in layout order (again for large bitmaps, if
/// thresholds were possible), and are given back through [`MatrixSource::done_with`].
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
    let header_bytes = checked_header(Header::Vote(header.clone()), layout)?;
    let no_norms = NormVector::default();
    let uses_norms = header.pruner.scorer().uses_norms();
    if uses_norms {
        check_widths(layout, norms)?;
    }
    let kind_of = |tap: usize| layout.matrices()[layout.taps()[tap].start].tap;
    let norms_of = |tap: usize| if uses_norms { &norms[tap] } else { &no_norms };
    // what a ballot says by norms, and its reader scores by them
    let by_norms = |tap: usize| !uses_norms || !norms[tap].is_empty();
    let mask_of = |tap: usize, index: usize| -> Result<MatrixMask, BallotError> {
        let matrix = &layout.matrices()[index];
        let view = weights.matrix(index);
        check_shape(matrix, view.rows(), view.columns())?;
        let pruner = header.pruner.with(norms_of(tap));
        let mask = derive_mask(pruner, header.group, header.sparsity, view, norms_of(tap))
            .map_err(|source| BallotError::Derive { matrix: matrix.name.clone(), source });
        weights.done_with(index);
        mask
    };
    let gaps_of = |tap: usize, index: usize| -> Result<Option<Gaps>, BallotError> {
        let matrix = &layout.matrices()[index];
        let view = weights.matrix(index);
        check_shape(matrix, view.rows(), view.columns())?;
        let gaps = derive_gaps(header.pruner.with(norms_of(tap)), header.sparsity, view, norms_of(tap))
            .map_err(|source| BallotError::Derive { matrix: matrix.name.clone(), source });
        weights.done_with(index);
        gaps
    };
    let mut squeezer = Squeezer::new();

    // Bitmaps that won are tiny, so they may wait in memory; larger ones are made again when they are written.
    let mut choices = vec![Choice::Bitmaps(None); layout.taps().len()];
    let mut threshold_writer = ThresholdWriter::new(layout);
    let mut all_norms = None;
    let mut bytes_a_norm = (0, 1);
    if encodings == Encodings::Auto && uses_norms {
        let there = norms.iter().enumerate().filter(|(_, norms)| !norms.is_empty());
        let section = norm_section::encode(there.map(|(tap, norms)| (kind_of(tap), norms)));
        bytes_a_norm = (section.len() as u64, norms.iter().map(|norms| norms.len() as u64).sum::<u64>().max(1));
        all_norms = Some(section);
    }
    for (tap, range) in layout.taps().iter().enumerate() {
        let packed_bytes: u64 = layout.matrices()[range.clone()].iter().map(|matrix| matrix.packed_bytes()).sum();
        let columns: u64 = layout.matrices()[range.clone()].iter().map(|matrix| u64::from(matrix.columns)).sum();
        // what norms cost here; of those that a pruner does not need, nothing
        let mut smallest = u64::MAX;
        if encodings == Encodings::Auto && by_norms(tap) {
            choices[tap] = Choice::Norms;
            let own = if uses_norms { norms[tap].len() as u64 } else { 0 };
            smallest = (own * bytes_a_norm.0).div_ceil(bytes_a_norm.1);
            if packed_bytes > WORTH_A_LOOK * smallest {
                continue;
            }
        }
        let mut gaps = None;
        if header.group == Group::Layer {
            gaps = gaps_of_tap(range.clone(), weights, |index| gaps_of(tap, index))?;
        }
        if let Some((dtype, gaps)) = &gaps {
            // compared by themselves, which is a little more than they take together
            let surely = encodings == Encodings::MaskOnly && packed_bytes > MOST_BYTES_A_COLUMN * columns;
            let bytes = if surely { 0 } else { ThresholdWriter::new(layout).add(tap, *dtype, gaps) };
            if bytes < smallest {
                (smallest, choices[tap]) = (bytes, Choice::Thresholds);
            }
        }
        let rivals = encodings == Encodings::Auto && by_norms(tap) || gaps.is_some();
        if rivals && packed_bytes <= smallest.saturating_mul(2) {
            let mut sections = Vec::new();
            for index in range.clone() {
                sections.extend(bitmap_section::encode(&mask_of(tap, index)?, &mut squeezer));
            }
            if (sections.len() as u64) < smallest {
                choices[tap] = Choice::Bitmaps(Some(sections));
            }
        }
        if let (Choice::Thresholds, Some((dtype, gaps))) = (&choices[tap], &gaps) {
            threshold_writer.add(tap, *dtype, gaps);
        }
    }
    let encoding_of = |tap: usize| choices[tap].encoding();

    let mut head = header_bytes;
    head.extend((0..layout.taps().len()).map(|tap| encoding_of(tap) as u8));
    let mut written = EncodedBytes { header: head.len() as u64, ..EncodedBytes::default() };
    sink(&head).map_err(EncodeError::Caller)?;
    let carried: Vec<usize> = (0..layout.taps().len()).filter(|&tap| encoding_of(tap) == Encoding::Norms).collect();
    if uses_norms && !carried.is_empty() {
        let section = match all_norms {
            Some(section) if carried.len() == norms.len() => section,
            _ => norm_section::encode(carried.iter().map(|&tap| (kind_of(tap), &norms[tap]))),
        };
        written.norms += section.len() as u64;
        sink(&section).map_err(EncodeError::Caller)?;
    }
    if choices.contains(&Choice::Thresholds) {
        let section = threshold_writer.finish();
        written.thresholds += section.len() as u64;
        sink(&section).map_err(EncodeError::Caller)?;
    }
    for (tap, range) in layout.taps().iter().enumerate() {
        let Choice::Bitmaps(waiting) = &choices[tap] else { continue };
        if let Some(sections) = waiting {
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

/// Writes an explicit mask as bitmaps; `masks` is asked for each matrix once, in layout order.
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
    let head = mask_head(header, layout)?;
    let mut written = EncodedBytes { header: head.len() as u64, ..EncodedBytes::default() };
    sink(&head).map_err(EncodeError::Caller)?;
    let mut sections = MaskSections::new(header.group, header.sparsity);
    for (index, matrix) in layout.matrices().iter().enumerate() {
        let mask = masks(index).map_err(EncodeError::Caller)?;
        let section = sections.section(matrix, &mask)?;
        written.bitmaps += section.len() as u64;
        sink(&section).map_err(EncodeError::Caller)?;
    }
    Ok(written)
}

/// What an explicit mask in bitmaps begins with. After it come the [`MaskSections`] in layout order: together what
/// [`encode_mask`] writes, for a caller that has its matrices in another order.
///
/// # Errors
/// [`BallotError`] when header and layout do not fit each other.
pub fn mask_head(header: &MaskHeader, layout: &Layout) -> Result<Vec<u8>, BallotError> {
    let mut head = checked_header(Header::Mask(header.clone()), layout)?;
    head.extend(layout.taps().iter().map(|_| Encoding::Bitmap as u8));
    Ok(head)
}

/// Writes the sections of an explicit mask in bitmaps, one a matrix.
pub struct MaskSections {
    group: Group,
    sparsity: Sparsity,
    squeezer: Squeezer,
}

impl MaskSections {
    /// Of a mask that prunes `sparsity` of each pool of `group`.
    pub fn new(group: Group, sparsity: Sparsity) -> Self {
        Self { group, sparsity, squeezer: Squeezer::new() }
    }

    /// The section of one matrix.
    ///
    /// # Errors
    /// [`BallotError`] for another shape, and for a mask that does not keep its budgets.
    pub fn section(&mut self, matrix: &Matrix, mask: &MatrixMask) -> Result<Vec<u8>, BallotError> {
        check_shape(matrix, mask.rows(), mask.columns())?;
        check_mask(mask, &matrix.name, self.group, self.sparsity)?;
        Ok(bitmap_section::encode(mask, &mut self.squeezer))
    }
}

/// Writes an explicit mask in the smaller of bitmaps and column thresholds, tap by tap.
///
/// `masks` is asked for each matrix in layout order; where the group is `layer`, for those of a tap that is
/// written as bitmaps a second time, after all others. `weights` are read for the group `layer` only.
///
/// # Errors
/// As [`encode_mask`].
pub fn encode_mask_smallest<E>(
    header: &MaskHeader,
    layout: &Layout,
    masks: &mut dyn FnMut(usize) -> Result<MatrixMask, E>,
    weights: &dyn MatrixSource,
    sink: &mut Sink<'_, E>,
) -> Result<EncodedBytes, EncodeError<E>> {
    if header.group != Group::Layer {
        return encode_mask(header, layout, masks, sink);
    }
    let mut head = checked_header(Header::Mask(header.clone()), layout)?;
    let mut checked = |index: usize| -> Result<MatrixMask, EncodeError<E>> {
        let matrix = &layout.matrices()[index];
        let mask = masks(index).map_err(EncodeError::Caller)?;
        check_shape(matrix, mask.rows(), mask.columns())?;
        check_mask(&mask, &matrix.name, header.group, header.sparsity)?;
        Ok(mask)
    };
    let mut writer = ThresholdWriter::new(layout);
    let mut squeezer = Squeezer::new();
    let mut encodings = Vec::with_capacity(layout.taps().len());
    for (tap, range) in layout.taps().iter().enumerate() {
        let gaps = gaps_of_tap(range.clone(), weights, |index| {
            let (matrix, view) = (&layout.matrices()[index], weights.matrix(index));
            check_shape(matrix, view.rows(), view.columns())?;
            let gaps = Gaps::of_mask(&checked(index)?, view);
            weights.done_with(index);
            Ok::<_, EncodeError<E>>(gaps)
        })?;
        let matrices = &layout.matrices()[range.clone()];
        let packed_bytes: u64 = matrices.iter().map(|matrix| matrix.packed_bytes()).sum();
        let columns: u64 = matrices.iter().map(|matrix| u64::from(matrix.columns)).sum();
        encodings.push(match &gaps {
            None => Encoding::Bitmap,
            Some(_) if packed_bytes > MOST_BYTES_A_COLUMN * columns => Encoding::ColumnThresholds,
            Some((dtype, gaps)) => {
                let bytes = ThresholdWriter::new(layout).add(tap, *dtype, gaps);
                let mut bitmaps = 0;
                for index in range.clone() {
                    bitmaps += bitmap_section::encode(&checked(index)?, &mut squeezer).len() as u64;
                }
                if bytes < bitmaps { Encoding::ColumnThresholds } else { Encoding::Bitmap }
            }
        });
        if let (Some(Encoding::ColumnThresholds), Some((dtype, gaps))) = (encodings.last(), &gaps) {
            writer.add(tap, *dtype, gaps);
        }
    }
    head.extend(encodings.iter().map(|encoding| *encoding as u8));
    let mut written = EncodedBytes { header: head.len() as u64, ..EncodedBytes::default() };
    sink(&head).map_err(EncodeError::Caller)?;
    if encodings.contains(&Encoding::ColumnThresholds) {
        let section = writer.finish();
        written.thresholds += section.len() as u64;
        sink(&section).map_err(EncodeError::Caller)?;
    }
    let bitmaps = layout.taps().iter().zip(&encodings).filter(|(_, encoding)| **encoding == Encoding::Bitmap);
    for index in bitmaps.flat_map(|(range, _)| range.clone()) {
        let section = bitmap_section::encode(&checked(index)?, &mut squeezer);
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
        if !norms.is_empty() && norms.len() != matrix.columns as usize {
            let source = crate::score::WidthError::new(norms.len(), matrix.columns as usize).into();
            return Err(BallotError::Derive { matrix: matrix.name.clone(), source });
        }
    }
    Ok(())
}
