//! What terms may not say together, and what they may but should not.

use fedprune_mask::sparsity::SparsityError;
use fedprune_mask::{Group, Pruner};

use super::terms::{DataFree, Scaling, Terms};
use crate::consortium::Consortium;
use crate::ids::ConsortiumId;

/// Most windows of one silo.
pub const MAX_SAMPLES: u32 = 1 << 20;
/// Most tokens of a window.
pub const MAX_WINDOW_TOKENS: u32 = 1 << 20;
/// Most taps pruned without data.
pub const MAX_DATA_FREE: usize = 4096;
/// Longest timer: thirty days.
pub const MAX_TIMER_MS: u64 = 30 * 86_400_000;

/// One thing that a round may not say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Made for others.
    #[error(
        "it is a round of consortium {found}, and this one is {expected}: copy the id of your consortium into `consortium`",
        found = found.0.short(), expected = expected.0.short()
    )]
    OtherConsortium {
        /// This consortium.
        expected: ConsortiumId,
        /// The one named.
        found: ConsortiumId,
    },
    /// Nothing says how much is pruned.
    #[error("`sparsity` is missing: give one, such as \"0.5\"; only an n:m group fixes its own")]
    NoSparsity,
    /// Nothing is pruned.
    #[error("`sparsity` 0 prunes nothing: give one above 0")]
    ZeroSparsity,
    /// Groups and sparsity contradict each other.
    #[error(transparent)]
    Sparsity(#[from] SparsityError),
    /// Nothing says what is measured.
    #[error("`pruner` {0} looks at activations: add a table `[calibration]` with samples, window_tokens and sampling")]
    NoCalibration(Pruner),
    /// Something says what is measured, and nothing is.
    #[error("`pruner` {0} looks at no data: remove the table `[calibration]`")]
    NeedlessCalibration(Pruner),
    /// Windows that cannot be.
    #[error(
        "`calibration` asks for {samples} windows of {window_tokens} tokens: use 1 to {MAX_SAMPLES} of 1 to {MAX_WINDOW_TOKENS}"
    )]
    Windows {
        /// Windows.
        samples: u32,
        /// Tokens of each.
        window_tokens: u32,
    },
    /// Nobody could contribute.
    #[error(
        "`minimum_calibration_tokens` is {minimum}, and samples × window_tokens is {most}, so that nobody could \
         contribute: lower the one or raise the other"
    )]
    MinimumTokens {
        /// The minimum.
        minimum: u64,
        /// The most that a silo contributes from.
        most: u64,
    },
    /// Random windows without a seed.
    #[error("`sampling` random needs `seed`: a number, or \"from-round\"")]
    NoSeed,
    /// A seed for windows that are not random.
    #[error("`sampling` sequential draws nothing: remove `seed`")]
    NeedlessSeed,
    /// All is pruned without data anyway.
    #[error("`pruner` {0} looks at no data anywhere: remove `data_free`")]
    NeedlessDataFree(Pruner),
    /// One tap twice.
    #[error("`data_free` names {0} twice: remove one")]
    DataFreeTwice(DataFree),
    /// More than any model has.
    #[error(
        "`data_free` names {0} inputs, more than the {MAX_DATA_FREE} allowed: use `pruner` magnitude to prune all so"
    )]
    TooManyDataFree(usize),
    /// A tally weight for nobody.
    #[error("`tally_weights` names `{0}`, and the consortium has no such member: correct the name")]
    WeightOfNobody(String),
    /// Not one weight for each member.
    #[error("there are {weights} tally weights for {members} members")]
    WeightCount {
        /// Weights.
        weights: usize,
        /// Members.
        members: usize,
    },
    /// A vote that counts for nothing.
    #[error("the tally weight of `{0}` is 0: give at least 1")]
    ZeroWeight(String),
    /// Weights beyond 32 bits.
    #[error("the tally weights sum to {0}, more than 4294967295: give smaller weights in the same proportion")]
    TotalWeight(u64),
    /// More ballots than members, or none.
    #[error("`minimum_ballots` is {minimum}: use 1 to {members}, the number of members")]
    MinimumBallots {
        /// The minimum.
        minimum: u16,
        /// Members.
        members: usize,
    },
    /// A timer of zero or of more than thirty days.
    #[error("`{name}` is {given}: use {least} to {MAX_TIMER_MS} milliseconds")]
    Timer {
        /// Which.
        name: &'static str,
        /// Its value.
        given: u64,
        /// The least that it may be.
        least: u64,
    },
    /// Abandoned before anybody may contribute.
    #[error(
        "`abandon_ms` is {abandon_ms}, not above `contribution_ms`, {contribution_ms}: heights would be abandoned while ballots may still come"
    )]
    AbandonedTooEarly {
        /// Time for a height.
        abandon_ms: u64,
        /// Time for its ballots.
        contribution_ms: u64,
    },
}

/// Something that a round may say, and that people should know before they approve it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// Faults that the consortium tolerates would stall the round.
    #[error(
        "`minimum_ballots` is {minimum}, above {honest}: {faults} absent members, which could be tolerated, stall the round"
    )]
    MayStall {
        /// The minimum.
        minimum: usize,
        /// n − f.
        honest: usize,
        /// f.
        faults: usize,
    },
    /// All ballots may be of faulty members.
    #[error("`minimum_ballots` is {minimum}, and {faults} members may be faulty: the mask could be theirs alone")]
    MayBeFaultyAlone {
        /// The minimum.
        minimum: usize,
        /// f.
        faults: usize,
    },
    /// One ballot makes the mask, and the mask is then that ballot.
    #[error("`minimum_ballots` is 1: a mask of one ballot is that silo's own and says as much about its text")]
    OneBallot,
    /// No fault is tolerated.
    #[error("{0}")]
    NoFaults(String),
    /// Two sparsities.
    #[error("silos prune {local} and the global group `{group}` prunes {global}: votes of another sparsity decide")]
    TwoSparsities {
        /// Of the silos.
        local: fedprune_mask::Sparsity,
        /// The global group.
        group: Group,
        /// What it fixes.
        global: fedprune_mask::Sparsity,
    },
    /// Known to be worse than pruning alone.
    #[error("`scaling` support is worse than local pruning alone in the published experiments")]
    SupportScaling,
    /// Known to collapse.
    #[error("`global_group` column collapses by construction: the norm of an input is the same in its whole column")]
    ColumnGroup,
    /// One member decides.
    #[error("`{member}` has {weight} of {total} tally weight: where it votes, no other vote changes anything")]
    OneDecides {
        /// Who.
        member: String,
        /// Its weight.
        weight: u32,
        /// All weight.
        total: u32,
    },
}

/// Everything that is wrong, in the order of the document.
pub(super) fn contradictions(terms: &Terms, consortium: &Consortium) -> Vec<Contradiction> {
    let mut found = Vec::new();
    if terms.consortium != consortium.id() {
        found.push(Contradiction::OtherConsortium { expected: consortium.id(), found: terms.consortium });
    }
    if terms.sparsity.numerator() == 0 {
        found.push(Contradiction::ZeroSparsity);
    }
    found.extend(terms.local_group.with_sparsity(terms.sparsity).err().map(Contradiction::from));
    found.extend(terms.local_group.check_global(terms.global_group).err().map(Contradiction::from));
    calibration(terms, &mut found);
    data_free(terms, &mut found);
    weights(terms, consortium, &mut found);
    let members = consortium.members().len();
    if !(1..=members).contains(&usize::from(terms.minimum_ballots)) {
        found.push(Contradiction::MinimumBallots { minimum: terms.minimum_ballots, members });
    }
    timers(terms, &mut found);
    found
}

fn calibration(terms: &Terms, found: &mut Vec<Contradiction>) {
    let Some(calibration) = terms.calibration else {
        if terms.pruner.scorer().uses_norms() {
            found.push(Contradiction::NoCalibration(terms.pruner));
        }
        return;
    };
    if !terms.pruner.scorer().uses_norms() {
        found.push(Contradiction::NeedlessCalibration(terms.pruner));
    }
    let (samples, window_tokens) = (calibration.samples, calibration.window_tokens);
    if !(1..=MAX_SAMPLES).contains(&samples) || !(1..=MAX_WINDOW_TOKENS).contains(&window_tokens) {
        found.push(Contradiction::Windows { samples, window_tokens });
    }
    let (minimum, most) = (calibration.minimum_calibration_tokens, calibration.most_tokens());
    if minimum > most {
        found.push(Contradiction::MinimumTokens { minimum, most });
    }
}

fn data_free(terms: &Terms, found: &mut Vec<Contradiction>) {
    if !terms.data_free.is_empty() && !terms.pruner.scorer().uses_norms() {
        found.push(Contradiction::NeedlessDataFree(terms.pruner));
    }
    if terms.data_free.len() > MAX_DATA_FREE {
        found.push(Contradiction::TooManyDataFree(terms.data_free.len()));
    }
    if let Some([tap, _]) = terms.data_free.array_windows().find(|[a, b]| a == b) {
        found.push(Contradiction::DataFreeTwice(*tap));
    }
}

fn weights(terms: &Terms, consortium: &Consortium, found: &mut Vec<Contradiction>) {
    let (weights, members) = (terms.tally_weights.len(), consortium.members().len());
    if weights != members {
        found.push(Contradiction::WeightCount { weights, members });
    }
    for (member, _) in consortium.members().iter().zip(&terms.tally_weights).filter(|(_, weight)| **weight == 0) {
        found.push(Contradiction::ZeroWeight(member.name.clone()));
    }
    let total = terms.total_weight();
    if total > u64::from(u32::MAX) {
        found.push(Contradiction::TotalWeight(total));
    }
}

fn timers(terms: &Terms, found: &mut Vec<Contradiction>) {
    let timers = terms.timers;
    for (name, given, least) in [
        ("contribution_ms", timers.contribution_ms, 1),
        ("proposal_ms", timers.proposal_ms, 1),
        ("vote_ms", timers.vote_ms, 1),
        ("growth_ms", timers.growth_ms, 0),
        ("abandon_ms", timers.abandon_ms, 1),
    ] {
        if !(least..=MAX_TIMER_MS).contains(&given) {
            found.push(Contradiction::Timer { name, given, least });
        }
    }
    if timers.abandon_ms <= timers.contribution_ms {
        let (abandon_ms, contribution_ms) = (timers.abandon_ms, timers.contribution_ms);
        found.push(Contradiction::AbandonedTooEarly { abandon_ms, contribution_ms });
    }
}

/// What people should know before they approve terms that were checked.
pub(super) fn warnings(terms: &Terms, consortium: &Consortium) -> Vec<Warning> {
    let mut found = Vec::new();
    let quorum = consortium.quorum();
    let (minimum, faults) = (usize::from(terms.minimum_ballots), quorum.f());
    let honest = quorum.n().saturating_sub(faults);
    if minimum > honest {
        found.push(Warning::MayStall { minimum, honest, faults });
    }
    if minimum <= faults {
        found.push(Warning::MayBeFaultyAlone { minimum, faults });
    }
    if minimum == 1 {
        found.push(Warning::OneBallot);
    }
    if faults == 0 {
        found.push(Warning::NoFaults(quorum.in_words()));
    }
    match terms.global_group.fixed_sparsity() {
        Some(global) if global != terms.sparsity => {
            found.push(Warning::TwoSparsities { local: terms.sparsity, group: terms.global_group, global });
        }
        _ => {}
    }
    if terms.scaling == Scaling::Support {
        found.push(Warning::SupportScaling);
    }
    if terms.global_group == Group::Column {
        found.push(Warning::ColumnGroup);
    }
    let total = terms.total_weight();
    for (member, weight) in consortium.members().iter().zip(&terms.tally_weights) {
        if quorum.n() > 1 && u64::from(*weight).saturating_mul(2) > total {
            let total = u32::try_from(total).unwrap_or(u32::MAX);
            found.push(Warning::OneDecides { member: member.name.clone(), weight: *weight, total });
        }
    }
    found
}
