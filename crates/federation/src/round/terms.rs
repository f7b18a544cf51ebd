//! The terms of a round as plain data. [`crate::Round`] is terms that were checked.

use std::fmt;
use std::str::FromStr;

use fedprune_mask::codec::bincode::{Decode, Encode};
use fedprune_mask::{Digest, Group, Pruner, Sparsity, Tap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::ConsortiumId;

/// What a round is: everything that members must have in common to come to one mask.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct Terms {
    /// Who may take part.
    pub consortium: ConsortiumId,
    /// Content digest of the base checkpoint.
    pub base_model: Digest,
    /// Digest of its layout, of the whole model for every strategy.
    pub layout: Digest,
    /// Digest of the tokenizer.
    pub tokenizer: Digest,
    /// Digest of the part of the model's configuration that its forward pass reads.
    pub configuration: Digest,
    /// How silos score weights.
    pub pruner: Pruner,
    /// Pools of the silos' masks.
    pub local_group: Group,
    /// Pools of the global mask.
    pub global_group: Group,
    /// Sparsity of the silos' masks, and of the global one unless its group fixes another.
    pub sparsity: Sparsity,
    /// One agreement, or one a block.
    pub strategy: Strategy,
    /// What is done to the weights that stay.
    pub scaling: Scaling,
    /// Tally weight of each member, by index.
    pub tally_weights: Vec<u32>,
    /// Taps whose matrices are pruned by magnitude, ascending.
    pub data_free: Vec<DataFree>,
    /// What ballots may consist of.
    pub ballots: Ballots,
    /// What the silos measure; absent for a pruner that looks at no data.
    pub calibration: Option<Calibration>,
    /// Fewest ballots that make a mask.
    pub minimum_ballots: u16,
    /// Who tallies before the agreement is complete.
    pub tally: TallyBy,
    /// How long members wait.
    pub timers: Timers,
}

/// How many agreements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// One, on the whole model: one height.
    #[default]
    OneShot,
    /// One for each decoder block, each on the model pruned up to there: as many heights as blocks.
    Iterative,
}

/// What is done to the weights that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// Nothing.
    #[default]
    None,
    /// They are multiplied by the share of votes that keeps them.
    Support,
}

/// What ballots may consist of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
#[serde(rename_all = "kebab-case")]
pub enum Ballots {
    /// Whatever is smallest, activation norms included.
    #[default]
    Auto,
    /// Functions of the mask alone.
    MaskOnly,
}

/// Who tallies before the agreement is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
#[serde(rename_all = "kebab-case")]
pub enum TallyBy {
    /// Nobody: the agreement is on the set of ballots, and each member derives the mask and signs its root.
    #[default]
    EveryPeer,
    /// The aggregator, whose mask root every voter re-derives before it votes.
    Elected,
}

/// What the silos measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct Calibration {
    /// Most windows of one silo.
    pub samples: u32,
    /// Tokens of each.
    pub window_tokens: u32,
    /// Which windows.
    pub sampling: Sampling,
    /// Where the token of the beginning of a sequence goes.
    pub bos: BosRule,
    /// Fewest tokens that a silo may contribute from: the norms of fewer tell their text.
    pub minimum_calibration_tokens: u64,
}

/// Which windows a silo takes of its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub enum Sampling {
    /// From the start of each file in turn.
    Sequential,
    /// At positions drawn uniformly by SplitMix64.
    Random {
        /// From which seed.
        seed: SeedRule,
    },
}

/// From which seed a silo draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub enum SeedRule {
    /// The same for all.
    Fixed(u64),
    /// Each member's own, from the round id: see [`crate::Round::seed`].
    FromRound,
}

/// Where the token of the beginning of a sequence goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode, Serialize, Deserialize)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
#[serde(rename_all = "kebab-case")]
pub enum BosRule {
    /// Nowhere.
    #[default]
    None,
    /// Before each text, as the tokenizer does it.
    EachText,
    /// First in each window.
    EachWindow,
}

/// How long members wait, in milliseconds. Timers affect whether and when a round ends, never its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
#[serde(deny_unknown_fields, default)]
pub struct Timers {
    /// For the ballots of a height, before a member states what it holds.
    pub contribution_ms: u64,
    /// For the aggregator's proposal.
    pub proposal_ms: u64,
    /// For the votes of others.
    pub vote_ms: u64,
    /// Added to the last two for each view that came to nothing.
    pub growth_ms: u64,
    /// For a height, before abandoning the round becomes a value that can be agreed on.
    pub abandon_ms: u64,
}

impl Default for Timers {
    /// Ten minutes for ballots, ten and five seconds for messages, two more each view, a day for a height.
    fn default() -> Self {
        Self { contribution_ms: 600_000, proposal_ms: 10_000, vote_ms: 5_000, growth_ms: 2_000, abandon_ms: 86_400_000 }
    }
}

/// One tap of one block; written `block0.qkv`, and `o`, `gate-up` or `down` for the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct DataFree {
    /// The decoder block, from 0.
    pub block: u32,
    /// The input that its matrices share.
    pub tap: Tap,
}

/// The text names no tap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no matrices: use block0.qkv, or .o, .gate-up or .down, with the block that is meant")]
pub struct ParseDataFreeError(String);

const TAP_NAMES: [(Tap, &str); 4] =
    [(Tap::AttentionInput, "qkv"), (Tap::AttentionOutput, "o"), (Tap::MlpInput, "gate-up"), (Tap::MlpOutput, "down")];

impl fmt::Display for DataFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = TAP_NAMES.iter().find(|(tap, _)| *tap == self.tap).map_or("", |(_, name)| name);
        write!(f, "block{}.{name}", self.block)
    }
}

impl fmt::Debug for DataFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DataFree {
    type Err = ParseDataFreeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (block, name) = text.strip_prefix("block")?.split_once('.')?;
            let (tap, _) = TAP_NAMES.iter().find(|(_, known)| *known == name)?;
            let parsed = Self { block: block.parse().ok()?, tap: *tap };
            // one way to write each: no sign, no leading zero
            (parsed.to_string() == text).then_some(parsed)
        };
        parse().ok_or_else(|| ParseDataFreeError(crate::document::harmless(text)))
    }
}

impl Serialize for DataFree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DataFree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for SeedRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            SeedRule::Fixed(seed) => serializer.serialize_u64(*seed),
            SeedRule::FromRound => serializer.serialize_str("from-round"),
        }
    }
}

impl<'de> Deserialize<'de> for SeedRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = SeedRule;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a seed from 0 to 9223372036854775807, or \"from-round\"")
            }

            fn visit_i64<E: serde::de::Error>(self, seed: i64) -> Result<SeedRule, E> {
                let unexpected = serde::de::Unexpected::Signed(seed);
                u64::try_from(seed).map(SeedRule::Fixed).map_err(|_| E::invalid_value(unexpected, &self))
            }

            fn visit_u64<E: serde::de::Error>(self, seed: u64) -> Result<SeedRule, E> {
                Ok(SeedRule::Fixed(seed))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SeedRule, E> {
                match text {
                    "from-round" => Ok(SeedRule::FromRound),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_written_one_way() {
        for text in ["block0.qkv", "block31.o", "block7.gate-up", "block4294967295.down"] {
            assert_eq!(text.parse::<DataFree>().unwrap().to_string(), text);
        }
        for text in ["", "block.qkv", "block+1.qkv", "block01.o", "block1.q", "Block1.o", "block4294967296.o", "0.o"] {
            assert!(text.parse::<DataFree>().is_err(), "{text}");
        }
    }
}
