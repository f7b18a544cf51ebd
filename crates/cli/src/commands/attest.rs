//! `fedprune attest merge` and `verify`: attestations as anybody reads them. What makes them is `attest_sign`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_attest::envelope::ENVELOPE_LIMIT;
use fedprune_attest::model::BUNDLE_LIMIT;
use fedprune_attest::{AttestationPublicKey, Envelope, FolderFiles, ModelError, ModelSignature, Statement, files};
use fedprune_federation::{Consortium, consortium};
use serde::Serialize;

use crate::args::{AttestMergeOptions, AttestVerifyOptions};
use crate::files::{check_new, create_document, read_small};
use crate::output::{chain, facts, tame};
use crate::progress::Meter;

/// Exit code of what does not hold.
const FAILED: u8 = 12;

/// The answer of `fedprune attest merge`.
#[derive(Debug, Serialize)]
pub struct MergeReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    envelopes: usize,
}

/// The answer of `fedprune attest verify`.
#[derive(Debug, Serialize)]
pub struct AttestReport {
    verdict: &'static str,
    /// Why it is refused.
    why: Option<String>,
    /// What is attested.
    kind: Option<&'static str>,
    /// Names of the members who signed.
    signers: Vec<String>,
    /// What it says.
    says: Vec<(&'static str, String)>,
    /// What was not compared.
    notes: Vec<String>,
}

crate::report!(MergeReport);
crate::report!(AttestReport, exit);

/// Puts the signatures of envelopes of one statement together.
///
/// # Errors
/// When they are of different statements, or a file cannot be read or written.
pub fn merge(options: &AttestMergeOptions) -> anyhow::Result<MergeReport> {
    check_new(&options.out)?;
    let mut merged: Option<Envelope> = None;
    for path in &options.files {
        let unusable = || format!("`{}` cannot be used", path.display());
        let envelope = Envelope::parse(&read_small(path, ENVELOPE_LIMIT)?).with_context(unusable)?;
        match &mut merged {
            Some(merged) => merged.merge(envelope).with_context(unusable)?,
            None => merged = Some(envelope),
        }
    }
    let merged = merged.context("give envelopes to put together")?;
    create_document(&options.out, &merged.to_json()?)?;
    Ok(MergeReport { file: options.out.clone(), envelopes: options.files.len() })
}

/// Checks an attestation; whatever is wrong with it is in the report, and in the exit code.
///
/// # Errors
/// When a file of the auditor's own cannot be read.
pub fn verify(options: &AttestVerifyOptions, meter: &Meter) -> anyhow::Result<AttestReport> {
    let path = &options.consortium;
    let unusable = || format!("`{}` cannot be used", path.display());
    let text = String::from_utf8(read_small(path, consortium::DOCUMENT_LIMIT)?).with_context(unusable)?;
    let consortium = Consortium::parse(&text).with_context(unusable)?;
    let bytes = read_small(&options.file, BUNDLE_LIMIT)?;
    let mut report = AttestReport {
        verdict: "FAILED",
        why: None,
        kind: None,
        signers: Vec::new(),
        says: Vec::new(),
        notes: Vec::new(),
    };
    let refused = match ModelSignature::parse(&bytes) {
        Ok(signature) => model(&signature, options, &consortium, meter, &mut report)?,
        // no bundle: perhaps an envelope
        Err(ModelError::Json(_)) => envelope(&bytes, options, &consortium, meter, &mut report)?,
        Err(error) => Some(anyhow::Error::from(error)),
    };
    match refused {
        Some(error) => report.why = Some(chain(&error)),
        None => report.verdict = "ATTESTED",
    }
    Ok(report)
}

/// Names of the members of these indices.
fn names(consortium: &Consortium, members: &[fedprune_federation::MemberIndex]) -> Vec<String> {
    members.iter().filter_map(|member| consortium.member(*member)).map(|member| member.name.clone()).collect()
}

/// The files of a folder, with progress.
pub(super) fn folder_files(folder: &Path, meter: &Meter) -> anyhow::Result<FolderFiles> {
    // how much there is, only listing it twice would tell
    let task = meter.task(format!("reading {}", folder.display()), 0, true);
    Ok(FolderFiles::read(folder, &task.counter())?)
}

/// Checks a signature of a folder. Returns why it is refused.
fn model(
    signature: &ModelSignature,
    options: &AttestVerifyOptions,
    consortium: &Consortium,
    meter: &Meter,
    report: &mut AttestReport,
) -> anyhow::Result<Option<anyhow::Error>> {
    report.kind = Some("pruned model, OpenSSF Model Signing v1");
    let Some(folder) = &options.pruned else {
        bail!("`{}` is the signature of a folder; give that, too: --pruned DIR", options.file.display());
    };
    let known: Vec<(fedprune_federation::MemberIndex, AttestationPublicKey)> = consortium
        .indices()
        .filter_map(|index| {
            let pem = consortium.member(index)?.attestation_key.as_deref()?;
            let key = AttestationPublicKey::from_pem(pem).ok()?;
            (key.hint().ok()? == signature.hint()).then_some((index, key))
        })
        .collect();
    let (member, key) = match <[_; 1]>::try_from(known) {
        Ok([known]) => known,
        Err(none) if none.is_empty() => {
            return Ok(Some(ModelError::Stranger(signature.hint().chars().take(64).collect()).into()));
        }
        Err(several) => {
            let members: Vec<_> = several.into_iter().map(|(member, _)| member).collect();
            let names = names(consortium, &members).join("`, `");
            return Ok(Some(anyhow::anyhow!(
                "`{names}` all name the key that signed it as theirs, so that it is nobody's: one of them is to renew it"
            )));
        }
    };
    let files = folder_files(folder, meter)?;
    if let Err(error) = signature.verify(&key, &files) {
        return Ok(Some(error.into()));
    }
    report.signers = names(consortium, &[member]);
    report.says = vec![("files", files.files.len().to_string()), ("root (SHA-256)", files.root)];
    Ok(threshold(options, 1, 1))
}

/// Whether enough have signed.
fn threshold(options: &AttestVerifyOptions, signed: usize, default: usize) -> Option<anyhow::Error> {
    let wanted = options.threshold.unwrap_or(default);
    let hint = if options.threshold.is_none() && signed > 0 {
        "; put more signatures together (`attest merge`), or say that fewer will do (`--threshold`)"
    } else {
        ""
    };
    (signed < wanted).then(|| anyhow::anyhow!("{signed} members signed it, and {wanted} are needed{hint}"))
}

/// Checks an envelope. Returns why it is refused.
fn envelope(
    bytes: &[u8],
    options: &AttestVerifyOptions,
    consortium: &Consortium,
    meter: &Meter,
    report: &mut AttestReport,
) -> anyhow::Result<Option<anyhow::Error>> {
    let checked = Envelope::parse(bytes).map_err(anyhow::Error::from).and_then(|envelope| {
        let signers = envelope.signers(consortium)?;
        Ok((Statement::parse(envelope.payload())?, signers))
    });
    let (statement, signers) = match checked {
        Ok(checked) => checked,
        Err(error) => return Ok(Some(error)),
    };
    report.signers = names(consortium, &signers);
    let ballot = match statement.as_ballot() {
        Ok(ballot) => ballot,
        Err(error) => return Ok(Some(error.into())),
    };
    let (found, round, default) = match &ballot {
        Some(ballot) => {
            report.kind = Some("ballot, in-toto statement v1");
            report.says = vec![
                ("member", ballot.member.clone()),
                ("round", ballot.round.to_string()),
                ("height", ballot.height.to_string()),
            ];
            if !report.signers.contains(&ballot.member) {
                let who = report.signers.join("`, `");
                return Ok(Some(anyhow::anyhow!("it is of a ballot of `{}`, and signed by `{who}`", ballot.member)));
            }
            (ballot.consortium, ballot.round, 1)
        }
        None => {
            let claim = match statement.as_result() {
                Ok(claim) => claim,
                Err(error) => return Ok(Some(error.into())),
            };
            report.kind = Some("result of a round, SLSA provenance v1");
            report.says = vec![("round", claim.round.to_string()), ("mask root", claim.mask_root.to_string())];
            (claim.consortium, claim.round, consortium.quorum().q())
        }
    };
    report.says.extend(statement.subject.iter().take(20).map(|subject| {
        let digest = subject.digest.get("sha256").map_or("none", String::as_str);
        ("subject", format!("{} (SHA-256 {digest})", subject.name))
    }));
    if found != consortium.id() {
        return Ok(Some(anyhow::anyhow!("it is of consortium {found}, and {} is meant", consortium.id())));
    }
    if let Some(expected) = options.round_id.filter(|expected| *expected != round) {
        return Ok(Some(anyhow::anyhow!("it is of round {round}, and {expected} is meant")));
    }
    if options.round_id.is_none() {
        report.notes.push("whether this is the round that you mean, --round-id tells".to_owned());
    }
    if let Some(error) = threshold(options, signers.len(), default) {
        return Ok(Some(error));
    }
    let differs = if ballot.is_some() {
        compare_ballot(&statement, options, report)?
    } else {
        compare_folder(&statement, options, meter, report)?
    };
    Ok(differs.map(anyhow::Error::msg))
}

/// What differs between a ballot's file and what is attested of it.
fn compare_ballot(
    statement: &Statement,
    options: &AttestVerifyOptions,
    report: &mut AttestReport,
) -> anyhow::Result<Option<String>> {
    let [subject] = statement.subject.as_slice() else { return Ok(Some("it is not of one ballot".to_owned())) };
    let Some(path) = &options.ballot else {
        report.notes.push("no ballot was given (--ballot) to be compared with it".to_owned());
        return Ok(None);
    };
    let (blake3, sha256) = files::digests(path)?;
    let found = [("blake3".to_owned(), blake3.to_string()), ("sha256".to_owned(), sha256)];
    Ok((subject.digest != found.into()).then(|| format!("`{}` is another ballot, {blake3}", path.display())))
}

/// What differs between a folder and what is attested of it.
fn compare_folder(
    statement: &Statement,
    options: &AttestVerifyOptions,
    meter: &Meter,
    report: &mut AttestReport,
) -> anyhow::Result<Option<String>> {
    let Some(folder) = &options.pruned else {
        report.notes.push("no folder was given (--pruned) to be compared with it".to_owned());
        return Ok(None);
    };
    Ok(statement.differs_from(&folder_files(folder, meter)?.files))
}

impl MergeReport {
    fn text(&self) -> String {
        format!("{}  the signatures of {} envelopes", tame(&self.file.display().to_string()), self.envelopes)
    }
}

impl AttestReport {
    fn text(&self) -> String {
        let mut rows: Vec<(&str, String)> = Vec::new();
        if let Some(kind) = self.kind {
            rows.push(("attests", kind.to_owned()));
        }
        if !self.signers.is_empty() {
            rows.push(("signed by", self.signers.join(", ")));
        }
        rows.extend(self.says.iter().map(|(name, value)| (*name, value.clone())));
        rows.extend(self.notes.iter().map(|note| ("note", note.clone())));
        let last = match &self.why {
            Some(why) => format!("FAILED: {}", tame(why)),
            None => "ATTESTED: every signature in it verifies, and what was given to be compared is what was attested"
                .to_owned(),
        };
        format!("{}{last}", facts(&rows))
    }

    fn exit(&self) -> u8 {
        if self.why.is_some() { FAILED } else { 0 }
    }
}
