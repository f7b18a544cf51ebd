//! `fedprune attest ballot`, `result` and `model`: attestations made where a member's keys are.
//!
//! Nothing is attested that was not checked here first: a ballot must be certified, a result recomputed from the ballots,
//! a signing key that of the member in the consortium's document.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_attest::statement::{BallotPredicate, Counted};
use fedprune_attest::{Envelope, ModelSignature, Statement, files};
use fedprune_audit::transcript::body_path;
use fedprune_audit::{Limits, Options, Transcript, Verdict};
use fedprune_checkpoint::Checkpoint;
use fedprune_federation::{Height, Round, SigningKey};
use serde::Serialize;

use super::attest::folder_files;
use super::attestation_key;
use super::home::{Home, exposed, key_path, read_signing_key};
use crate::args::{AttestBallotOptions, AttestModelOptions, AttestResultOptions};
use crate::files::{absolute, check_new, create_document, program, shell};
use crate::output::{facts, tame};
use crate::progress::Meter;

/// The answer of `fedprune attest ballot`, `result` and `model`.
#[derive(Debug, Serialize)]
pub struct SignedReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    /// Who attests.
    member: String,
    /// What.
    attests: String,
    warnings: Vec<String>,
    /// What it does not say.
    notes: Vec<&'static str>,
    #[serde(skip)]
    next: String,
}

crate::report!(SignedReport);

fn signed(home: Home, file: &Path, attests: String, next: String) -> SignedReport {
    let (member, warnings) = (home.name().to_owned(), home.warnings);
    SignedReport { file: file.to_owned(), member, attests, warnings, notes: Vec::new(), next }
}

/// A member's folder and its key.
fn member(home: &Path) -> anyhow::Result<(Home, SigningKey)> {
    Ok((Home::open(home)?, read_signing_key(&key_path(home))?))
}

/// Attests a ballot of this member that counts.
///
/// # Errors
/// When it is not certified in the transcript, or the envelope cannot be written.
pub fn ballot(options: &AttestBallotOptions) -> anyhow::Result<SignedReport> {
    check_new(&options.out)?;
    let (home, key) = member(&options.home)?;
    let limits = Limits::default();
    let proven = fedprune_audit::prove(&options.transcript, home.name(), options.height.map(Height), limits)?;
    let Some(proof) = proven.proof.filter(|proof| proof.consortium().id() == home.consortium.id()) else {
        bail!(
            "no ballot of `{}` counts in `{}` for the consortium of `{}`; nothing is attested",
            home.name(),
            options.transcript.display(),
            options.home.display()
        );
    };
    let [included] = proof.heights() else {
        bail!("`{}` has ballots at {} heights; say which: --height N", home.name(), proof.heights().len());
    };
    let body = included.header().body;
    let path = options.transcript.join(body_path(body));
    let (found, sha256) = files::digests(&path)?;
    if found != body {
        bail!("`{}` is not the ballot that was signed; fedprune audit verify says more", path.display());
    }
    let predicate = BallotPredicate {
        consortium: home.consortium.id(),
        round: proof.round().id(),
        height: included.height(),
        member: home.name().to_owned(),
        ballot_bytes: included.header().body_bytes,
    };
    let statement = Statement::ballot(&predicate, body, &sha256)?;
    create_document(&options.out, &Envelope::sign(statement.to_bytes()?, &key).to_json()?)?;
    let attests = format!("ballot {body} at height {}", included.height());
    let next = format!("attest verify {} --consortium consortium.toml", shell(&options.out));
    Ok(signed(home, &options.out, attests, next))
}

/// Attests what a round came to, once it was recomputed here.
///
/// # Errors
/// When anything in the transcript does not hold, or the pruned folder is not what it comes to.
pub fn result(options: &AttestResultOptions, meter: &Meter) -> anyhow::Result<SignedReport> {
    check_new(&options.out)?;
    let (home, key) = member(&options.home)?;
    let with = Options {
        consortium: Some(home.consortium.id()),
        model: Some(&options.model),
        pruned: Some(&options.pruned),
        ..Options::default()
    };
    let report = super::audit::audited(&options.transcript, &with, meter)?;
    let sound = matches!(report.verdict, Verdict::Verified | Verdict::SelfConsistent);
    let (Some(mask_root), true) = (report.mask_root, sound) else {
        bail!(
            "the result is not attested, since the audit of it says {}: {}",
            report.verdict.name(),
            report.in_words()
        );
    };
    let transcript = Transcript::open(&options.transcript, &Limits::default())?;
    let round =
        Round::decode(&transcript.round()?, home.consortium.consortium()).context("the round cannot be used")?;
    let ballots: Vec<Counted> = report
        .heights
        .iter()
        .flat_map(|height| {
            height.contributors.iter().map(|ballot| (height.height, ballot.member.clone(), ballot.ballot))
        })
        .collect();
    let files = folder_files(&options.pruned, meter)?;
    let statement = Statement::result(home.consortium.consortium(), &round, &ballots, mask_root, &files.files)?;
    create_document(&options.out, &Envelope::sign(statement.to_bytes()?, &key).to_json()?)?;
    let attests = format!("mask root {mask_root} of {} ballots, and {} files", ballots.len(), statement.subject.len());
    let next = format!("attest merge {} OTHERS --out result.dsse.json", shell(&options.out));
    Ok(signed(home, &options.out, attests, next))
}

/// Signs a pruned folder.
///
/// # Errors
/// When there is no attestation key, it is not the one in the consortium's document, the folder is no checkpoint's, or a
/// file cannot be read.
pub fn model(options: &AttestModelOptions, meter: &Meter) -> anyhow::Result<SignedReport> {
    check_new(&options.out)?;
    let (folder, out) = (absolute(&options.folder)?, absolute(&options.out)?);
    if out.starts_with(&folder) {
        bail!("`{}` would be one of the files that are signed; write it outside `{}`", out.display(), folder.display());
    }
    let mut home = Home::open(&options.home)?;
    let key = attestation_key::read_private(&options.home)?;
    home.warnings.extend(exposed(&attestation_key::private_path(&options.home)));
    let listed = home.consortium.member(home.member).and_then(|member| member.attestation_key.clone());
    let listed = listed.and_then(|pem| fedprune_attest::AttestationPublicKey::from_pem(&pem).ok());
    if listed.as_ref() != Some(&key.public()) {
        bail!(
            "the attestation key of `{}` is not the one that the consortium's document has for `{}`, so that nobody could \
             check what it signs; enter it before all sign: {} consortium add … --attestation-key {}",
            options.home.display(),
            home.name(),
            program(),
            shell(&attestation_key::public_path(&options.home))
        );
    }
    // a signature that says "model" under a folder of anything else would be read as one
    Checkpoint::open(&options.folder).with_context(|| {
        let folder = options.folder.display();
        format!("`{folder}` is not signed, since it is no model: give the folder with its config.json and weights")
    })?;
    let files = folder_files(&options.folder, meter)?;
    create_document(&options.out, &ModelSignature::sign(&files, &key)?)?;
    let attests = format!("{} files, root {}", files.files.len(), files.root);
    let next = format!(
        "attest verify {} --consortium consortium.toml --pruned {}",
        shell(&options.out),
        shell(&options.folder)
    );
    let notes =
        vec!["it says who signed which files, and nothing of a round; what is held against one is `attest result`"];
    Ok(SignedReport { notes, ..signed(home, &options.out, attests, next) })
}

impl SignedReport {
    fn text(&self) -> String {
        let warnings: String = self.warnings.iter().map(|warning| format!("warning: {}\n", tame(warning))).collect();
        let notes: String = self.notes.iter().map(|note| format!("note: {note}\n")).collect();
        format!(
            "{}{warnings}{notes}next: {} {}",
            facts(&[
                ("attestation", self.file.display().to_string()),
                ("by", self.member.clone()),
                ("of", self.attests.clone()),
            ]),
            program(),
            self.next
        )
    }
}
