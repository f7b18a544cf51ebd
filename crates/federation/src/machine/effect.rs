//! What goes into the machine and what comes out.

use fedprune_mask::Digest;

use super::record::Record;
use crate::agreement::AgreementError;
use crate::ballot::{BallotHeader, Validated};
use crate::ids::{Height, MemberIndex};
use crate::signing::Kind;
use crate::statement::SignatureChecked;

/// What the machine is told.
#[derive(Debug)]
pub enum Input {
    /// Time has passed: timers that are due fire.
    Tick,
    /// A member's answer to [`Question::Mine`](super::Question::Mine).
    Recalled {
        /// Who answered.
        from: MemberIndex,
        /// What it has of ours, unchecked.
        messages: Vec<Vec<u8>>,
    },
    /// The answer to [`Effect::Compute`]: the body is stored durably.
    Contributed {
        /// Of which height.
        height: Height,
        /// BLAKE3 of the body.
        body: Digest,
        /// Its bytes.
        body_bytes: u64,
        /// Now, in milliseconds since 1970.
        claimed_unix_ms: u64,
    },
    /// The other answer to [`Effect::Compute`]: this member has no ballot for this height.
    Abstained {
        /// Of which height.
        height: Height,
        /// Why, for people.
        why: String,
    },
    /// The answer to [`Effect::Fetch`]: the body is stored durably.
    Stored {
        /// Of which height.
        height: Height,
        /// BLAKE3 of the body.
        body: Digest,
    },
    /// The answer to [`Effect::Validate`].
    Valid(Validated),
    /// The other answer to [`Effect::Validate`].
    Invalid {
        /// Of which height.
        height: Height,
        /// Whose ballot.
        member: MemberIndex,
        /// BLAKE3 of the body.
        body: Digest,
        /// What is wrong with it, for people.
        why: String,
    },
    /// The answer to [`Effect::Tally`].
    Tallied {
        /// Of which height.
        height: Height,
        /// What was asked.
        set: Digest,
        /// The root of the global mask.
        mask_root: Digest,
    },
    /// The answer to [`Effect::Conclude`].
    Concluded,
}

/// What the machine wants done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// Append to the log of a height.
    Append(Height, Record),
    /// Make everything appended so far durable before any later effect is carried out.
    Flush,
    /// Send to all members.
    Publish(Vec<u8>),
    /// Ask all members for what this one signed in this round. Resumed by [`Input::Recalled`], one for each.
    Recall,
    /// Compute this member's ballot. Resumed by [`Input::Contributed`] or [`Input::Abstained`].
    Compute(Height),
    /// Get and store a body, from whoever has it. Resumed by [`Input::Stored`], when it is there.
    Fetch {
        /// Of which height.
        height: Height,
        /// BLAKE3 of the body.
        body: Digest,
        /// Its bytes, as signed.
        body_bytes: u64,
        /// Who signed it, and who says that it holds it.
        sources: Vec<MemberIndex>,
    },
    /// Check a ballot whose body is stored. Resumed by [`Input::Valid`] or [`Input::Invalid`].
    Validate(SignatureChecked<BallotHeader>),
    /// Count ballots that are stored and valid. Resumed by [`Input::Tallied`].
    Tally {
        /// Of which height.
        height: Height,
        /// Names the set.
        set: Digest,
        /// The ballots.
        ballots: Vec<(MemberIndex, Digest)>,
    },
    /// Nothing is left to agree on: write the transcript and, if there is a mask, the pruned model. Resumed by
    /// [`Input::Concluded`].
    Conclude(Outcome),
    /// Tell people.
    Tell(Event),
    /// The round has ended here; this member goes on answering others, and may still have a result to say that a crash
    /// kept back.
    Finished(Outcome),
    /// This member cannot go on and says nothing more.
    Failed(MachineError),
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All heights have a mask that a quorum stands for.
    Agreed,
    /// It was abandoned at this height.
    Abandoned(Height),
}

/// What people may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Enough members answered what they have of ours; we take part.
    Joined,
    /// Our ballot is signed.
    Contributed {
        /// Of which height.
        height: Height,
        /// Bytes of the body.
        body_bytes: u64,
    },
    /// We have no ballot.
    Abstained {
        /// Of which height.
        height: Height,
        /// Why.
        why: String,
    },
    /// A member's ballot is stored and valid.
    Held {
        /// Of which height.
        height: Height,
        /// Whose.
        member: MemberIndex,
    },
    /// A member's ballot is not valid.
    Refused {
        /// Of which height.
        height: Height,
        /// Whose.
        member: MemberIndex,
        /// Why.
        why: String,
    },
    /// Two members sent the same body.
    SameBallot {
        /// Of which height.
        height: Height,
        /// The two.
        members: [MemberIndex; 2],
    },
    /// We said what we hold.
    Holding {
        /// Of which height.
        height: Height,
        /// How many ballots.
        ballots: usize,
    },
    /// The agreement is in a view.
    View {
        /// Of which height.
        height: Height,
        /// From 0.
        view: u32,
        /// Whose turn it is.
        aggregator: MemberIndex,
    },
    /// A proposal that may not be agreed on.
    BadProposal {
        /// Of which height.
        height: Height,
        /// In which view.
        view: u32,
        /// Who proposed it.
        member: MemberIndex,
        /// What is wrong with it.
        why: String,
    },
    /// A height is decided.
    Decided {
        /// Which.
        height: Height,
        /// In which view.
        view: u32,
        /// Whose ballots count.
        contributors: Vec<MemberIndex>,
    },
    /// We know the mask of a height.
    Tallied {
        /// Which.
        height: Height,
        /// The root of its mask.
        mask_root: Digest,
    },
    /// A quorum stands for the mask of a height.
    Certified {
        /// Which.
        height: Height,
        /// The root of its mask.
        mask_root: Digest,
    },
    /// A member said two things where it may say one.
    Equivocation {
        /// Of which height.
        height: Height,
        /// Who.
        member: MemberIndex,
        /// In what kind of statement.
        kind: Kind,
    },
    /// Others have something of ours that our log does not have: a restored backup, or a second node with our key.
    Adopted {
        /// Of which height.
        height: Height,
        /// What kind of statement.
        kind: Kind,
    },
}

/// Why a member cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The agreement failed.
    #[error(transparent)]
    Agreement(#[from] AgreementError),
    /// Something would be signed twice in one slot.
    #[error(
        "a second {kind} would be signed at height {height}, unlike the first; nothing more is signed. \
         Is another node running with this key, or was its folder restored from a backup?"
    )]
    SecondStatement {
        /// What kind of statement.
        kind: Kind,
        /// Of which height.
        height: Height,
    },
    /// The tally differs from what a quorum stands for.
    #[error(
        "our mask of height {height} is {ours}, and a quorum stands for {theirs}; the base model here is not the round's, \
         or this program is broken: check `fedprune model inspect` against the round"
    )]
    Diverged {
        /// Of which height.
        height: Height,
        /// Our root.
        ours: Digest,
        /// Theirs.
        theirs: Digest,
    },
    /// A ballot counts that this member found invalid: more members are faulty than the consortium tolerates.
    #[error(
        "the ballot of member {member} counts at height {height}, and it is not valid here: more members are faulty than \
         the consortium tolerates, or the base model here is not the round's"
    )]
    RefusedCounts {
        /// Of which height.
        height: Height,
        /// Whose ballot.
        member: MemberIndex,
    },
    /// The log is not one of this round and member.
    #[error("the log of this round cannot be continued: {0}")]
    Log(String),
    /// A statement could not be signed.
    #[error(transparent)]
    Sign(#[from] crate::statement::SignError),
}
