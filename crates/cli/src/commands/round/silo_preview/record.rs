//! `preview.json`: what a preview found, in numbers, so that an approval can name it and a policy can be asked again.

use std::path::Path;

use anyhow::Context;
use fedprune_federation::{Round, RoundId};
use fedprune_mask::Digest;
use fedprune_mask::ballot::{Ballot, Encoding};
use fedprune_prune::disclosure::Score;
use serde::{Deserialize, Serialize};

use super::documents::{self, Documents};
use crate::files::{read_small, replace_document};

/// Its name, in the round's folder.
pub(super) const FILE: &str = "preview.json";
/// Most bytes of one; ours have some hundred.
const MAX_RECORD_BYTES: usize = 16 << 10;

/// What a preview found. The same text, model and round give the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::commands) struct Record {
    pub round: RoundId,
    pub member: String,
    /// BLAKE3 of the ballot of height 0.
    pub ballot: Digest,
    pub ballot_bytes: u64,
    /// Encodings that occur in it, by name.
    pub encodings: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration_tokens: Option<u64>,
    pub documents: u64,
    pub document_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documents_digest: Option<Digest>,
    /// What the attack came to; absent where it was not made, because there is nothing to attack or it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attack: Option<AttackRecord>,
    /// Whether it cannot be made on such a ballot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unread: bool,
}

/// How many tokens were recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::commands) struct AttackRecord {
    /// Different tokens of the text.
    pub distinct: u64,
    /// Right among as many guesses.
    pub recovered: u64,
    /// Right among as many of the commonest tokens.
    pub baseline: u64,
    /// Recovered, and not among those.
    pub beyond: u64,
}

impl Record {
    pub(super) fn new(
        round: &Round,
        member: &str,
        ballot: &Ballot<'_>,
        documents: Option<&Documents>,
        score: Option<&Score>,
        unread: bool,
    ) -> Self {
        Self {
            round: round.id(),
            member: member.to_owned(),
            ballot: ballot.digest(),
            ballot_bytes: ballot.bytes().len() as u64,
            encodings: documents::encodings(ballot).into_iter().map(|(name, _)| name.to_owned()).collect(),
            calibration: documents.and_then(|documents| documents.calibration),
            calibration_tokens: documents.map(|documents| documents.calibration_tokens),
            documents: documents.map_or(0, |documents| documents.count as u64),
            document_bytes: documents.map_or(0, |documents| documents.bytes),
            documents_digest: documents.map(|documents| documents.digest),
            attack: score.map(|score| AttackRecord {
                distinct: score.distinct as u64,
                recovered: score.recovered as u64,
                baseline: score.baseline as u64,
                beyond: score.beyond as u64,
            }),
            unread,
        }
    }

    /// The record of a round's folder and what it is named by; none if no preview was made.
    ///
    /// # Errors
    /// A file that cannot be read or is no record.
    pub fn read(folder: &Path) -> anyhow::Result<Option<(Self, Digest)>> {
        let path = folder.join(FILE);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let bytes = read_small(&path, MAX_RECORD_BYTES)?;
        let record = serde_json::from_slice(&bytes)
            .with_context(|| format!("`{}` is no record of a preview; remove it and make another", path.display()))?;
        Ok(Some((record, Digest::of(&bytes))))
    }

    /// Writes it in place of an older one; returns what it is named by.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<Digest> {
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        replace_document(&folder.join(FILE), text.as_bytes())?;
        Ok(Digest::of(text.as_bytes()))
    }

    /// Encodings that occur.
    pub fn encodings(&self) -> Vec<Encoding> {
        self.encodings.iter().filter_map(|name| documents::named(name)).collect()
    }
}
