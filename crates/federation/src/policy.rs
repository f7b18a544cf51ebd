//! What a site allows: `policy.toml`, written by whoever answers for its data, and asked before anything leaves.
//!
//! ```toml
//! # every key is optional; what is not said is allowed
//! allowed_consortiums = ["<consortium id>"]
//! allowed_pruners = ["wanda"]
//! allowed_local_groups = ["row", "layer"]
//! allowed_global_groups = ["layer"]
//! allowed_strategies = ["one-shot"]
//! allowed_scalings = ["none"]
//! allowed_ballots = ["mask-only"]                 # the round's `ballots`
//! allowed_encodings = ["column-thresholds"]       # what the ballot really holds: norms, bitmap, column-thresholds
//! required_data_free = ["block0.qkv"]             # each of them in the round's `data_free`
//! minimum_calibration_tokens = 65536              # the round's own minimum, and the text's tokens
//! minimum_members = 4
//! minimum_ballots = 3
//! forbid_unequal_weights = true
//! maximum_ballot_bytes = 1000000
//! maximum_recovered_percent = 25                  # of the text's different tokens, by the preview
//! require_approval = true                         # of the very ballot, after a preview, signed
//! require_person = true                           # the approval says who, and as what
//! ```
//!
//! A policy only refuses; it changes no round and no ballot. Rules are functions of what they are asked about: no I/O.

use std::fmt;
use std::path::PathBuf;

use fedprune_mask::ballot::Encoding;
use fedprune_mask::{Digest, Group, Pruner};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::approval::Approval;
use crate::consortium::Consortium;
use crate::document::{self, DocumentError, harmless};
use crate::ids::ConsortiumId;
use crate::round::{Ballots, DataFree, Scaling, Strategy, Terms};

/// Most bytes of a policy.
pub const DOCUMENT_LIMIT: usize = 64 << 10;
/// Most values of a rule that a message repeats.
const MAX_LISTED: usize = 8;

/// An encoding by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum EncodingName {
    Norms,
    Bitmap,
    ColumnThresholds,
}

impl EncodingName {
    fn of(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Norms => Self::Norms,
            Encoding::Bitmap => Self::Bitmap,
            Encoding::ColumnThresholds => Self::ColumnThresholds,
        }
    }
}

impl fmt::Display for EncodingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Norms => "norms",
            Self::Bitmap => "bitmap",
            Self::ColumnThresholds => "column-thresholds",
        })
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    allowed_consortiums: Option<Spanned<Vec<ConsortiumId>>>,
    allowed_pruners: Option<Spanned<Vec<Pruner>>>,
    allowed_local_groups: Option<Spanned<Vec<Group>>>,
    allowed_global_groups: Option<Spanned<Vec<Group>>>,
    allowed_strategies: Option<Spanned<Vec<Strategy>>>,
    allowed_scalings: Option<Spanned<Vec<Scaling>>>,
    allowed_ballots: Option<Spanned<Vec<Ballots>>>,
    allowed_encodings: Option<Spanned<Vec<EncodingName>>>,
    required_data_free: Option<Spanned<Vec<DataFree>>>,
    minimum_calibration_tokens: Option<Spanned<u64>>,
    minimum_members: Option<Spanned<u64>>,
    minimum_ballots: Option<Spanned<u64>>,
    forbid_unequal_weights: Option<Spanned<bool>>,
    maximum_ballot_bytes: Option<Spanned<u64>>,
    maximum_recovered_percent: Option<Spanned<u8>>,
    require_approval: Option<Spanned<bool>>,
    require_person: Option<Spanned<bool>>,
}

/// What a site allows.
#[derive(Debug, Clone)]
pub struct Policy {
    rules: Document,
    digest: Digest,
    /// Byte offsets at which lines begin, but the first.
    lines: Vec<usize>,
}

/// A rule that says no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The key of the rule.
    pub rule: &'static str,
    /// Where it stands, from 1; 0 for what no line of a policy says.
    pub line: usize,
    /// What it says.
    pub allowed: String,
    /// What it was asked about.
    pub found: String,
}

/// Refused by policy: the program exits with 4.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused by policy `{}`: {}", .file.display(), listed(.refused))]
pub struct PolicyRefusal {
    /// The policy.
    pub file: PathBuf,
    /// Every rule that says no; never empty.
    pub refused: Vec<Refused>,
}

fn listed(refused: &[Refused]) -> String {
    let one = |refused: &Refused| {
        let line = if refused.line > 0 { format!(" (line {})", refused.line) } else { String::new() };
        format!("`{}`{line} {}, and {}", refused.rule, refused.allowed, refused.found)
    };
    refused.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// What the program knows of a ballot.
#[derive(Debug, Clone, Copy)]
pub struct BallotFacts<'a> {
    /// Its size.
    pub bytes: u64,
    /// How its taps are encoded.
    pub encodings: &'a [Encoding],
    /// Tokens that it was made from; none for a pruner that looks at no text.
    pub calibration_tokens: Option<u64>,
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`DocumentError`] naming the line, for keys that there are not, too.
    pub fn parse(text: &str) -> Result<Self, DocumentError> {
        let rules: Document = document::read(text, DOCUMENT_LIMIT)?;
        let lines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at);
        Ok(Self { rules, digest: Digest::of(text.as_bytes()), lines: lines.collect() })
    }

    /// BLAKE3 of the text.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether a ballot needs a signed approval that names it.
    pub fn requires_approval(&self) -> bool {
        self.rules.require_approval.as_ref().is_some_and(|rule| *rule.get_ref())
    }

    /// Whether the preview must have been made, so that it is known what it says.
    pub fn requires_preview(&self) -> bool {
        self.requires_approval() || self.rules.maximum_recovered_percent.is_some()
    }

    /// What to say when the preview that [`Policy::requires_preview`] asks for was not made.
    pub fn missing_preview(&self) -> Vec<Refused> {
        self.unseen("no preview was made")
    }

    /// What to say when the attack of the preview could not read the ballot, which does not make that safe.
    pub fn unread(&self) -> Vec<Refused> {
        let mut asked = Asked { policy: self, refused: Vec::new() };
        if let Some(rule) = &self.rules.maximum_recovered_percent {
            let found = "the attack of the preview cannot read such a ballot, which does not make it safe".to_owned();
            asked.refuse("maximum_recovered_percent", rule, format!("allows {} %", rule.get_ref()), found);
        }
        asked.refused
    }

    /// Rules about what a preview shows, where there is nothing to show.
    fn unseen(&self, why: &str) -> Vec<Refused> {
        let mut asked = Asked { policy: self, refused: Vec::new() };
        let found = || why.to_owned();
        if let Some(rule) = &self.rules.maximum_recovered_percent {
            asked.refuse("maximum_recovered_percent", rule, format!("allows {} %", rule.get_ref()), found());
        }
        if let Some(rule) = self.rules.require_approval.as_ref().filter(|rule| *rule.get_ref()) {
            asked.refuse("require_approval", rule, "requires a signed approval of the very ballot".to_owned(), found());
        }
        asked.refused
    }

    /// Rules about a round that say no.
    pub fn check_round(&self, terms: &Terms, consortium: &Consortium) -> Vec<Refused> {
        let rules = &self.rules;
        let mut asked = Asked { policy: self, refused: Vec::new() };
        asked.among("allowed_consortiums", &rules.allowed_consortiums, &terms.consortium, "the round is of consortium");
        asked.among("allowed_pruners", &rules.allowed_pruners, &terms.pruner, "the round's `pruner` is");
        asked.among("allowed_local_groups", &rules.allowed_local_groups, &terms.local_group, "its `local_group` is");
        asked.among(
            "allowed_global_groups",
            &rules.allowed_global_groups,
            &terms.global_group,
            "its `global_group` is",
        );
        asked.named("allowed_strategies", &rules.allowed_strategies, terms.strategy, "its `strategy` is");
        asked.named("allowed_scalings", &rules.allowed_scalings, terms.scaling, "its `scaling` is");
        asked.named("allowed_ballots", &rules.allowed_ballots, terms.ballots, "its `ballots` is");
        if let Some(rule) = &rules.required_data_free {
            let missing: Vec<DataFree> =
                rule.get_ref().iter().filter(|named| !terms.data_free.contains(named)).copied().collect();
            // a pruner that looks at no text anywhere prunes these without data, too
            if !missing.is_empty() && terms.pruner.scorer().uses_norms() {
                let found = format!("the round's `data_free` lacks {}", joined(&missing));
                asked.refuse("required_data_free", rule, format!("requires {}", joined(rule.get_ref())), found);
            }
        }
        if let (Some(rule), Some(calibration)) = (&rules.minimum_calibration_tokens, terms.calibration)
            && calibration.minimum_calibration_tokens < *rule.get_ref()
        {
            let found =
                format!("the round's `minimum_calibration_tokens` is {}", calibration.minimum_calibration_tokens);
            asked.refuse("minimum_calibration_tokens", rule, format!("requires {}", rule.get_ref()), found);
        }
        if terms.strategy == Strategy::Iterative && self.requires_preview() {
            // later ballots depend on what is agreed on before them: nobody can have seen them
            asked
                .refused
                .extend(self.unseen("the round is iterative, and only the ballot of its first block can be seen"));
        }
        let members = consortium.members().len() as u64;
        asked.at_least("minimum_members", &rules.minimum_members, members, "members of the consortium");
        asked.at_least(
            "minimum_ballots",
            &rules.minimum_ballots,
            u64::from(terms.minimum_ballots),
            "as the round's `minimum_ballots`",
        );
        if let Some(rule) = &rules.forbid_unequal_weights
            && *rule.get_ref()
            && terms.tally_weights.array_windows().any(|[a, b]| a != b)
        {
            let found = format!("the round's weights are {}", joined(&terms.tally_weights));
            asked.refuse("forbid_unequal_weights", rule, "forbids tally weights that differ".to_owned(), found);
        }
        asked.refused
    }

    /// Rules about a ballot that say no.
    pub fn check_ballot(&self, ballot: BallotFacts<'_>) -> Vec<Refused> {
        let rules = &self.rules;
        let mut asked = Asked { policy: self, refused: Vec::new() };
        for encoding in [Encoding::Norms, Encoding::Bitmap, Encoding::ColumnThresholds] {
            if ballot.encodings.contains(&encoding) {
                let name = EncodingName::of(encoding);
                asked.among("allowed_encodings", &rules.allowed_encodings, &name, "the ballot holds");
            }
        }
        if let Some(rule) = &rules.maximum_ballot_bytes
            && ballot.bytes > *rule.get_ref()
        {
            let found = format!("the ballot has {}", ballot.bytes);
            asked.refuse("maximum_ballot_bytes", rule, format!("allows {}", rule.get_ref()), found);
        }
        if let (Some(rule), Some(tokens)) = (&rules.minimum_calibration_tokens, ballot.calibration_tokens)
            && tokens < *rule.get_ref()
        {
            let found = format!("the ballot was made from {tokens}");
            asked.refuse("minimum_calibration_tokens", rule, format!("requires {}", rule.get_ref()), found);
        }
        asked.refused
    }

    /// Whether the preview found too much: `recovered` of `distinct` tokens.
    pub fn check_recovered(&self, recovered: u64, distinct: u64) -> Vec<Refused> {
        let mut asked = Asked { policy: self, refused: Vec::new() };
        if let Some(rule) = &self.rules.maximum_recovered_percent
            && u128::from(recovered).saturating_mul(100)
                > u128::from(distinct).saturating_mul(u128::from(*rule.get_ref()))
        {
            let found = format!("the preview recovered {recovered} of {distinct} different tokens");
            asked.refuse("maximum_recovered_percent", rule, format!("allows {} %", rule.get_ref()), found);
        }
        asked.refused
    }

    /// Rules about the approval that say no; `ballot` is what is about to be sent, where that is known.
    pub fn check_approval(&self, approval: Option<&Approval>, ballot: Option<Digest>) -> Vec<Refused> {
        let rules = &self.rules;
        let mut asked = Asked { policy: self, refused: Vec::new() };
        if let Some(rule) = &rules.require_approval
            && *rule.get_ref()
        {
            let found = match (approval.map(|approval| approval.ballot), ballot) {
                (None, _) => Some("there is none".to_owned()),
                (Some(None), _) => Some("the approval names no ballot".to_owned()),
                (Some(Some(named)), Some(ballot)) if named != ballot => {
                    Some(format!("it names ballot {}, and ballot {} would be sent", named.short(), ballot.short()))
                }
                _ => None,
            };
            if let Some(found) = found {
                let allowed = "requires a signed approval of the very ballot".to_owned();
                asked.refuse("require_approval", rule, allowed, found);
            }
        }
        if let Some(rule) = &rules.require_person
            && *rule.get_ref()
            && approval.is_none_or(|approval| approval.person.trim().is_empty() || approval.role.trim().is_empty())
        {
            let allowed = "requires an approval that says who approved, and as what".to_owned();
            asked.refuse("require_person", rule, allowed, "it does not".to_owned());
        }
        asked.refused
    }
}

/// Collects what is refused.
struct Asked<'a> {
    policy: &'a Policy,
    refused: Vec<Refused>,
}

impl Asked<'_> {
    fn refuse<T>(&mut self, rule: &'static str, at: &Spanned<T>, allowed: String, found: String) {
        let line = self.policy.lines.partition_point(|end| *end < at.span().start).saturating_add(1);
        self.refused.push(Refused { rule, line, allowed, found });
    }

    fn among<T: PartialEq + fmt::Display>(
        &mut self,
        rule: &'static str,
        allowed: &Option<Spanned<Vec<T>>>,
        value: &T,
        found: &str,
    ) {
        if let Some(at) = allowed
            && !at.get_ref().contains(value)
        {
            self.refuse(rule, at, format!("allows {}", joined(at.get_ref())), format!("{found} {value}"));
        }
    }

    /// As [`Asked::among`], of values that are written as their documents write them.
    fn named<T: PartialEq + Serialize>(
        &mut self,
        rule: &'static str,
        allowed: &Option<Spanned<Vec<T>>>,
        value: T,
        found: &str,
    ) {
        let name = |value: &T| {
            let text = toml::Value::try_from(value).ok().and_then(|value| value.as_str().map(str::to_owned));
            Name(text.unwrap_or_default())
        };
        if let Some(at) = allowed
            && !at.get_ref().contains(&value)
        {
            let names: Vec<Name> = at.get_ref().iter().map(name).collect();
            self.refuse(rule, at, format!("allows {}", joined(&names)), format!("{found} {}", name(&value)));
        }
    }

    fn at_least(&mut self, rule: &'static str, least: &Option<Spanned<u64>>, value: u64, of: &str) {
        if let Some(at) = least
            && value < *at.get_ref()
        {
            self.refuse(rule, at, format!("requires {}", at.get_ref()), format!("there are {value} {of}"));
        }
    }
}

struct Name(String);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn joined<T: fmt::Display>(values: &[T]) -> String {
    let mut text: Vec<String> = values.iter().take(MAX_LISTED).map(|value| harmless(&value.to_string())).collect();
    if values.len() > MAX_LISTED {
        text.push("…".to_owned());
    }
    if text.is_empty() { "nothing".to_owned() } else { text.join(", ") }
}

#[cfg(test)]
mod tests;
