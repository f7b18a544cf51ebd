//! What of the paper's findings holds in results, by a rule that the report states.
//!
//! A finding is that one way to prune comes to a lower perplexity than another. All pairs of records are compared that
//! differ in nothing else: same model, silos, text, samples, sparsity, pruner, local group and seed. It *holds* if the
//! mean relative difference has the sign that is claimed and exceeds twice its standard error, does *not hold* if it has
//! the other sign and does, and is *undecided* otherwise.

use crate::cells::Spread;
use crate::results::{Method, ModelResults, Record, Scaling, Silos, Strategy, Together};
use fedprune_mask::Group;

/// Standard errors within which a mean difference decides nothing.
const DECIDING_ERRORS: f64 = 2.0;

/// What results say about a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Holds,
    DoesNotHold,
    Undecided,
    NotMeasured,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "HOLDS",
            Self::DoesNotHold => "DOES NOT HOLD",
            Self::Undecided => "UNDECIDED",
            Self::NotMeasured => "NOT MEASURED",
        }
    }
}

/// Pairs of records that differ in one thing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Comparison {
    /// In how many pairs the first is lower.
    pub lower: usize,
    /// ln(first / second) of each pair, as mean and spread; none without a pair.
    pub difference: Option<Spread>,
}

impl Comparison {
    /// Whether the first is lower.
    pub fn verdict(&self) -> Verdict {
        match self.difference {
            None => Verdict::NotMeasured,
            Some(difference) if difference.mean.abs() <= DECIDING_ERRORS * difference.error() => Verdict::Undecided,
            Some(difference) if difference.mean < 0.0 => Verdict::Holds,
            Some(difference) if difference.mean > 0.0 => Verdict::DoesNotHold,
            Some(_) => Verdict::Undecided,
        }
    }

    /// The numbers, in words.
    pub fn in_words(&self) -> String {
        match self.difference {
            None => "no pair was measured".to_owned(),
            Some(difference) => format!(
                "lower in {} of {} pairs, by {:+.2} % ± {:.2} % (mean ± standard error)",
                self.lower,
                difference.count,
                100.0 * (difference.mean.exp() - 1.0),
                100.0 * difference.error()
            ),
        }
    }
}

/// Compares every record that `first` takes with the one of the same silos and seed that `second` takes.
pub(crate) fn compare(
    results: &ModelResults,
    first: impl Fn(&Record) -> bool,
    second: impl Fn(&Record, &Record) -> bool,
) -> Comparison {
    let mut differences = Vec::new();
    for one in results.records.iter().filter(|record| first(record)) {
        let same = |other: &&Record| (other.from, other.seed) == (one.from, one.seed) && second(one, other);
        if let Some(other) = results.records.iter().find(same) {
            let difference = (one.perplexity / other.perplexity).ln();
            if difference.is_finite() {
                differences.push(difference);
            }
        }
    }
    let lower = differences.iter().filter(|difference| **difference < 0.0).count();
    Comparison { lower, difference: Spread::of(differences) }
}

const PLAIN: Together = Together { global_group: Group::Layer, scaling: Scaling::None, strategy: Strategy::OneShot };

/// Whether this is the plain federation: one-shot, unscaled, compared within layers, or in the pattern.
fn is_plain(record: &Record) -> bool {
    record.method == Method::Federated
        && record.together.is_some_and(|together| {
            let group = matches!(together.global_group, Group::Layer | Group::NofM { .. });
            group && Together { global_group: PLAIN.global_group, ..together } == PLAIN
        })
}

fn uses_text(record: &Record) -> bool {
    record.from.is_some_and(|from| from.pruner.scorer().uses_norms())
}

/// Federated against each silo alone.
pub(crate) fn federated_beats_local(results: &ModelResults) -> Comparison {
    compare(results, |one| is_plain(one) && uses_text(one), |_, other| other.method == Method::Local)
}

/// The global group layer against another one.
pub(crate) fn layer_beats(results: &ModelResults, group: Group) -> Comparison {
    let layer = |one: &Record| {
        is_plain(one) && uses_text(one) && one.together.is_some_and(|together| together.global_group == Group::Layer)
    };
    compare(results, layer, |one, other| {
        let wanted = one.together.map(|together| Together { global_group: group, ..together });
        other.method == Method::Federated && other.together == wanted
    })
}

/// How much it matters whether silos compare within rows or layers: of each pair of records that differ in nothing
/// else, the absolute relative difference.
fn sensitivities(results: &ModelResults, global: Group) -> Vec<(&Record, f64)> {
    let together = Some(Together { global_group: global, ..PLAIN });
    let of = |group: Group| {
        results.records.iter().filter(move |record| {
            record.together == together
                && uses_text(record)
                && record.from.is_some_and(|from| from.local_group == group)
        })
    };
    let pair = |row: &'_ Record| {
        let same = |layer: &&Record| {
            layer.seed == row.seed && layer.from == row.from.map(|from| Silos { local_group: Group::Layer, ..from })
        };
        of(Group::Layer).find(same).map(|layer| (row.perplexity / layer.perplexity).ln().abs())
    };
    of(Group::Row)
        .filter_map(|row| Some((row, pair(row)?)))
        .filter(|(_, sensitivity)| sensitivity.is_finite())
        .collect()
}

/// The mean of how much the local group matters under a global group; none without a pair.
pub(crate) fn local_group_matters(results: &ModelResults, global: Group) -> Option<Spread> {
    Spread::of(sensitivities(results, global).into_iter().map(|(_, sensitivity)| sensitivity))
}

/// Whether the local group matters less under the global group layer than under another one.
pub(crate) fn layer_is_more_robust_than(results: &ModelResults, other: Group) -> Comparison {
    let others = sensitivities(results, other);
    let same = |one: &Record, other: &Record| (one.from, one.seed) == (other.from, other.seed);
    let differences: Vec<f64> = sensitivities(results, Group::Layer)
        .into_iter()
        .filter_map(|(one, sensitivity)| {
            let (_, theirs) = others.iter().find(|(other, _)| same(one, other))?;
            Some(sensitivity - theirs)
        })
        .collect();
    Comparison {
        lower: differences.iter().filter(|difference| **difference < 0.0).count(),
        difference: Spread::of(differences),
    }
}

/// Scaled against unscaled, with the same groups.
pub(crate) fn scaling_hurts(results: &ModelResults) -> Comparison {
    let unscaled = |one: &Record| {
        uses_text(one)
            && one
                .together
                .is_some_and(|together| (together.scaling, together.strategy) == (Scaling::None, Strategy::OneShot))
    };
    compare(results, unscaled, |one, other| {
        other.together == one.together.map(|together| Together { scaling: Scaling::Support, ..together })
    })
}

/// Iterative against one-shot, with the same groups.
pub(crate) fn iterative_beats_one_shot(results: &ModelResults) -> Comparison {
    let iterative =
        |one: &Record| one.together.is_some_and(|together| together.strategy == Strategy::Iterative) && uses_text(one);
    compare(results, iterative, |one, other| {
        other.together == one.together.map(|together| Together { strategy: Strategy::OneShot, ..together })
    })
}

/// Bytes of a silo in an iterative federation for each that it sends in the same one-shot one.
pub(crate) fn iterative_bytes(results: &ModelResults) -> Option<Spread> {
    let of = |strategy: Strategy| {
        results
            .records
            .iter()
            .filter(move |record| record.together.is_some_and(|together| together.strategy == strategy))
    };
    let ratios = of(Strategy::Iterative).filter_map(|one| {
        let wanted = one.together.map(|together| Together { strategy: Strategy::OneShot, ..together });
        let same = |other: &&Record| (other.from, other.seed, other.together) == (one.from, one.seed, wanted);
        Some(one.ballot_bytes? / of(Strategy::OneShot).find(same)?.ballot_bytes?)
    });
    Spread::of(ratios)
}

/// Centralized against federated.
pub(crate) fn centralized_is_a_bound(results: &ModelResults) -> Comparison {
    let centralized = |one: &Record| one.method == Method::Centralized && uses_text(one);
    compare(results, centralized, |_, other| is_plain(other))
}
