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
use crate::usage;

/// Exit code of what does not hold.
const FAILED: u8 = 12;

/// The answer of `fedprune attest merge`.
#[derive(Debug, Serialize)]
pub struct MergeReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    envelopes: usize,
    /// How many keys signed what was put together.
    signatures: usize,
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
    /// What was compared and is equal.
    compared: Vec<String>,
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
        let envelope = Envelope::parse(&read_given(path, ENVELOPE_LIMIT)?).with_context(unusable)?;
        match &mut merged {
            Some(merged) => merged.merge(envelope).with_context(unusable)?,
            None => merged = Some(envelope),
        }
    }
    let merged = merged.context("give envelopes to put together")?;
    create_document(&options.out, &merged.to_json()?)?;
    let (envelopes, signatures) = (options.files.len(), merged.keys());
    Ok(MergeReport { file: options.out.clone(), envelopes, signatures })
}

/// Checks an attestation; whatever is wrong with it is in the report, and in the exit code.
///
/// # Errors
/// When a file of the auditor's own cannot be read.
pub fn verify(options: &AttestVerifyOptions, meter: &Meter) -> anyhow::Result<AttestReport> {
    if options.threshold == Some(0) {
        usage!("--threshold 0 asks for nobody's signature; give how many members must have signed, one at least");
    }
    let path = &options.consortium;
    let unusable = || format!("`{}` cannot be used", path.display());
    let text = String::from_utf8(read_given(path, consortium::DOCUMENT_LIMIT)?).with_context(unusable)?;
    let consortium = Consortium::parse(&text).with_context(unusable)?;
    let bytes = read_given(&options.file, BUNDLE_LIMIT)?;
    let mut report = AttestReport {
        verdict: "FAILED",
        why: None,
        kind: None,
        signers: Vec::new(),
        says: Vec::new(),
        compared: Vec::new(),
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

/// Reads a file that was named on the command line: what is not there is said so.
fn read_given(path: &Path, limit: usize) -> anyhow::Result<Vec<u8>> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("there is no file `{}`", path.display()),
        Ok(found) if found.is_dir() => bail!("`{}` is a folder; give a file", path.display()),
        _ => read_small(path, limit),
    }
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
    if options.round_id.is_some() {
        usage!(
            "`{}` is the signature of a folder, which says nothing of a round; drop --round-id, and check what \
             `attest result` wrote with it",
            options.file.display()
        );
    }
    if options.ballot.is_some() {
        usage!("`{}` is the signature of a folder, and of no ballot; drop --ballot", options.file.display());
    }
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
    report.compared.push("the folder has the files that were signed, and no others".to_owned());
    report.notes.push("it says who signed which files; of which round they are, only `attest result` says".to_owned());
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
    if options.round_id.is_some() {
        report.compared.push("it is of the round that was named".to_owned());
    } else {
        report.notes.push("whether this is the round that you mean, --round-id tells".to_owned());
    }
    if let Some(error) = threshold(options, signers.len(), default) {
        return Ok(Some(error));
    }
    let idle =
        if ballot.is_some() { ("--pruned", options.pruned.is_some()) } else { ("--ballot", options.ballot.is_some()) };
    if let (option, true) = idle {
        report.notes.push(format!("{option} was not compared: it says nothing of that"));
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
    if subject.digest != found.into() {
        return Ok(Some(format!("`{}` is another ballot, {blake3}", path.display())));
    }
    report.compared.push("the ballot that was given is the one that is attested".to_owned());
    Ok(None)
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
    let differs = statement.differs_from(&folder_files(folder, meter)?.files);
    if differs.is_none() {
        report.compared.push("the folder has the files that are attested, and no others but Markdown".to_owned());
    }
    Ok(differs)
}

impl MergeReport {
    fn text(&self) -> String {
        let signatures = if self.signatures == 1 { "signature" } else { "signatures" };
        let file = tame(&self.file.display().to_string());
        format!("{file}  {} {signatures}, of {} envelopes", self.signatures, self.envelopes)
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
            None if self.compared.is_empty() => {
                "ATTESTED: every signature in it verifies; nothing was compared with what it says".to_owned()
            }
            None => format!("ATTESTED: every signature in it verifies; {}", self.compared.join("; ")),
        };
        format!("{}{last}", facts(&rows))
    }

    fn exit(&self) -> u8 {
        if self.why.is_some() { FAILED } else { 0 }
    }
}
