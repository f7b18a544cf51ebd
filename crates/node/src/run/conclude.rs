//! The end of a round: the agreed mask, the pruned model, the transcript.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedprune_audit::transcript::{Summary, TranscriptWriter};
use fedprune_federation::machine::Outcome;
use fedprune_federation::round::Scaling;
use fedprune_federation::{BallotHeader, Evidence, Height, Holdings, MaskResult, Proposal, Settled, SignatureChecked};
use fedprune_mask::Digest;

use super::child::run_to_end;
use super::config::{FailPoint, die};
use super::driver::{Parts, sets_of};
use super::error::NodeError;
use super::model::{BallotSet, GlobalMask, RoundModel};
use super::work::Conclusion;
use crate::network::Split;
use crate::storage::blobs::BlobStore;

/// Everything of one height that goes into a transcript.
struct HeightKnown {
    headers: Vec<SignatureChecked<BallotHeader>>,
    holdings: Vec<SignatureChecked<Holdings>>,
    results: Vec<SignatureChecked<MaskResult>>,
    proposals: Vec<(SignatureChecked<Proposal>, Vec<u8>)>,
    settled: Option<Settled>,
    evidence: Vec<Evidence>,
}

/// What is needed to conclude, taken from a node that goes on.
pub(super) struct ConcludeInputs {
    outcome: Outcome,
    model: Arc<RoundModel>,
    blobs: Arc<BlobStore>,
    heights: Vec<HeightKnown>,
    sets: Vec<BallotSet>,
    roots: Vec<Option<Digest>>,
    round_folder: PathBuf,
    transcript: PathBuf,
    out: PathBuf,
    program: PathBuf,
    base: PathBuf,
    summary: Summary,
    fail_at: Option<FailPoint>,
}

impl ConcludeInputs {
    pub(super) fn gather(
        parts: &Parts,
        outcome: Outcome,
        seconds: BTreeMap<String, f64>,
        (sent, received): (Split, Split),
    ) -> Self {
        let machine = &parts.machine;
        let heights = (0..machine.heights()).map(Height).filter_map(|height| machine.known(height));
        let heights = heights.map(|known| HeightKnown {
            headers: known.headers().cloned().collect(),
            holdings: known.holdings().cloned().collect(),
            results: known.results().cloned().collect(),
            proposals: known.proposals().map(|(proposal, bytes)| (proposal.clone(), bytes)).collect(),
            settled: known.settled().cloned(),
            evidence: known.evidence().cloned().collect(),
        });
        Self {
            outcome,
            heights: heights.collect(),
            sets: sets_of(machine),
            roots: (0..machine.heights()).map(|height| machine.mask_root(Height(height))).collect(),
            model: Arc::clone(&parts.model),
            blobs: Arc::clone(&parts.blobs),
            round_folder: parts.folder.folder().to_owned(),
            transcript: parts.folder.transcript(),
            out: parts.config.out.clone().unwrap_or_else(|| parts.folder.folder().join("pruned")),
            program: parts.config.program.clone(),
            base: parts.config.model.clone(),
            summary: Summary {
                written_by: parts.name.clone(),
                program: parts.config.version.to_string(),
                sent_bytes: sent.total(),
                received_bytes: received.total(),
                seconds,
            },
            fail_at: parts.config.fail_at,
        }
    }

    /// Writes the transcript, or adds to it.
    pub(super) fn write_transcript(&self, folder: &Path) -> Result<(), NodeError> {
        let mut writer = TranscriptWriter::create(folder, &self.model.consortium, &self.model.round)?;
        for known in &self.heights {
            for header in &known.headers {
                writer.header(header)?;
            }
            for statement in &known.holdings {
                writer.holdings(statement)?;
            }
            for result in &known.results {
                writer.result(result)?;
            }
            for (proposal, bytes) in &known.proposals {
                writer.proposed(proposal, bytes)?;
            }
            for evidence in &known.evidence {
                writer.evidence(evidence)?;
            }
            if let Some(settled) = &known.settled {
                writer.settled(settled)?;
            }
        }
        for set in &self.sets {
            for (_, body) in &set.ballots {
                // an abandoned round may count ballots that never arrived here
                if let Ok(path) = self.blobs.path(body) {
                    writer.body(*body, &path)?;
                }
            }
        }
        writer.summary(&self.summary)?;
        Ok(())
    }
}

/// Writes the pruned model and the transcript.
pub(super) async fn conclude(inputs: ConcludeInputs) -> Result<Conclusion, NodeError> {
    let inputs = Arc::new(inputs);
    let mut mask_root = None;
    let mut pruned = None;
    if inputs.outcome == Outcome::Agreed {
        let here = Arc::clone(&inputs);
        let agreed = inputs.roots.first().copied().flatten();
        // `apply` derives the mask again and refuses a tally whose root it does not come to
        let mask =
            blocking(move || Ok(here.model.global_mask(&here.blobs, &here.sets, agreed, &here.round_folder)?)).await?;
        mask_root = Some(mask.root);
        if inputs.fail_at == Some(FailPoint::MidApply) {
            let arguments = apply_arguments(&inputs, &mask);
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(60)).await;
                die();
            });
            let _ = run_to_end(&inputs.program, &arguments).await;
            die();
        }
        // a folder there is complete: it gets its name when it is
        if std::fs::symlink_metadata(&inputs.out).is_err() {
            run_to_end(&inputs.program, &apply_arguments(&inputs, &mask)).await.map_err(NodeError::Apply)?;
        }
        pruned = Some(inputs.out.clone());
    }
    let here = Arc::clone(&inputs);
    blocking(move || here.write_transcript(&here.transcript)).await?;
    Ok(Conclusion { mask_root, transcript: inputs.transcript.clone(), pruned })
}

fn apply_arguments(inputs: &ConcludeInputs, mask: &GlobalMask) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> = vec!["--quiet".into(), "apply".into()];
    for (name, path) in [("--model=", &inputs.base), ("--out=", &inputs.out)] {
        let mut word = std::ffi::OsString::from(name);
        word.push(path);
        arguments.push(word);
    }
    let files = [("--mask=", Some(&mask.path)), ("--agreement=", mask.agreement.as_ref())];
    for (name, path) in files.into_iter().filter_map(|(name, path)| Some((name, path?))) {
        let mut word = std::ffi::OsString::from(name);
        word.push(path);
        arguments.push(word);
    }
    if inputs.model.round.terms().scaling == Scaling::Support {
        arguments.push("--scale=support".into());
    }
    arguments
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(job).await.map_err(|error| NodeError::Worker(error.to_string()))?
}
