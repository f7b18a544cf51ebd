//! Ballots and masks as bytes: what travels, what is stored, and back.
//!
//! A vote's mask is a function of the public weights and the silo's norm vectors, so a ballot carries the
//! norms (745,472 of them for LLaMA-7B, 0.7 MB) instead of the bits (809 MB) wherever that is smaller, and
//! whoever holds the weights rebuilds the same mask, bit for bit. `column-thresholds` say a `layer` mask by one
//! magnitude a column, a function of the mask alone. `bitmap` says any mask at all.
//!
//! After prefix and header (see [`container`](self::Header)) the body of a vote or a mask is:
//!
//! | bytes | what |
//! |---|---|
//! | taps | one [`Encoding`] a tap, in layout order |
//! | … | the norms of all `norms` taps together; absent if there are none, or the pruner uses no norms |
//! | … | the thresholds of all `column-thresholds` taps together; absent if there are none |
//! | … | for each matrix of each `bitmap` tap, in layout order: method, length, packed bits |
//!
//! Whatever a file claims, reading it allocates what the layout implies and no more: sizes are known
//! before anything is decompressed. Bytes that would change nothing are refused, so nothing can be
//! smuggled and a ballot is told from another by its digest.

mod bitmap_section;
mod budgets;
mod compress;
mod container;
mod encode;
mod error;
mod norm_section;
mod range_coder;
#[cfg(test)]
mod tests;
mod threshold_section;

use serde::Serialize;

pub use budgets::{BudgetError, check_budgets};
pub use container::{
    HEADER_LIMIT, Header, Kind, MAGIC, MAX_MEMBER_NAME_BYTES, MAX_MEMBERS, MaskHeader, Member, TALLY_HEADER_LIMIT,
    TallyHeader, VERSION, VoteHeader, is_harmful, is_member_name, peek_header,
};
pub(crate) use container::{Reader, check_header};
pub use encode::{Encodings, MaskSections, Sink, encode_ballot, encode_mask, encode_mask_smallest, mask_head};
pub(crate) use error::check_shape;
pub use error::{BallotError, EncodeError};

use crate::layout::{Layout, Tap};
use crate::matrix_mask::MatrixMask;
use crate::norms::NormVector;
use crate::select::derive_mask;
use crate::tally::by_threshold::Source;
use crate::thresholds::Gaps;
use crate::weights::WeightsView;
use crate::{Digest, Group, Pruner, Sparsity};
use bitmap_section::Section;
pub(crate) use threshold_section::Carried;

/// How the masks of one tap's matrices are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// The tap's norm vector, from which pruner and weights give the mask.
    Norms = 1,
    /// The packed bits of each matrix.
    Bitmap = 2,
    /// A threshold for each column of each matrix: masks of the group `layer` that are column prefixes.
    ColumnThresholds = 3,
}

/// Bytes of a file, by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct EncodedBytes {
    /// Prefix, header and the table of encodings.
    pub header: u64,
    /// The norms of all taps.
    pub norms: u64,
    /// The column thresholds of all taps.
    pub thresholds: u64,
    /// Bitmaps with their prefixes.
    pub bitmaps: u64,
}

impl EncodedBytes {
    /// The whole file.
    pub fn total(&self) -> u64 {
        self.header + self.norms + self.thresholds + self.bitmaps
    }
}

/// The header of a ballot or of an explicit mask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum BallotHeader {
    /// One silo's vote, as it computed it.
    Vote(VoteHeader),
    /// An explicit mask.
    Mask(MaskHeader),
}

/// A parsed ballot or explicit mask over borrowed bytes, such as a memory map.
///
/// Norms are decoded; bitmaps are decoded when asked for. Of a file that parses, every norm vector is
/// sound, and bitmaps have been checked for their lengths only: [`Ballot::mask`] checks the rest.
#[derive(Debug, Clone)]
pub struct Ballot<'a> {
    bytes: &'a [u8],
    layout: &'a Layout,
    header: BallotHeader,
    /// Per tap.
    encodings: Vec<Encoding>,
    /// Per tap; empty where the pruner needs none, absent where bitmaps are carried.
    norms: Vec<Option<NormVector>>,
    /// Per matrix.
    thresholds: Vec<Option<Carried>>,
    /// Per matrix.
    sections: Vec<Option<Section<'a>>>,
    encoded: EncodedBytes,
    /// Of the bytes, where whoever parsed them had it.
    digest: Option<Digest>,
}

impl<'a> Ballot<'a> {
    /// Reads a ballot or an explicit mask made for `layout`.
    ///
    /// # Errors
    /// [`BallotError`] for anything that no encoder of this format writes, and for another layout.
    pub fn parse(bytes: &'a [u8], layout: &'a Layout) -> Result<Self, BallotError> {
        let mut reader = Reader::new(bytes);
        let header = Header::read(&mut reader)?;
        check_header(&header, layout)?;
        let kind = header.kind();
        let header = match header {
            Header::Vote(header) => BallotHeader::Vote(header),
            Header::Mask(header) => BallotHeader::Mask(header),
            Header::Tally(_) => return Err(BallotError::WrongKind { found: kind, wanted: "a ballot or a mask" }),
        };
        let header_group = match &header {
            BallotHeader::Vote(header) => header.group,
            BallotHeader::Mask(header) => header.group,
        };
        let table = reader.take(layout.taps().len(), "the table of encodings")?;
        let mut encodings = Vec::with_capacity(table.len());
        for (&byte, range) in table.iter().zip(layout.taps()) {
            encodings.push(match (byte, &header) {
                (1, BallotHeader::Vote(_)) => Encoding::Norms,
                (2, _) => Encoding::Bitmap,
                (3, _) if header_group == Group::Layer => Encoding::ColumnThresholds,
                _ => {
                    let matrix = layout.matrices()[range.start].name.clone();
                    return Err(BallotError::Encoding { matrix, byte, kind });
                }
            });
        }
        let mut encoded = EncodedBytes { header: (bytes.len() - reader.left()) as u64, ..EncodedBytes::default() };
        let uses_norms = matches!(&header, BallotHeader::Vote(vote) if vote.pruner.scorer().uses_norms());
        let norms = read_norms(&mut reader, layout, &encodings, uses_norms)?;
        encoded.norms = (bytes.len() - reader.left()) as u64 - encoded.header;
        let carries = |tap: usize| encodings[tap] == Encoding::ColumnThresholds;
        let mut thresholds = vec![None; layout.matrices().len()];
        if (0..encodings.len()).any(carries) {
            let left = reader.left();
            thresholds = threshold_section::decode(&mut reader, layout, carries)?;
            encoded.thresholds = (left - reader.left()) as u64;
        }
        let mut sections = Vec::with_capacity(layout.matrices().len());
        for (range, encoding) in layout.taps().iter().zip(&encodings) {
            for matrix in &layout.matrices()[range.clone()] {
                let section = match encoding {
                    Encoding::Norms | Encoding::ColumnThresholds => None,
                    Encoding::Bitmap => Some(Section::read(&mut reader, matrix)?),
                };
                encoded.bitmaps += section.map_or(0, |section| section.encoded_bytes());
                sections.push(section);
            }
        }
        reader.finish()?;
        Ok(Self { bytes, layout, header, encodings, norms, thresholds, sections, encoded, digest: None })
    }

    /// As [`Ballot::parse`], for bytes whose digest the caller has just computed, so that they are not read again:
    /// a mapped ballot of hundreds of megabytes can be hashed in pieces that are given back.
    ///
    /// # Errors
    /// As [`Ballot::parse`].
    pub fn parse_hashed(bytes: &'a [u8], layout: &'a Layout, digest: Digest) -> Result<Self, BallotError> {
        Ok(Self { digest: Some(digest), ..Self::parse(bytes, layout)? })
    }

    /// The bytes that were parsed.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// BLAKE3 of the bytes: the ballot's identity.
    pub fn digest(&self) -> Digest {
        self.digest.unwrap_or_else(|| digest_of_bytes(self.bytes))
    }

    /// The layout that it was parsed against.
    pub fn layout(&self) -> &'a Layout {
        self.layout
    }

    /// Its header.
    pub fn header(&self) -> &BallotHeader {
        &self.header
    }

    /// Content digest of the base checkpoint.
    pub fn model(&self) -> Digest {
        match &self.header {
            BallotHeader::Vote(header) => header.model,
            BallotHeader::Mask(header) => header.model,
        }
    }

    /// The group within which its masks keep their budgets.
    pub fn group(&self) -> Group {
        match &self.header {
            BallotHeader::Vote(header) => header.group,
            BallotHeader::Mask(header) => header.group,
        }
    }

    /// Its sparsity.
    pub fn sparsity(&self) -> Sparsity {
        match &self.header {
            BallotHeader::Vote(header) => header.sparsity,
            BallotHeader::Mask(header) => header.sparsity,
        }
    }

    /// How many silos speak through it: 1 for a vote.
    pub fn votes(&self) -> u32 {
        match &self.header {
            BallotHeader::Vote(_) => 1,
            BallotHeader::Mask(header) => header.votes,
        }
    }

    /// How a tap is encoded.
    ///
    /// # Panics
    /// When the layout has no such tap.
    pub fn encoding(&self, tap: usize) -> Encoding {
        self.encodings[tap]
    }

    /// Bytes by what they are for.
    pub fn encoded_bytes(&self) -> EncodedBytes {
        self.encoded
    }

    /// The norms that the ballot reveals for a tap; `None` where it carries bitmaps, or the pruner needs none.
    ///
    /// # Panics
    /// When the layout has no such tap.
    pub fn norms(&self, tap: usize) -> Option<&NormVector> {
        self.norms[tap].as_ref().filter(|norms| !norms.is_empty())
    }

    /// What says the mask of one matrix, if it is a column prefix that need not be looked at to know.
    pub(crate) fn prefix_source(&self, index: usize) -> Option<Source<'_>> {
        if self.group() != Group::Layer {
            return None;
        }
        if let Some(carried) = &self.thresholds[index] {
            return Some(Source::Carried(carried));
        }
        let tap = self.layout.taps().partition_point(|range| range.end <= index);
        match (&self.header, &self.norms[tap]) {
            (BallotHeader::Vote(vote), Some(norms)) if self.encodings[tap] == Encoding::Norms => {
                matches!(vote.pruner, Pruner::WANDA | Pruner::MAGNITUDE).then_some(Source::Norms(vote.pruner, norms))
            }
            _ => None,
        }
    }

    /// The mask of one matrix, from its bitmap, or made from `weights` by its thresholds or norms.
    ///
    /// A bitmap or a mask by thresholds is checked to prune exactly its budget in every pool, and thresholds to be
    /// those that the mask is written with; a mask derived from norms is right by construction.
    ///
    /// # Errors
    /// [`BallotError`] when `weights` is of another shape, or what was carried is damaged or breaks a budget.
    ///
    /// # Panics
    /// When the layout has no matrix `index`.
    pub fn mask(&self, index: usize, weights: WeightsView<'_>) -> Result<MatrixMask, BallotError> {
        let matrix = &self.layout.matrices()[index];
        check_shape(matrix, weights.rows(), weights.columns())?;
        if let Some(section) = &self.sections[index] {
            let mask = section.mask(matrix)?;
            encode::check_mask(&mask, &matrix.name, self.group(), self.sparsity())?;
            return Ok(mask);
        }
        if let Some(carried) = &self.thresholds[index] {
            let damaged = |problem| BallotError::Thresholds { matrix: matrix.name.clone(), problem };
            if carried.dtype() != weights.dtype() {
                return Err(damaged("they are of weights that are stored in another format"));
            }
            let mask = carried.thresholds.expand(weights);
            encode::check_mask(&mask, &matrix.name, self.group(), self.sparsity())?;
            carried.check(&Gaps::of_thresholds(&carried.thresholds, weights)).map_err(damaged)?;
            return Ok(mask);
        }
        let tap = self.layout.taps().partition_point(|range| range.end <= index);
        match (&self.header, &self.norms[tap]) {
            (BallotHeader::Vote(vote), Some(norms)) => {
                derive_mask(vote.pruner, vote.group, vote.sparsity, weights, norms)
                    .map_err(|source| BallotError::Derive { matrix: matrix.name.clone(), source })
            }
            _ => unreachable!(
                "what has neither bitmap nor thresholds has norms, since parsing gave each one of the three"
            ),
        }
    }
}

/// BLAKE3 of bytes of any size, on all cores where that pays.
pub fn digest_of_bytes(bytes: &[u8]) -> Digest {
    if bytes.len() < 1 << 18 {
        return Digest::of(bytes);
    }
    blake3::Hasher::new().update_rayon(bytes).finalize().into()
}

/// The norms of every `norms` tap.
fn read_norms(
    reader: &mut Reader<'_>,
    layout: &Layout,
    encodings: &[Encoding],
    uses_norms: bool,
) -> Result<Vec<Option<NormVector>>, BallotError> {
    let width = |tap: usize| if uses_norms { layout.matrices()[layout.taps()[tap].start].columns as usize } else { 0 };
    let by_norms = |tap: &usize| encodings[*tap] == Encoding::Norms;
    let taps = 0..encodings.len();
    let kind = |tap: usize| layout.matrices()[layout.taps()[tap].start].tap;
    let widths: Vec<(Tap, usize)> = taps.clone().filter(by_norms).map(|tap| (kind(tap), width(tap))).collect();
    let none = widths.iter().all(|(_, width)| *width == 0);
    let bits = if none { Vec::new() } else { norm_section::decode(reader, &widths)? };
    let mut left = bits.as_slice();
    taps.map(|tap| {
        if !by_norms(&tap) {
            return Ok(None);
        }
        let (bits, rest) = left.split_at(width(tap));
        left = rest;
        NormVector::from_canonical_bits(bits.to_vec()).map(Some).map_err(|source| BallotError::Norms {
            matrix: layout.matrices()[layout.taps()[tap].start].name.clone(),
            source,
        })
    })
    .collect()
}
