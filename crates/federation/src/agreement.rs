//! What carries out the agreement on the value of one height.
//!
//! An [`Agreement`] is a deterministic machine: inputs in, [`Action`]s out, in the order in which they must be
//! carried out. It neither reads a clock nor touches the network or a disk, and it signs nothing that it has
//! not asked to record first. There is one for each height, made by an [`Engine`].
//!
//! Safety rests on three promises of whoever drives it:
//!
//! * what [`Action::Record`] gives is durable before any later action is carried out;
//! * what was recorded is given back, in order, to [`Engine::resume`] after a restart;
//! * a statement is given to it only after its signature was checked: [`SignatureChecked`] is the proof.

use fedprune_mask::Digest;

use crate::certificate::Certificate;
use crate::ids::Height;
use crate::statement::SignatureChecked;
use crate::vote::{Precommit, Prevote, Proposal};

/// Makes agreements, one a height.
pub trait Engine {
    /// The agreement on `height`, as it was when the last entry of `journal` was recorded; a new one if there
    /// is none. A member that does not `participate` follows and says nothing.
    ///
    /// # Errors
    /// [`AgreementError`] for a journal that it did not write.
    fn resume(
        &self,
        height: Height,
        journal: &[Vec<u8>],
        participate: bool,
    ) -> Result<(Box<dyn Agreement>, Vec<Action>), AgreementError>;

    /// The votes in a journal, of whomever: what others ask for who have lost theirs.
    fn votes(&self, height: Height, journal: &[Vec<u8>]) -> Vec<Repeated>;
}

/// The agreement on one height.
pub trait Agreement: Send {
    /// Carries on.
    ///
    /// # Errors
    /// [`AgreementError`] when it cannot; nothing more can be decided by it then.
    fn step(&mut self, input: Input) -> Result<Vec<Action>, AgreementError>;

    /// The view that it is in.
    fn view(&self) -> u32;
}

/// What an agreement is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A proposal of another member.
    Proposal(SignatureChecked<Proposal>),
    /// A prevote of another member.
    Prevote(SignatureChecked<Prevote>),
    /// A precommit of another member.
    Precommit(SignatureChecked<Precommit>),
    /// The answer to [`Action::Judge`], whenever it is known.
    Judged {
        /// The proposal that was judged.
        proposal: SignatureChecked<Proposal>,
        /// Whether it may be agreed on.
        valid: bool,
    },
    /// The answer to [`Action::Want`], whenever there is one.
    Propose {
        /// The view in which it is our turn.
        view: u32,
        /// What we propose.
        value: Digest,
    },
    /// A timer that was set has elapsed.
    Elapsed(Timer),
}

/// What an agreement wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make this durable before anything that follows. Resumed by nothing; given back after a restart.
    Record(Vec<u8>),
    /// Send our own proposal to all; its grounds go with it.
    Propose(SignatureChecked<Proposal>),
    /// Send our own prevote to all.
    Prevote(SignatureChecked<Prevote>),
    /// Send our own precommit to all.
    Precommit(SignatureChecked<Precommit>),
    /// Send to all again what may have been lost, whoever said it.
    Repeat(Vec<Repeated>),
    /// It is our turn to propose in this view. Resumed by [`Input::Propose`].
    Want {
        /// The view.
        view: u32,
    },
    /// Find out whether this proposal's value may be agreed on. Resumed by [`Input::Judged`].
    Judge(SignatureChecked<Proposal>),
    /// Set a timer, anew if it is set.
    Set(Timer),
    /// Forget a timer.
    Cancel(Timer),
    /// Forget all timers.
    CancelAll,
    /// A quorum committed. Nothing follows.
    Decided(Certificate),
}

/// A vote that is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repeated {
    /// A prevote.
    Prevote(SignatureChecked<Prevote>),
    /// A precommit.
    Precommit(SignatureChecked<Precommit>),
}

/// A timer of one view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timer {
    /// What is waited for.
    pub kind: TimerKind,
    /// The view.
    pub view: u32,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerKind {
    /// The aggregator's proposal.
    Proposal,
    /// More prevotes.
    Prevote,
    /// More precommits.
    Precommit,
    /// Time to repeat what may have been lost.
    Repeat,
}

/// The agreement cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgreementError {
    /// The journal is not one of this agreement.
    #[error(
        "entry {entry} of the journal of height {height} cannot be replayed: {why}; nothing is signed at this height"
    )]
    Journal {
        /// The height.
        height: Height,
        /// Which entry, from 0.
        entry: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The engine failed.
    #[error("the agreement on height {height} failed: {why}")]
    Engine {
        /// The height.
        height: Height,
        /// What it said.
        why: String,
    },
}
