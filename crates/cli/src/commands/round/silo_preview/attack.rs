//! The attack of a curious member on this silo's ballot, and what it would find in ballots of less or more text.
//!
//! Beside it stands what needs no ballot: guessing the commonest tokens of public text. Ours is that of the bundled texts
//! (novels and speeches, in the public domain), cut into the model's own tokens; for another language than English it is a
//! weak baseline, which makes the attack look stronger than it is beside it, never weaker.

use std::collections::BTreeSet;

use fedprune_checkpoint::Checkpoint;
use fedprune_federation::Round;
use fedprune_federation::round::{Ballots, DataFree};
use fedprune_mask::Tap;
use fedprune_mask::ballot::Ballot;
use fedprune_model::{Bos, Sampling, Tokenizer, WindowRequest, Windows, calibration_windows};
use fedprune_prune::disclosure::{
    Apart, DisclosureError, Frequencies, ReadFrom, Recovery, Score, TextVote, norms_of_text, recover, recover_from_text,
};
use serde::{Serialize, Serializer};

use crate::args::RoundPreviewOptions;
use crate::commands::demo::bundled::public_text;
use crate::output::{count, percent, table, tame};
use crate::progress::Meter;

/// Smallest text that the table of sizes has, in tokens, and by how much each next is larger.
const FIRST_SIZE: usize = 64;
const SIZE_FACTOR: usize = 8;
/// Largest, in tokens: what comes after shows no new picture, and tokenising takes memory.
const LARGEST_SIZE: usize = 1 << 18;
/// Longest word that is shown, in characters.
const MAX_WORD_CHARS: usize = 32;

/// What the attack needs besides the ballot.
pub(super) struct Inputs<'a> {
    pub options: &'a RoundPreviewOptions,
    pub round: &'a Round,
    pub checkpoint: &'a Checkpoint,
    pub windows: Option<&'a Windows>,
}

/// What it came to.
#[derive(Debug, Serialize)]
pub(super) struct Attack {
    pub outcome: Outcome,
    /// The same attack on ballots of the first tokens of the silo's documents.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<SizeReport>,
    /// Whether the round withholds block 0's q, k and v.
    pub withheld: bool,
    /// What a policy or a reader should know besides.
    pub notes: Vec<&'static str>,
}

/// Whether and how the ballot was attacked.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// It was.
    Attacked {
        /// What the norms were read from.
        read_from: &'static str,
        /// Where they were worked out from masks, how far from those of the text.
        #[serde(skip_serializing_if = "Option::is_none")]
        norms_off: Option<Off>,
        /// Of each channel's norm squared, what stays unexplained, root mean square.
        unexplained: f64,
        #[serde(flatten)]
        score: ScoreReport,
        /// Best guesses first; absent when words are hidden.
        #[serde(skip_serializing_if = "Option::is_none")]
        words: Option<Vec<WordReport>>,
    },
    /// The vote that it reads is the same whatever the text.
    Withheld,
    /// The pruner looks at no text.
    NoText,
    /// This attack does not read such masks.
    Unread { why: String },
}

/// Shares of a norm, from 0.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Off {
    pub median: f64,
    pub largest: f64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct ScoreReport(pub Score);

impl Serialize for ScoreReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let Score { tokens, distinct, recovered, baseline, beyond } = self.0;
        let mut fields = serializer.serialize_struct("Score", 5)?;
        fields.serialize_field("tokens", &tokens)?;
        fields.serialize_field("distinct", &distinct)?;
        fields.serialize_field("recovered", &recovered)?;
        fields.serialize_field("baseline", &baseline)?;
        fields.serialize_field("beyond", &beyond)?;
        fields.end()
    }
}

/// A guess.
#[derive(Debug, Serialize)]
pub(super) struct WordReport {
    pub word: String,
    /// Which part of the text it is held to be.
    pub share: f64,
    /// Whether the text has it.
    pub right: bool,
    /// Whether guessing common words has it too.
    pub common: bool,
}

/// A ballot of less or more text.
#[derive(Debug, Serialize)]
pub(super) struct SizeReport {
    #[serde(flatten)]
    pub score: ScoreReport,
}

/// Attacks the ballot.
///
/// # Errors
/// What is wrong with the model or the text.
pub(super) fn run(inputs: &Inputs<'_>, ballot: &Ballot<'_>, meter: &Meter) -> anyhow::Result<Attack> {
    let terms = inputs.round.terms();
    let withheld = terms.data_free.contains(&DataFree { block: 0, tap: Tap::AttentionInput });
    let mut attack = Attack { outcome: Outcome::NoText, sizes: Vec::new(), withheld, notes: Vec::new() };
    let Some(windows) = inputs.windows else { return Ok(attack) };
    attack.notes.push(
        "A better attack may find more, later blocks tell about the text, too, and what is sent cannot be taken back.",
    );
    let tokenizer = Tokenizer::open(inputs.checkpoint.dir())?;
    let mut public = Vec::new();
    for text in public_text() {
        public.extend(tokenizer.encode(text)?);
    }
    let frequencies = Frequencies::of(inputs.checkpoint.config().vocab_size, &public);
    let text = windows.windows.concat();
    if withheld {
        attack.outcome = Outcome::Withheld;
    } else {
        let task = meter.task("attacking the ballot", 100, false);
        match recover(inputs.checkpoint, ballot, &mut |pass| task.at(pass.min(99) as u64, "")) {
            Ok(recovery) => {
                let off = if recovery.read_from == ReadFrom::Masks { off(inputs, &recovery, windows)? } else { None };
                attack.outcome = attacked(&recovery, off, &text, &frequencies, &tokenizer, inputs.options);
            }
            Err(error @ DisclosureError::Unread(_)) => {
                attack.outcome = Outcome::Unread { why: error.to_string() };
                return Ok(attack);
            }
            Err(error) => return Err(error.into()),
        }
    }
    attack.sizes = sizes(inputs, &tokenizer, &frequencies, ballot, meter)?;
    Ok(attack)
}

/// How far the norms that masks gave away are from those of the text.
fn off(inputs: &Inputs<'_>, recovery: &Recovery, windows: &Windows) -> anyhow::Result<Option<Off>> {
    let sequences = windows.windows.len() as u64;
    let truth = norms_of_text(inputs.checkpoint, &windows.windows.concat(), sequences)?.to_f64();
    let apart = Apart::of(&recovery.norms, &truth);
    Ok(apart.map(|Apart { median, largest }| Off { median, largest }))
}

fn attacked(
    recovery: &Recovery,
    norms_off: Option<Off>,
    text: &[u32],
    frequencies: &Frequencies,
    tokenizer: &Tokenizer,
    options: &RoundPreviewOptions,
) -> Outcome {
    let score = Score::of(&recovery.guesses, text, frequencies);
    let present: BTreeSet<u32> = text.iter().copied().collect();
    let common: BTreeSet<u32> = frequencies.first(score.distinct).iter().copied().collect();
    let words = (!options.hide_words).then(|| {
        let shown = recovery.guesses.iter().take(options.words.min(score.distinct));
        shown
            .map(|guess| WordReport {
                word: word(tokenizer, guess.token),
                share: guess.share,
                right: present.contains(&guess.token),
                common: common.contains(&guess.token),
            })
            .collect()
    });
    let read_from = match recovery.read_from {
        ReadFrom::Norms => "norms",
        ReadFrom::Masks => "masks",
    };
    Outcome::Attacked { read_from, norms_off, unexplained: recovery.residual, score: ScoreReport(score), words }
}

/// A token for people: a hyphen where it continues a word, its number where it is no text.
fn word(tokenizer: &Tokenizer, token: u32) -> String {
    let Some(text) = tokenizer.text_of(token) else { return format!("#{token}") };
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return format!("white space #{token}");
    }
    let continues = !text.starts_with(char::is_whitespace) && trimmed.chars().all(char::is_alphabetic);
    let mut shown: String = trimmed.chars().take(MAX_WORD_CHARS).collect();
    if continues {
        shown.insert(0, '-');
    }
    tame(&shown)
}

/// The attack on ballots of the first 64, 512, 4,096 … tokens.
fn sizes(
    inputs: &Inputs<'_>,
    tokenizer: &Tokenizer,
    frequencies: &Frequencies,
    ballot: &Ballot<'_>,
    meter: &Meter,
) -> anyhow::Result<Vec<SizeReport>> {
    let terms = inputs.round.terms();
    let request = WindowRequest {
        samples: LARGEST_SIZE / FIRST_SIZE,
        minimum_samples: 1,
        bos: Bos::None,
        sequence_tokens: FIRST_SIZE,
        sampling: Sampling::Sequential,
        field: inputs.options.field.clone(),
    };
    // files that are too short for one window of 64 tokens have no sizes to compare
    let Ok(all) = calibration_windows(inputs.checkpoint.config(), tokenizer, &inputs.options.data, &request) else {
        return Ok(Vec::new());
    };
    let all = all.windows.concat();
    let mut asked: Vec<usize> = std::iter::successors(Some(FIRST_SIZE), |size| size.checked_mul(SIZE_FACTOR))
        .take_while(|size| *size < all.len())
        .collect();
    asked.push(all.len());
    let masks_of = (terms.ballots == Ballots::MaskOnly).then(|| (terms.local_group, ballot.sparsity()));
    let task = meter.task("attacking ballots of other sizes", asked.len() as u64, false);
    let mut reports = Vec::new();
    for (done, size) in asked.into_iter().enumerate() {
        let text = &all[..size];
        let vote = TextVote { tokens: text, sequences: 1, pruner: terms.pruner, masks_of };
        let recovery = recover_from_text(inputs.checkpoint, &vote, &mut |_| {})?;
        reports.push(SizeReport { score: ScoreReport(Score::of(&recovery.guesses, text, frequencies)) });
        task.at(done as u64 + 1, format!("{} tokens", count(size as u64)));
    }
    Ok(reports)
}

impl Attack {
    /// How many tokens were recovered from the ballot, if it was attacked. Of a vote that is withheld, none are: the
    /// policy's rule is about what this attack finds.
    pub fn score(&self) -> Option<&Score> {
        match &self.outcome {
            Outcome::Attacked { score, .. } => Some(&score.0),
            _ => None,
        }
    }

    /// Whether it cannot be made on such a ballot.
    pub fn is_unread(&self) -> bool {
        matches!(self.outcome, Outcome::Unread { .. })
    }

    /// The table of sizes.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let row = |report: &SizeReport| {
            let Score { tokens, distinct, recovered, baseline, beyond } = report.score.0;
            let share = |number: usize| percent(number as u64, distinct as u64);
            vec![
                count(tokens),
                count(distinct as u64),
                format!("{recovered} ({})", share(recovered)),
                format!("{baseline} ({})", share(baseline)),
                beyond.to_string(),
            ]
        };
        self.sizes.iter().map(row).collect()
    }

    pub fn text(&self) -> String {
        let mut text = "what this very ballot reveals\n".to_owned();
        match &self.outcome {
            Outcome::NoText => text.push_str("  Nothing: the round's pruner looks at no text.\n"),
            Outcome::Withheld => text.push_str(
                "  Block 0's q, k and v are pruned without data: their votes are the same whatever the text, and this \
                 attack has\n  nothing to read. Later inputs depend on the text still.\n",
            ),
            Outcome::Unread { why } => text.push_str(&format!("  Not known: {}.\n", tame(why))),
            Outcome::Attacked { read_from, norms_off, unexplained, score: ScoreReport(score), words } => {
                text.push_str(&format!(
                    "  From its {read_from} of block 0, least squares over the vocabulary recovers {} of the {} different tokens of \
                     this text\n  in as many guesses; guessing the commonest tokens, without any ballot, {}. \
                     {} of those recovered are not among these.\n  Unexplained: {:.2} % of a channel.\n",
                    score.recovered,
                    score.distinct,
                    score.baseline,
                    score.beyond,
                    unexplained * 100.0
                ));
                if let Some(Off { median, largest }) = norms_off {
                    text.push_str(&format!(
                        "  The strengths of the channels, worked out from the masks alone, are off by {:.1} % in the middle and \
                         {:.1} % at the most.\n",
                        median * 100.0,
                        largest * 100.0
                    ));
                }
                match words {
                    None => text.push_str("  (The words are hidden.)\n"),
                    Some(words) => {
                        text.push_str("  Best guesses, those that are wrong in parentheses:\n");
                        let shown: Vec<String> = words
                            .iter()
                            .map(|word| if word.right { word.word.clone() } else { format!("({})", word.word) })
                            .collect();
                        for line in wrapped(&shown) {
                            text.push_str(&format!("    {line}\n"));
                        }
                    }
                }
            }
        }
        if !self.sizes.is_empty() {
            let when = if self.withheld { " if the round did not withhold that vote" } else { "" };
            text.push_str(&format!("\nwhat ballots of less or more of this text would reveal{when}\n"));
            let header = ["tokens", "different", "recovered", "by frequency alone", "recovered beyond it"];
            text.push_str(&super::indented(&table(&header, &self.rows())));
            if !self.withheld {
                text.push_str(
                    "  With `data_free = [\"block0.qkv\"]` in the round, the vote that this reads is the same for every text.\n",
                );
            }
        }
        for note in &self.notes {
            text.push_str(&format!("  {note}\n"));
        }
        text
    }
}

/// Words in lines of about a hundred characters.
fn wrapped(words: &[String]) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words {
        let full = lines.last().is_some_and(|line| line.chars().count() + word.chars().count() > 100);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(word);
        }
    }
    lines
}
