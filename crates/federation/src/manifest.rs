//! Which ballots count: a function of q holdings statements, the same for everybody who computes it.
//!
//! For each member it is the one digest found in at least f + 1 of the statements; none if there is no such
//! digest, or two. Of the q statements at most f are of faulty members, hence:
//!
//! * a ballot that all honest members hold is in at least q − f ≥ f + 1 of them, and no other digest of that
//!   member can be: whoever gathers the statements cannot leave it out;
//! * a ballot that is included is in the statement of an honest member, which validated it and stored it:
//!   it can always be fetched.
//!
//! What is agreed on is a [`Decision`]: a manifest, or that the height is abandoned. Its value is BLAKE3 of its
//! canonical bytes. After the prefix these are: consortium id (32), round id (32), height (4), outcome (4),
//! and for a manifest: number of members (8), for each a byte, 1 and the digest (32) or 0; then a byte, 1
//! and the mask root (32) or 0.

use std::collections::BTreeMap;

use fedprune_mask::Digest;
use fedprune_mask::codec::bincode::{Decode, Encode};

use crate::consortium::Ratified;
use crate::holdings::Holdings;
use crate::ids::{ConsortiumId, Height, MemberIndex, RoundId};
use crate::round::{Round, TallyBy};
use crate::statement::SignatureChecked;
use crate::wire::{self, Content, WireError};

/// Most bytes of a decision after its prefix: fits 1000 members.
pub const DECISION_LIMIT: usize = 64 << 10;

/// The ballots of one height that count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    consortium: ConsortiumId,
    round: RoundId,
    height: Height,
    ballots: Vec<Option<Digest>>,
}

/// Why statements make no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not as many statements as make a quorum.
    #[error("there are {found} holdings statements, and exactly {q} make a manifest")]
    Count {
        /// Statements given.
        found: usize,
        /// The quorum.
        q: usize,
    },
    /// A member speaks twice.
    #[error("there are two holdings statements of member {0}, and one counts")]
    Duplicate(MemberIndex),
    /// A statement of another consortium, round or height.
    #[error("the holdings statement of member {0} is of another consortium, round or height")]
    Elsewhere(MemberIndex),
    /// Round and consortium do not belong together.
    #[error("the round is of another consortium")]
    OtherConsortium,
    /// Too few ballots for the round.
    #[error("{found} ballots are in the statements of enough members, and the round wants {minimum}")]
    TooFewBallots {
        /// Ballots that would count.
        found: usize,
        /// `minimum_ballots`.
        minimum: usize,
    },
}

/// What a height came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    consortium: ConsortiumId,
    round: RoundId,
    height: Height,
    outcome: Outcome,
}

/// The two things that a height can come to.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
enum Outcome {
    Manifest { ballots: Vec<Option<Digest>>, mask_root: Option<Digest> },
    Abandoned,
}

/// Why bytes are no decision of this round.
#[derive(Debug, thiserror::Error)]
pub enum DecisionError {
    /// Not a decision at all.
    #[error("the decision cannot be read")]
    Wire(#[from] WireError),
    /// Of another consortium or round.
    #[error("the decision is of another consortium or round")]
    OtherRound,
    /// A manifest for another number of members.
    #[error("the manifest lists {found} members, and the consortium has {members}")]
    Members {
        /// Entries.
        found: usize,
        /// Members.
        members: usize,
    },
    /// Fewer ballots than the round wants.
    #[error("the manifest has {found} ballots, and the round wants {minimum}")]
    TooFewBallots {
        /// Ballots that count.
        found: usize,
        /// `minimum_ballots`.
        minimum: usize,
    },
    /// A mask root where the round has none in the agreement, or none where it has.
    #[error("the round says tally = \"{}\", and the decision {}", mode(.0), if *.1 { "has a mask root" } else { "has no mask root" })]
    MaskRoot(TallyBy, bool),
}

fn mode(tally: &TallyBy) -> &'static str {
    match tally {
        TallyBy::EveryPeer => "every-peer",
        TallyBy::Elected => "elected",
    }
}

impl Manifest {
    /// The manifest that q statements of one height come to, in whatever order they are given.
    ///
    /// # Errors
    /// [`ManifestError`] for any other number of statements, statements that do not belong together, and
    /// fewer ballots than `minimum_ballots`.
    pub fn from_holdings(
        statements: &[SignatureChecked<Holdings>],
        height: Height,
        consortium: &Ratified,
        round: &Round,
    ) -> Result<Self, ManifestError> {
        let quorum = consortium.quorum();
        if round.terms().consortium != consortium.id() {
            return Err(ManifestError::OtherConsortium);
        }
        if statements.len() != quorum.q() {
            return Err(ManifestError::Count { found: statements.len(), q: quorum.q() });
        }
        let mut members: Vec<MemberIndex> = statements.iter().map(SignatureChecked::member).collect();
        members.sort_unstable();
        if let Some([member, _]) = members.array_windows().find(|[a, b]| a == b) {
            return Err(ManifestError::Duplicate(*member));
        }
        let here = (consortium.id(), round.id(), height);
        for statement in statements {
            if (statement.consortium(), statement.round(), statement.height()) != here {
                return Err(ManifestError::Elsewhere(statement.member()));
            }
        }
        let qualifying = |member: MemberIndex| {
            let mut holders = BTreeMap::<Digest, usize>::new();
            for digest in statements.iter().filter_map(|statement| statement.content().of(member)) {
                let count = holders.entry(digest).or_default();
                *count = count.saturating_add(1);
            }
            let mut enough = holders.into_iter().filter(|(_, count)| *count >= quorum.one_honest());
            match (enough.next(), enough.next()) {
                (Some((digest, _)), None) => Some(digest),
                _ => None,
            }
        };
        let ballots: Vec<Option<Digest>> = consortium.consortium().indices().map(qualifying).collect();
        let manifest = Self { consortium: consortium.id(), round: round.id(), height, ballots };
        let (found, minimum) = (manifest.count(), usize::from(round.terms().minimum_ballots));
        if found < minimum { Err(ManifestError::TooFewBallots { found, minimum }) } else { Ok(manifest) }
    }

    /// For each member the ballot that counts, or none.
    pub fn ballots(&self) -> &[Option<Digest>] {
        &self.ballots
    }

    /// Who contributed, with the digest of the ballot, ascending.
    pub fn contributors(&self) -> impl Iterator<Item = (MemberIndex, Digest)> {
        let members = (0..=u16::MAX).map(MemberIndex);
        members.zip(&self.ballots).filter_map(|(member, ballot)| ballot.map(|digest| (member, digest)))
    }

    /// How many ballots count.
    pub fn count(&self) -> usize {
        self.ballots.iter().flatten().count()
    }

    /// Of which height.
    pub fn height(&self) -> Height {
        self.height
    }
}

impl Decision {
    /// That these ballots count. `mask_root` is what they come to, if the round has it in the agreement.
    ///
    /// # Errors
    /// [`DecisionError`] when it is not a decision that `round` can come to.
    pub fn manifest(
        manifest: Manifest,
        mask_root: Option<Digest>,
        consortium: &Ratified,
        round: &Round,
    ) -> Result<Self, DecisionError> {
        let Manifest { consortium: named, round: named_round, height, ballots } = manifest;
        let outcome = Outcome::Manifest { ballots, mask_root };
        Self { consortium: named, round: named_round, height, outcome }.check(consortium, round)
    }

    /// That nothing more is decided at this height or after it.
    pub fn abandoned(height: Height, consortium: &Ratified, round: &Round) -> Self {
        Self { consortium: consortium.id(), round: round.id(), height, outcome: Outcome::Abandoned }
    }

    /// Reads a decision of `round`; whether its ballots are the right ones, holdings statements tell.
    ///
    /// # Errors
    /// [`DecisionError`] for anything that `round` cannot come to.
    pub fn decode(bytes: &[u8], consortium: &Ratified, round: &Round) -> Result<Self, DecisionError> {
        let (named, named_round, height, outcome) = wire::decode::<_, DECISION_LIMIT>(Content::Decision, bytes)?;
        Self { consortium: named, round: named_round, height, outcome }.check(consortium, round)
    }

    fn check(self, consortium: &Ratified, round: &Round) -> Result<Self, DecisionError> {
        let terms = round.terms();
        if (self.consortium, self.round) != (consortium.id(), round.id()) || terms.consortium != consortium.id() {
            return Err(DecisionError::OtherRound);
        }
        let Outcome::Manifest { ballots, mask_root } = &self.outcome else { return Ok(self) };
        let (found, members) = (ballots.len(), consortium.members().len());
        if found != members {
            return Err(DecisionError::Members { found, members });
        }
        let (found, minimum) = (ballots.iter().flatten().count(), usize::from(terms.minimum_ballots));
        if found < minimum {
            return Err(DecisionError::TooFewBallots { found, minimum });
        }
        if mask_root.is_some() != (terms.tally == TallyBy::Elected) {
            return Err(DecisionError::MaskRoot(terms.tally, mask_root.is_some()));
        }
        Ok(self)
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(Content::Decision, &(self.consortium, self.round, self.height, self.outcome.clone()))
    }

    /// What is agreed on: BLAKE3 of the canonical bytes.
    pub fn value(&self) -> Digest {
        Digest::of(&self.encode())
    }

    /// Of which height.
    pub fn height(&self) -> Height {
        self.height
    }

    /// The ballots that count, unless the height is abandoned.
    pub fn ballots(&self) -> Option<Manifest> {
        let Outcome::Manifest { ballots, .. } = &self.outcome else { return None };
        let ballots = ballots.clone();
        Some(Manifest { consortium: self.consortium, round: self.round, height: self.height, ballots })
    }

    /// The mask root in it, if the round has it in the agreement.
    pub fn mask_root(&self) -> Option<Digest> {
        match self.outcome {
            Outcome::Manifest { mask_root, .. } => mask_root,
            Outcome::Abandoned => None,
        }
    }

    /// Whether the height is abandoned.
    pub fn is_abandoned(&self) -> bool {
        self.outcome == Outcome::Abandoned
    }
}

#[cfg(test)]
mod tests;
