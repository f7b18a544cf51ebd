//! From a signed header and a parsed body to a ballot that counts.
//!
//! Checked are: that the body is the one signed; that it is a vote for the round's model, layout, pruner,
//! group, sparsity and calibration; that its encodings are allowed; that every bitmap, and every mask by
//! column thresholds, prunes exactly its budget in every pool, and that matrices pruned without data are pruned by magnitude.
//!
//! Masks that are derived from norms keep their budgets by construction and are not expanded here.

use fedprune_mask::ballot::{BallotError, BallotHeader as BodyHeader, Encoding, VoteHeader};
use fedprune_mask::select::DeriveError;
use fedprune_mask::weights::MatrixSource;
use fedprune_mask::{Ballot, Digest, Layout, NormVector, Pruner, derive_mask};

use super::BallotHeader;
use crate::ids::{Height, MemberIndex};
use crate::round::{Ballots, DataFree, LayoutMismatch, Round, Terms};
use crate::statement::SignatureChecked;

/// A ballot that may be held and counted; made by [`validate`] alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validated {
    header: SignatureChecked<BallotHeader>,
}

/// Why a ballot does not count.
#[derive(Debug, thiserror::Error)]
pub enum InvalidBallot {
    /// Header and round do not belong together.
    #[error("it is a ballot of another round")]
    OtherRound,
    /// The layout is not the round's, or has no such height.
    #[error(transparent)]
    Layout(#[from] LayoutMismatch),
    /// The body was read against another layout than that of the height.
    #[error("it was made for the layout {found}, and height {height} of the round is about {expected}",
        found = found.short(), expected = expected.short())]
    OtherHeight {
        /// The height that was signed.
        height: Height,
        /// Its layout.
        expected: Digest,
        /// The body's.
        found: Digest,
    },
    /// Other bytes than those signed.
    #[error("its body is {found} of {found_bytes} bytes, and what was signed is {signed} of {signed_bytes} bytes",
        found = found.short(), signed = signed.short())]
    Body {
        /// Digest of the body.
        found: Digest,
        /// Its bytes.
        found_bytes: u64,
        /// The digest signed.
        signed: Digest,
        /// The bytes signed.
        signed_bytes: u64,
    },
    /// An explicit mask, which says nothing about how it came to be.
    #[error("its body is a mask, and the round wants a vote")]
    NotAVote,
    /// Another recipe than the round's.
    #[error("its {what} is {found}, and the round says {expected}")]
    Recipe {
        /// Model, pruner, group, sparsity or calibration.
        what: &'static str,
        /// In the ballot.
        found: String,
        /// In the round.
        expected: String,
    },
    /// Norms where only functions of the mask are allowed.
    #[error("it reveals norms for `{0}`, and the round says ballots = \"mask-only\"")]
    RevealsNorms(String),
    /// A mask is damaged or breaks its budget.
    #[error("its masks cannot be used")]
    Mask(#[from] BallotError),
    /// The magnitude mask cannot be derived.
    #[error("the mask of `{matrix}` by magnitude cannot be derived")]
    Derive {
        /// Tensor name.
        matrix: String,
        /// Why.
        source: DeriveError,
    },
    /// Pruned by data where the round forbids it.
    #[error("`{matrix}` is not pruned by magnitude, and the round says data_free = [\"{tap}\"]")]
    NotDataFree {
        /// Tensor name.
        matrix: String,
        /// The tap.
        tap: DataFree,
    },
}

impl Validated {
    /// What its member signed.
    pub fn header(&self) -> &SignatureChecked<BallotHeader> {
        &self.header
    }

    /// Whose it is.
    pub fn member(&self) -> MemberIndex {
        self.header.member()
    }

    /// Of which height.
    pub fn height(&self) -> Height {
        self.header.height()
    }

    /// BLAKE3 of the body.
    pub fn body(&self) -> Digest {
        self.header.content().body
    }
}

/// Checks a ballot that was fetched and parsed.
///
/// `layout` is the whole model's; `body` was parsed against [`Round::layout_at`] of the header's height, and
/// `weights` are by index of that layout. They are read for bitmaps, column thresholds and `data_free` matrices only.
///
/// # Errors
/// [`InvalidBallot`] naming what is wrong. The signer, not whoever passed it on, is to blame for anything but
/// [`InvalidBallot::Body`], [`InvalidBallot::OtherRound`] and [`InvalidBallot::OtherHeight`].
pub fn validate(
    header: SignatureChecked<BallotHeader>,
    body: &Ballot<'_>,
    round: &Round,
    layout: &Layout,
    weights: &dyn MatrixSource,
) -> Result<Validated, InvalidBallot> {
    if header.round() != round.id() || header.consortium() != round.terms().consortium {
        return Err(InvalidBallot::OtherRound);
    }
    let height = header.height();
    let expected = round.layout_at(layout, height)?.digest();
    if body.layout().digest() != expected {
        return Err(InvalidBallot::OtherHeight { height, expected, found: body.layout().digest() });
    }
    let (found, found_bytes) = (body.digest(), body.bytes().len() as u64);
    let BallotHeader { body: signed, body_bytes: signed_bytes, .. } = *header.content();
    if (found, found_bytes) != (signed, signed_bytes) {
        return Err(InvalidBallot::Body { found, found_bytes, signed, signed_bytes });
    }
    check_body(body, round.terms(), weights)?;
    Ok(Validated { header })
}

/// Checks what a ballot says, whoever signs it: the part of [`validate`] that needs no header, for a member that is about to
/// sign its own.
///
/// # Errors
/// [`InvalidBallot`] naming what is wrong.
pub fn check_body(body: &Ballot<'_>, terms: &Terms, weights: &dyn MatrixSource) -> Result<(), InvalidBallot> {
    let BodyHeader::Vote(vote) = body.header() else { return Err(InvalidBallot::NotAVote) };
    check_recipe(vote, terms)?;
    check_masks(body, terms, weights)
}

fn check_recipe(vote: &VoteHeader, terms: &Terms) -> Result<(), InvalidBallot> {
    let differ = |what, found: String, expected: String| Err(InvalidBallot::Recipe { what, found, expected });
    if vote.model != terms.base_model {
        return differ("model", vote.model.to_string(), terms.base_model.to_string());
    }
    if vote.pruner != terms.pruner {
        return differ("pruner", vote.pruner.to_string(), terms.pruner.to_string());
    }
    if vote.group != terms.local_group {
        return differ("group", vote.group.to_string(), terms.local_group.to_string());
    }
    if vote.sparsity != terms.sparsity {
        return differ("sparsity", vote.sparsity.to_string(), terms.sparsity.to_string());
    }
    let (samples, window_tokens) = (vote.samples, vote.sequence_tokens);
    let found = format!("{samples} windows of {window_tokens} tokens");
    let Some(calibration) = terms.calibration else {
        return match (samples, window_tokens) {
            (0, 0) => Ok(()),
            _ => differ("calibration", found, "none".to_owned()),
        };
    };
    let tokens = u64::from(samples).saturating_mul(u64::from(window_tokens));
    if window_tokens != calibration.window_tokens
        || samples > calibration.samples
        || samples == 0
        || tokens < calibration.minimum_calibration_tokens
    {
        let expected = format!(
            "1 to {} windows of {} tokens, {} tokens at least",
            calibration.samples, calibration.window_tokens, calibration.minimum_calibration_tokens
        );
        return differ("calibration", found, expected);
    }
    Ok(())
}

fn check_masks(body: &Ballot<'_>, terms: &Terms, weights: &dyn MatrixSource) -> Result<(), InvalidBallot> {
    let layout = body.layout();
    for (tap, range) in layout.taps().iter().enumerate() {
        for index in range.clone() {
            let Some(matrix) = layout.matrices().get(index) else { continue };
            if terms.ballots == Ballots::MaskOnly && body.norms(tap).is_some() {
                return Err(InvalidBallot::RevealsNorms(matrix.name.clone()));
            }
            let named = DataFree { block: matrix.block, tap: matrix.tap };
            let data_free = terms.data_free.binary_search(&named).is_ok();
            if body.encoding(tap) == Encoding::Norms && !data_free {
                continue;
            }
            let view = weights.matrix(index);
            let mask = body.mask(index, view)?;
            if data_free {
                let none = NormVector::default();
                let by_magnitude = derive_mask(Pruner::MAGNITUDE, terms.local_group, terms.sparsity, view, &none)
                    .map_err(|source| InvalidBallot::Derive { matrix: matrix.name.clone(), source })?;
                if mask != by_magnitude {
                    return Err(InvalidBallot::NotDataFree { matrix: matrix.name.clone(), tap: named });
                }
            }
            weights.done_with(index);
        }
    }
    Ok(())
}
