//! Byzantine agreement on one value a height: malachite behind the federation's trait.
//!
//! [`MalachiteEngine`] is [`arc_malachitebft_core_consensus`] (Tendermint: Buchman, Kwon and Milosevic,
//! arXiv 1807.04938) as [`fedprune_federation::agreement::Engine`]. Deterministic: no clock, no randomness,
//! no I/O, no threads; Ed25519 signatures are functions of key and message.
//!
//! | module | what it is for |
//! |---|---|
//! | `agreement` | inputs in, actions out, and the way back from a journal |
//! | `effects` | carries out what malachite asks for, signing among it |
//! | `book` | every statement that was heard, and the guard against signing twice |
//! | `ahead` | votes of views too far ahead for malachite |
//! | `journal` | the entries that are recorded |
//! | `context` | the federation's types for malachite |
//!
//! ## What malachite leaves to its user, and where that is done
//!
//! * Certificates do not travel here; the votes in them do, one by one. Malachite counts the first vote of each
//!   member, so an equivocator could hide a quorum of prevotes from some members for good, and it drops votes
//!   of more than ten views ahead, so a member cut off for longer would stay behind. The quorum and the entrance
//!   are therefore put together here (`book`, `ahead`) and given to malachite as certificates.
//!   A quorum of precommits needs no such help: whoever saw it hands on the certificate of the decision.
//! * A value is judged before malachite hears of the proposal; judged for one proposal, it is for all.
//! * Malachite does not repeat proposals; with the timer [`TimerKind::Repeat`] our own is sent again.
//! * A statement of ours that we do not know (a cloned or restored home) ends our signing at this height.
//!
//! ## Bounds
//!
//! For each member and view that was reached, and ten views ahead: two prevotes, one more for each value that an
//! honest member prevotes, one precommit, and three proposals of the aggregator; two votes of any later view. The
//! journal has one entry for each of them that malachite was told, each judgement, each timer that elapsed, and
//! each quorum of prevotes that was put together. Faulty members alone cannot make the others enter a view, and
//! timers grow with it, so views grow like the square root of time.
//!
//! [`TimerKind::Repeat`]: fedprune_federation::agreement::TimerKind::Repeat

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod agreement;
mod ahead;
mod book;
mod context;
mod effects;
mod journal;
#[cfg(test)]
mod testing;

use std::fmt;
use std::sync::Arc;

use fedprune_federation::agreement::{Action, Agreement, AgreementError, Engine, Repeated};
use fedprune_federation::{Height, Ratified, Round, SigningKey};

use crate::agreement::MalachiteAgreement;
use crate::effects::Seat;
use crate::journal::{Entry, Owner};

/// Makes the agreements of one member in one round.
#[derive(Clone)]
pub struct MalachiteEngine {
    seat: Arc<Seat>,
}

/// No engine can be made of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The key is of nobody in the consortium.
    #[error("the key {0} is of no member of this consortium; use the key whose `signing_key` is in its document")]
    NotAMember(String),
    /// The round is of another consortium.
    #[error(
        "the round {round} is of the consortium {theirs}, and this is {ours}; use the documents that belong together"
    )]
    OtherConsortium {
        /// The round.
        round: String,
        /// Its consortium.
        theirs: String,
        /// Ours.
        ours: String,
    },
}

impl MalachiteEngine {
    /// The engine of the member with this key.
    ///
    /// # Errors
    /// [`EngineError`] when key, consortium and round do not belong together.
    pub fn new(consortium: Ratified, round: &Round, key: SigningKey) -> Result<Self, EngineError> {
        let theirs = round.terms().consortium;
        if theirs != consortium.id() {
            let ours = consortium.id().to_string();
            return Err(EngineError::OtherConsortium {
                round: round.id().to_string(),
                theirs: theirs.to_string(),
                ours,
            });
        }
        let public = key.verifying_key();
        let member = consortium.index_of(&public).ok_or_else(|| EngineError::NotAMember(public.to_string()))?;
        Ok(Self { seat: Arc::new(Seat { consortium, round: round.id(), member, key }) })
    }
}

impl fmt::Debug for MalachiteEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seat { round, member, .. } = &*self.seat;
        write!(f, "MalachiteEngine(member {member} in round {round})")
    }
}

impl Engine for MalachiteEngine {
    fn resume(
        &self,
        height: Height,
        journal: &[Vec<u8>],
        participate: bool,
    ) -> Result<(Box<dyn Agreement>, Vec<Action>), AgreementError> {
        let (agreement, actions) = MalachiteAgreement::resume(Arc::clone(&self.seat), height, journal, participate)?;
        Ok((Box::new(agreement), actions))
    }

    fn votes(&self, height: Height, journal: &[Vec<u8>]) -> Vec<Repeated> {
        let Seat { consortium, round, member, .. } = &*self.seat;
        let owner = Owner { consortium, round: *round, height, member: *member };
        // a damaged entry is for `resume` to complain about
        let entries = journal.iter().filter_map(|bytes| Entry::decode(bytes, owner).ok());
        entries.flat_map(Entry::into_votes).collect()
    }
}
