//! `round.toml`: the terms as people write them, with names for members and defaults filled in.

use std::collections::BTreeMap;
use std::fmt;

use fedprune_mask::{Digest, Group, Pruner, Sparsity};
use serde::{Deserialize, Deserializer, Serialize};

use super::terms::{
    Ballots, BosRule, Calibration, DataFree, Sampling, Scaling, SeedRule, Strategy, TallyBy, Terms, Timers,
};
use super::{Contradiction, Round, RoundError};
use crate::consortium::Consortium;
use crate::document::{self, DocumentError, harmless};
use crate::ids::ConsortiumId;

/// Most bytes of a `round.toml`.
pub const DOCUMENT_LIMIT: usize = 256 << 10;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    consortium: ConsortiumId,
    base_model: Digest,
    layout: Digest,
    tokenizer: Digest,
    configuration: Digest,
    #[serde(default = "wanda")]
    pruner: Pruner,
    #[serde(default = "row")]
    local_group: Group,
    #[serde(default = "layer")]
    global_group: Group,
    #[serde(default, deserialize_with = "quoted_sparsity")]
    sparsity: Option<Sparsity>,
    #[serde(default)]
    strategy: Strategy,
    #[serde(default)]
    scaling: Scaling,
    #[serde(default)]
    data_free: Vec<DataFree>,
    #[serde(default)]
    ballots: Ballots,
    minimum_ballots: Option<u16>,
    #[serde(default)]
    tally: TallyBy,
    #[serde(default)]
    tally_weights: BTreeMap<String, u32>,
    calibration: Option<CalibrationDocument>,
    #[serde(default)]
    timers: Timers,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CalibrationDocument {
    samples: u32,
    window_tokens: u32,
    sampling: SamplingDocument,
    seed: Option<SeedRule>,
    #[serde(default)]
    bos: BosRule,
    minimum_calibration_tokens: Option<u64>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SamplingDocument {
    Sequential,
    Random,
}

fn wanda() -> Pruner {
    Pruner::WANDA
}

fn row() -> Group {
    Group::Row
}

fn layer() -> Group {
    Group::Layer
}

/// A sparsity is exact, and a number of TOML with a point is not: it stands in quotes.
fn quoted_sparsity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Sparsity>, D::Error> {
    struct Visitor;

    impl serde::de::Visitor<'_> for Visitor {
        type Value = Sparsity;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sparsity in quotes, such as \"0.5\" or \"57/100\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Sparsity, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_any(Visitor).map(Some)
}

/// Reads the terms; what they say is checked by [`Round::new`].
pub(super) fn parse(text: &str, consortium: &Consortium) -> Result<Terms, RoundError> {
    let document: Document = document::read(text, DOCUMENT_LIMIT)?;
    let mut contradictions = Vec::new();
    let fixed = document.local_group.fixed_sparsity().or(document.global_group.fixed_sparsity());
    let sparsity = document.sparsity.or(fixed);
    if sparsity.is_none() {
        contradictions.push(Contradiction::NoSparsity);
    }
    let mut tally_weights = vec![1; consortium.members().len()];
    for (name, weight) in document.tally_weights {
        let entry = consortium.index_by_name(&name).and_then(|member| tally_weights.get_mut(member.as_usize()));
        match entry {
            Some(entry) => *entry = weight,
            None => contradictions.push(Contradiction::WeightOfNobody(harmless(&name))),
        }
    }
    let calibration = document.calibration.map(|given| {
        let sampling = match (given.sampling, given.seed) {
            (SamplingDocument::Random, Some(seed)) => Sampling::Random { seed },
            (SamplingDocument::Sequential, None) => Sampling::Sequential,
            (SamplingDocument::Random, None) => {
                contradictions.push(Contradiction::NoSeed);
                Sampling::Sequential
            }
            (SamplingDocument::Sequential, Some(_)) => {
                contradictions.push(Contradiction::NeedlessSeed);
                Sampling::Sequential
            }
        };
        let all = u64::from(given.samples).saturating_mul(u64::from(given.window_tokens));
        Calibration {
            samples: given.samples,
            window_tokens: given.window_tokens,
            sampling,
            bos: given.bos,
            minimum_calibration_tokens: given.minimum_calibration_tokens.unwrap_or(all),
        }
    });
    let (Some(sparsity), true) = (sparsity, contradictions.is_empty()) else {
        return Err(RoundError::Contradictions(contradictions));
    };
    let quorum = u16::try_from(consortium.quorum().q()).unwrap_or(u16::MAX);
    Ok(Terms {
        consortium: document.consortium,
        base_model: document.base_model,
        layout: document.layout,
        tokenizer: document.tokenizer,
        configuration: document.configuration,
        pruner: document.pruner,
        local_group: document.local_group,
        global_group: document.global_group,
        sparsity,
        strategy: document.strategy,
        scaling: document.scaling,
        tally_weights,
        data_free: document.data_free,
        ballots: document.ballots,
        calibration,
        minimum_ballots: document.minimum_ballots.unwrap_or(quorum),
        tally: document.tally,
        timers: document.timers,
    })
}

/// The consortium that a document names, whatever else it says.
pub(super) fn consortium_named_in(text: &str) -> Result<ConsortiumId, DocumentError> {
    #[derive(Deserialize)]
    struct Named {
        consortium: ConsortiumId,
    }
    document::read::<Named>(text, DOCUMENT_LIMIT).map(|named| named.consortium)
}

/// Writes a round with nothing left to defaults, save tally weights of 1.
pub(super) fn write(round: &Round, consortium: &Consortium) -> Result<String, DocumentError> {
    let terms = round.terms();
    let weights = consortium.members().iter().zip(&terms.tally_weights).filter(|(_, weight)| **weight != 1);
    document::write(&Document {
        consortium: terms.consortium,
        base_model: terms.base_model,
        layout: terms.layout,
        tokenizer: terms.tokenizer,
        configuration: terms.configuration,
        pruner: terms.pruner,
        local_group: terms.local_group,
        global_group: terms.global_group,
        sparsity: Some(terms.sparsity),
        strategy: terms.strategy,
        scaling: terms.scaling,
        data_free: terms.data_free.clone(),
        ballots: terms.ballots,
        minimum_ballots: Some(terms.minimum_ballots),
        tally: terms.tally,
        tally_weights: weights.map(|(member, weight)| (member.name.clone(), *weight)).collect(),
        calibration: terms.calibration.map(|calibration| CalibrationDocument {
            samples: calibration.samples,
            window_tokens: calibration.window_tokens,
            sampling: match calibration.sampling {
                Sampling::Sequential => SamplingDocument::Sequential,
                Sampling::Random { .. } => SamplingDocument::Random,
            },
            seed: match calibration.sampling {
                Sampling::Sequential => None,
                Sampling::Random { seed } => Some(seed),
            },
            bos: calibration.bos,
            minimum_calibration_tokens: Some(calibration.minimum_calibration_tokens),
        }),
        timers: terms.timers,
    })
}
