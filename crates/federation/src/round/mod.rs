//! What a round is: model, recipe, calibration, tally, timers; hashed into the round id.
//!
//! `round.toml` is written by people:
//!
//! ```toml
//! consortium = "…"             # digests: 64 hexadecimal digits
//! base_model = "…"
//! layout = "…"
//! tokenizer = "…"
//! configuration = "…"
//! pruner = "wanda"             # default
//! local_group = "row"          # default
//! global_group = "layer"       # default
//! sparsity = "0.5"             # in quotes: it is kept exact
//! strategy = "one-shot"        # default; or "iterative"
//! scaling = "none"             # default; or "support"
//! data_free = ["block0.qkv"]   # default: none
//! ballots = "auto"             # default; or "mask-only"
//! minimum_ballots = 3          # default: the quorum
//! tally = "every-peer"         # default; or "elected"
//!
//! [tally_weights]              # default: 1 each
//! north = 2
//!
//! [calibration]
//! samples = 128
//! window_tokens = 2048
//! sampling = "random"          # or "sequential", without a seed
//! seed = "from-round"          # or a number
//! bos = "none"                 # default; or "each-text", "each-window"
//! minimum_calibration_tokens = 65536   # default: samples × window_tokens
//!
//! [timers]                     # each has a default
//! contribution_ms = 600000
//! ```
//!
//! The id is the BLAKE3 of the canonical bytes, with all defaults filled in. A node contributes and votes
//! only after its operator approved the id.

mod check;
mod document;
mod layout;
mod terms;
#[cfg(test)]
mod tests;

use fedprune_mask::Digest;

pub use check::{Contradiction, MAX_DATA_FREE, MAX_SAMPLES, MAX_TIMER_MS, MAX_WINDOW_TOKENS, Warning};
pub use document::DOCUMENT_LIMIT;
pub use layout::LayoutMismatch;
pub use terms::{
    Ballots, BosRule, Calibration, DataFree, ParseDataFreeError, Sampling, Scaling, SeedRule, Strategy, TallyBy, Terms,
    Timers,
};

use crate::consortium::Consortium;
use crate::document::DocumentError;
use crate::ids::{ConsortiumId, MemberIndex, RoundId};
use crate::wire::{self, Content, WireError};

/// Most bytes of the canonical form after its prefix.
pub const CANONICAL_LIMIT: usize = 128 << 10;

/// Terms without contradiction, and their id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    terms: Terms,
    id: RoundId,
}

/// Why there is no such round.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The text is not the document.
    #[error("the round document cannot be read")]
    Document(#[from] DocumentError),
    /// The bytes are not the canonical form.
    #[error("the round cannot be read")]
    Wire(#[from] WireError),
    /// `data_free` in another order than ascending.
    #[error("the round is not in canonical order; it is damaged")]
    Order,
    /// It cannot be carried out as it stands.
    #[error("the round cannot be carried out:{}", listed(.0))]
    Contradictions(Vec<Contradiction>),
}

fn listed(contradictions: &[Contradiction]) -> String {
    contradictions.iter().map(|contradiction| format!("\n  - {contradiction}")).collect()
}

impl Terms {
    /// All tally weight; of a [`Round`] at most `u32::MAX`.
    pub fn total_weight(&self) -> u64 {
        self.tally_weights.iter().fold(0, |total, weight| total.saturating_add(u64::from(*weight)))
    }
}

impl Calibration {
    /// The most tokens that a silo contributes from.
    pub fn most_tokens(&self) -> u64 {
        u64::from(self.samples).saturating_mul(u64::from(self.window_tokens))
    }
}

impl Round {
    /// Checks terms; `data_free` may be in any order.
    ///
    /// # Errors
    /// [`RoundError::Contradictions`] with all of them.
    pub fn new(mut terms: Terms, consortium: &Consortium) -> Result<Self, RoundError> {
        terms.data_free.sort_unstable();
        let contradictions = check::contradictions(&terms, consortium);
        if !contradictions.is_empty() {
            return Err(RoundError::Contradictions(contradictions));
        }
        let id = RoundId(Digest::of(&wire::encode(Content::Round, &terms)));
        Ok(Self { terms, id })
    }

    /// Reads `round.toml`.
    ///
    /// # Errors
    /// [`RoundError`] for unknown keys and for everything that contradicts itself or the consortium.
    pub fn parse(text: &str, consortium: &Consortium) -> Result<Self, RoundError> {
        Self::new(document::parse(text, consortium)?, consortium)
    }

    /// Which consortium a `round.toml` is of, whatever else it says.
    ///
    /// # Errors
    /// [`DocumentError`] when it names none.
    pub fn consortium_named_in(text: &str) -> Result<ConsortiumId, DocumentError> {
        document::consortium_named_in(text)
    }

    /// Reads the canonical bytes.
    ///
    /// # Errors
    /// [`RoundError`] for anything that [`Round::encode`] does not write for this consortium.
    pub fn decode(bytes: &[u8], consortium: &Consortium) -> Result<Self, RoundError> {
        let terms: Terms = wire::decode::<_, CANONICAL_LIMIT>(Content::Round, bytes)?;
        if !terms.data_free.is_sorted() {
            return Err(RoundError::Order);
        }
        Self::new(terms, consortium)
    }

    /// The canonical bytes, whose BLAKE3 is the id.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(Content::Round, &self.terms)
    }

    /// A `round.toml` of the same id, for the consortium that it was checked against.
    ///
    /// # Errors
    /// [`DocumentError::Unwritable`] for numbers above 2^63 − 1, which TOML does not have.
    pub fn to_toml(&self, consortium: &Consortium) -> Result<String, DocumentError> {
        document::write(self, consortium)
    }

    /// Identifies it.
    pub fn id(&self) -> RoundId {
        self.id
    }

    /// What it says.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What people should know before they approve it.
    pub fn warnings(&self, consortium: &Consortium) -> Vec<Warning> {
        check::warnings(&self.terms, consortium)
    }

    /// The seed from which a member draws its windows, if it draws any.
    ///
    /// `from-round`: the first 8 bytes, little-endian, of BLAKE3(`fedprune seed v1\0` ‖ round id ‖ member (2)).
    pub fn seed(&self, member: MemberIndex) -> Option<u64> {
        match self.terms.calibration?.sampling {
            Sampling::Sequential => None,
            Sampling::Random { seed: SeedRule::Fixed(seed) } => Some(seed),
            Sampling::Random { seed: SeedRule::FromRound } => {
                let mut hasher = blake3::Hasher::new();
                hasher.update(b"fedprune seed v1\0").update(&self.id.0.0).update(&member.0.to_le_bytes());
                let mut bytes = [0; 8];
                hasher.finalize_xof().fill(&mut bytes);
                Some(u64::from_le_bytes(bytes))
            }
        }
    }
}
