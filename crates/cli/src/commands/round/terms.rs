//! Terms from what was typed, and terms as they are shown.

use std::collections::BTreeMap;

use fedprune_checkpoint::{Checkpoint, ModelConfig};
use fedprune_federation::consortium::Consortium;
use fedprune_federation::round::{
    Ballots, BosRule, Calibration, DataFree, Sampling, Scaling, SeedRule, Strategy, TallyBy, Terms, Timers,
};
use fedprune_mask::{Group, Sparsity};
use fedprune_model::ModelError;
use serde::Serialize;

use super::model::ModelDigests;
use crate::args::{
    Ballots as BallotChoice, BosChoice, RoundNewOptions, SamplingMethod, ScalingChoice, StrategyChoice, TallyChoice,
};
use crate::commands::home::names;
use crate::commands::mask_compute::{FEW_CALIBRATION_TOKENS, group_and_sparsity};
use crate::commands::sequence_tokens;
use crate::output::count;
use crate::usage;

/// Windows of a silo when none are asked for, as for `mask compute`.
const DEFAULT_SAMPLES: u32 = 128;

/// What was typed, without the digests, which take a look at the whole model.
pub(super) fn typed(
    options: &RoundNewOptions,
    consortium: &Consortium,
    checkpoint: &Checkpoint,
    digests: ModelDigests,
) -> anyhow::Result<Terms> {
    let (local_group, mut sparsity) = group_and_sparsity(options.local_group, options.sparsity)?;
    let global_group = match (options.global_group, local_group) {
        (Some(group), _) => group,
        (None, group @ Group::NofM { .. }) => group,
        (None, _) => Group::Layer,
    };
    if options.sparsity.is_none() && local_group.fixed_sparsity().is_none() {
        sparsity = global_group.fixed_sparsity().unwrap_or(sparsity);
    }
    let quorum = u16::try_from(consortium.quorum().q()).unwrap_or(u16::MAX);
    Ok(Terms {
        consortium: consortium.id(),
        base_model: digests.base_model,
        layout: digests.layout,
        tokenizer: digests.tokenizer,
        configuration: digests.configuration,
        pruner: options.pruner,
        local_group,
        global_group,
        sparsity,
        strategy: match options.strategy {
            StrategyChoice::OneShot => Strategy::OneShot,
            StrategyChoice::Iterative => Strategy::Iterative,
        },
        scaling: match options.scaling {
            ScalingChoice::None => Scaling::None,
            ScalingChoice::Support => Scaling::Support,
        },
        tally_weights: tally_weights(options, consortium)?,
        data_free: options.data_free.clone(),
        ballots: match options.ballots {
            BallotChoice::Auto => Ballots::Auto,
            BallotChoice::MaskOnly => Ballots::MaskOnly,
        },
        calibration: calibration(options, checkpoint.config())?,
        minimum_ballots: options.minimum_ballots.unwrap_or(quorum),
        tally: match options.tally {
            TallyChoice::EveryPeer => TallyBy::EveryPeer,
            TallyChoice::Elected => TallyBy::Elected,
        },
        timers: Timers {
            contribution_ms: options.contribution_seconds.saturating_mul(1000),
            proposal_ms: options.proposal_ms,
            vote_ms: options.vote_ms,
            growth_ms: options.growth_ms,
            abandon_ms: options.abandon_seconds.saturating_mul(1000),
        },
    })
}

fn tally_weights(options: &RoundNewOptions, consortium: &Consortium) -> anyhow::Result<Vec<u32>> {
    let mut weights = vec![1; consortium.members().len()];
    let mut given = BTreeMap::new();
    for (name, weight) in &options.weight {
        let Some(member) = consortium.index_by_name(name) else {
            usage!(
                "--weight {name}={weight}: there is no member `{name}`; the members are {}",
                names(consortium.members())
            );
        };
        if given.insert(name, weight).is_some() {
            usage!("--weight gives `{name}` two weights; drop one");
        }
        weights[member.as_usize()] = *weight;
    }
    Ok(weights)
}

fn calibration(options: &RoundNewOptions, config: &ModelConfig) -> anyhow::Result<Option<Calibration>> {
    if !options.pruner.scorer().uses_norms() {
        let needless = [
            ("--nsamples", options.nsamples.is_some()),
            ("--seqlen", options.seqlen.is_some()),
            ("--sampling", options.sampling.is_some()),
            ("--seed", options.seed.is_some()),
            ("--bos", options.bos.is_some()),
            ("--minimum-calibration-tokens", options.minimum_calibration_tokens.is_some()),
        ];
        if let Some((option, _)) = needless.into_iter().find(|(_, given)| *given) {
            usage!("pruner `{}` looks at no text; drop {option}, or use --pruner wanda", options.pruner);
        }
        return Ok(None);
    }
    let asked = sequence_tokens(options.seqlen, config);
    let positions = config.max_position_embeddings;
    if asked > positions {
        return Err(ModelError::SequenceTooLong { asked, positions }.into());
    }
    let samples = options.nsamples.unwrap_or(DEFAULT_SAMPLES);
    let window_tokens = u32::try_from(asked).unwrap_or(u32::MAX);
    let sampling = match (options.sampling.unwrap_or(SamplingMethod::Random), options.seed) {
        (SamplingMethod::Random, seed) => Sampling::Random { seed: seed.unwrap_or(SeedRule::FromRound) },
        (SamplingMethod::Sequential, None) => Sampling::Sequential,
        (SamplingMethod::Sequential, Some(_)) => {
            usage!("--sampling sequential draws nothing; drop --seed")
        }
    };
    let all = u64::from(samples).saturating_mul(u64::from(window_tokens));
    Ok(Some(Calibration {
        samples,
        window_tokens,
        sampling,
        bos: match options.bos {
            None | Some(BosChoice::EachText) => BosRule::EachText,
            Some(BosChoice::None) => BosRule::None,
            Some(BosChoice::EachWindow) => BosRule::EachWindow,
        },
        minimum_calibration_tokens: options.minimum_calibration_tokens.unwrap_or(all),
    }))
}

/// Terms as they are shown, in the words of `round.toml`.
#[derive(Debug, Serialize)]
pub(super) struct TermsReport {
    #[serde(flatten)]
    digests: ModelDigests,
    pruner: String,
    local_group: Group,
    global_group: Group,
    sparsity: Sparsity,
    strategy: Strategy,
    scaling: Scaling,
    data_free: Vec<DataFree>,
    ballots: Ballots,
    minimum_ballots: u16,
    tally: TallyBy,
    tally_weights: BTreeMap<String, u32>,
    calibration: Option<CalibrationReport>,
    timers: Timers,
}

#[derive(Debug, Serialize)]
struct CalibrationReport {
    samples: u32,
    window_tokens: u32,
    sampling: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<SeedRule>,
    bos: BosRule,
    minimum_calibration_tokens: u64,
}

impl TermsReport {
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    pub fn of(terms: &Terms, consortium: &Consortium) -> Self {
        let weights = consortium.members().iter().zip(&terms.tally_weights);
        Self {
            digests: ModelDigests::of_terms(terms),
            pruner: terms.pruner.to_string(),
            local_group: terms.local_group,
            global_group: terms.global_group,
            sparsity: terms.sparsity,
            strategy: terms.strategy,
            scaling: terms.scaling,
            data_free: terms.data_free.clone(),
            ballots: terms.ballots,
            minimum_ballots: terms.minimum_ballots,
            tally: terms.tally,
            tally_weights: weights.map(|(member, weight)| (member.name.clone(), *weight)).collect(),
            calibration: terms.calibration.map(|calibration| {
                let (sampling, seed) = match calibration.sampling {
                    Sampling::Sequential => ("sequential", None),
                    Sampling::Random { seed } => ("random", Some(seed)),
                };
                CalibrationReport {
                    samples: calibration.samples,
                    window_tokens: calibration.window_tokens,
                    sampling,
                    seed,
                    bos: calibration.bos,
                    minimum_calibration_tokens: calibration.minimum_calibration_tokens,
                }
            }),
            timers: terms.timers,
        }
    }

    /// Whether silos measure anything.
    pub fn reads_text(&self) -> bool {
        self.calibration.is_some()
    }

    /// Names and values for people.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let strategy = match self.strategy {
            Strategy::OneShot => "one-shot: one agreement on the whole model",
            Strategy::Iterative => "iterative: one agreement a decoder block",
        };
        let mut rows = vec![
            ("prunes", format!("sparsity {}, {} group, by {}", self.sparsity, self.local_group, self.pruner)),
            ("global mask", format!("{} group; {strategy}", self.global_group)),
        ];
        if let Some(calibration) = &self.calibration {
            let seed = match calibration.seed {
                None => String::new(),
                Some(SeedRule::FromRound) => ", each member's own seed".to_owned(),
                Some(SeedRule::Fixed(seed)) => format!(", seed {seed} for all"),
            };
            let bos = match calibration.bos {
                BosRule::None => "no token before it",
                BosRule::EachText => "each text begun as the tokenizer does",
                BosRule::EachWindow => "each window begun with the model's token",
            };
            rows.push((
                "calibration",
                format!(
                    "{} windows of {} tokens, {}{seed}, {bos}; at least {} tokens of each silo",
                    calibration.samples,
                    calibration.window_tokens,
                    calibration.sampling,
                    count(calibration.minimum_calibration_tokens),
                ),
            ));
        }
        if !self.data_free.is_empty() {
            let taps: Vec<String> = self.data_free.iter().map(ToString::to_string).collect();
            rows.push(("without data", taps.join(", ")));
        }
        rows.push((
            "ballots",
            match self.ballots {
                Ballots::Auto => format!("smallest encoding; at least {} make a mask", self.minimum_ballots),
                Ballots::MaskOnly => format!("masks only; at least {} make a mask", self.minimum_ballots),
            },
        ));
        let uneven: Vec<String> = self
            .tally_weights
            .iter()
            .filter(|(_, weight)| **weight != 1)
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        let weights =
            if uneven.is_empty() { String::new() } else { format!("; weights: {}, others 1", uneven.join(", ")) };
        rows.push((
            "tally",
            match self.tally {
                TallyBy::EveryPeer => format!("by every member{weights}"),
                TallyBy::Elected => format!("by the elected aggregator, checked by every member{weights}"),
            },
        ));
        if self.scaling == Scaling::Support {
            rows.push(("scaling", "kept weights times the share of votes that keeps them".to_owned()));
        }
        rows.push((
            "waits",
            format!(
                "{} for ballots, {} before it may be abandoned; proposal {} ms, votes {} ms, {} ms more each view",
                duration(self.timers.contribution_ms),
                duration(self.timers.abandon_ms),
                self.timers.proposal_ms,
                self.timers.vote_ms,
                self.timers.growth_ms,
            ),
        ));
        for (name, digest) in [
            ("base model", self.digests.base_model),
            ("layout", self.digests.layout),
            ("tokenizer", self.digests.tokenizer),
            ("configuration", self.digests.configuration),
        ] {
            rows.push((name, digest.to_string()));
        }
        rows
    }
}

/// A timer in the largest unit that keeps it whole.
fn duration(milliseconds: u64) -> String {
    for (unit, length) in [("h", 3_600_000), ("min", 60_000), ("s", 1000)] {
        if milliseconds > 0 && milliseconds.is_multiple_of(length) {
            return format!("{} {unit}", count(milliseconds / length));
        }
    }
    format!("{} ms", count(milliseconds))
}

/// What terms may say and yet should make people think, beside what the round itself warns of.
pub(super) fn few_tokens(terms: &Terms) -> Option<String> {
    let minimum = terms.calibration?.minimum_calibration_tokens;
    (minimum < FEW_CALIBRATION_TOKENS).then(|| {
        format!(
            "a silo may contribute from {} tokens: whoever holds its ballot can recover many of their words; \
             ask for {} or more",
            count(minimum),
            count(FEW_CALIBRATION_TOKENS)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn timers_are_shown_in_whole_units() {
        let shown: Vec<String> = [86_400_000, 600_000, 1_500, 2_000, 0].into_iter().map(duration).collect();
        assert_eq!(shown, ["24 h", "10 min", "1,500 ms", "2 s", "0 ms"]);
    }
}
