//! `fedprune round new` and `show`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_checkpoint::Checkpoint;
use fedprune_federation::consortium::Consortium;
use fedprune_federation::{ConsortiumId, Round, RoundId};
use fedprune_mask::Digest;
use serde::Serialize;

use super::model::{ModelDigests, open};
use super::terms::{TermsReport, few_tokens, typed};
use crate::args::{RoundNewOptions, RoundShowOptions};
use crate::commands::home::{consortium_path, read_consortium, read_round, round_error};
use crate::files::{check_new, create_document, program, shell};
use crate::output::{facts, tame};
use crate::progress::Meter;
use crate::usage;

/// What people read first in a new document.
const PREAMBLE: &str = "\
# What is pruned, how, from what text, and by when. The round's id covers everything below but comments, order and
# spacing: whatever else is changed, it is another round, which all must approve anew.
";

/// The answer of `fedprune round new` and `show`.
#[derive(Debug, Serialize)]
pub struct RoundReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    round: PathBuf,
    id: RoundId,
    consortium: String,
    consortium_id: ConsortiumId,
    terms: TermsReport,
    /// How many agreements; known with the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    heights: Option<u32>,
    /// The model folder that was found to be the round's.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    warnings: Vec<String>,
}

crate::report!(RoundReport);

/// Writes the document of a round on a model.
///
/// # Errors
/// What contradicts itself, the consortium or the model; an output path that exists.
pub fn new(options: &RoundNewOptions, meter: &Meter) -> anyhow::Result<RoundReport> {
    check_new(&options.out)?;
    let (consortium, _) = read_consortium(&options.consortium)?;
    let checkpoint = Checkpoint::open(&options.model)?;
    // once with digests that stand for others, so that mistakes are known before the model is read
    let none = Digest([0; 32]);
    let layout = checkpoint.layout().digest();
    let stand_in = ModelDigests { base_model: none, layout, tokenizer: none, configuration: none };
    let trial = Round::new(typed(options, &consortium, &checkpoint, stand_in)?, &consortium).map_err(round_error)?;
    let heights = trial.heights(checkpoint.layout())?;
    let digests = ModelDigests::of(&checkpoint, meter)?;
    let terms = typed(options, &consortium, &checkpoint, digests)?;
    let round = Round::new(terms, &consortium).map_err(round_error)?;

    let text = format!("{PREAMBLE}\n{}", round.to_toml(&consortium)?);
    let read = Round::parse(&text, &consortium).map_err(round_error).context("the document does not read back")?;
    if read.id() != round.id() {
        bail!("the document does not read back as round {}", round.id());
    }
    create_document(&options.out, text.as_bytes())?;
    let mut report = RoundReport::of(&round, &consortium, &options.out, Some((&options.model, heights)));
    if digests.tokenizer == Digest::of(&[]) {
        report.warnings.push(format!(
            "`{}` has no tokenizer.json: no silo can compute a mask from text, only hand in ballots made elsewhere",
            options.model.display()
        ));
    }
    Ok(report)
}

/// Shows a round, and with a model whether it is the round's.
///
/// # Errors
/// A document that cannot be used, or a model that is another, naming what differs.
pub fn show(options: &RoundShowOptions, meter: &Meter) -> anyhow::Result<RoundReport> {
    let document = match (&options.consortium, &options.home) {
        (Some(document), _) => document.clone(),
        (None, Some(home)) => consortium_path(home),
        (None, None) => usage!("give --consortium FILE, or --home HOME"),
    };
    let (consortium, _) = read_consortium(&document)?;
    let (round, _) = read_round(&options.round, &consortium)?;
    let model = match &options.model {
        Some(model) => Some((model.as_path(), open(model, &round, meter)?.1)),
        None => None,
    };
    Ok(RoundReport::of(&round, &consortium, &options.round, model))
}

impl RoundReport {
    fn of(round: &Round, consortium: &Consortium, path: &Path, model: Option<(&Path, u32)>) -> Self {
        Self {
            round: path.to_owned(),
            id: round.id(),
            consortium: consortium.name().to_owned(),
            consortium_id: consortium.id(),
            terms: TermsReport::of(round.terms(), consortium),
            heights: model.map(|(_, heights)| heights),
            model: model.map(|(model, _)| model.to_string_lossy().into_owned()),
            warnings: warnings(round, consortium),
        }
    }

    fn text(&self) -> String {
        let mut rows = vec![
            ("round", self.id.to_string()),
            ("document", self.round.display().to_string()),
            ("consortium", format!("{} ({})", self.consortium, self.consortium_id.0.short())),
        ];
        rows.extend(self.terms.facts());
        if let (Some(model), Some(heights)) = (&self.model, self.heights) {
            let agreements = if heights == 1 { "one agreement".to_owned() } else { format!("{heights} agreements") };
            rows.push(("model", format!("{model} is the round's; {agreements} on it")));
        }
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {}", tame(warning))).collect();
        let model = self.model.as_ref().map_or_else(|| "MODEL".to_owned(), |model| shell(Path::new(model)));
        format!(
            "{}{warnings}\nnext, each member: {} round approve {} --home HOME --model {model}",
            facts(&rows),
            program(),
            shell(&self.round),
        )
    }
}

/// Everything that people should know before they approve a round.
pub(super) fn warnings(round: &Round, consortium: &Consortium) -> Vec<String> {
    let warnings = round.warnings(consortium).into_iter().map(|warning| warning.to_string());
    warnings.chain(few_tokens(round.terms())).collect()
}
