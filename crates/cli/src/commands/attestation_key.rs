//! `fedprune key attestation`: the P-256 key by which a member signs pruned models, and nothing else.
//!
//! ```text
//! HOME/attestation-key.pem          private, mode 0600, kept as key.pem is
//! HOME/attestation-key.public.pem   what stands in the consortium's document
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_attest::key::MAX_PEM_BYTES;
use fedprune_attest::{AttestationKey, AttestationPublicKey};
use serde::Serialize;

use super::home::{exposed, wipe};
use crate::args::KeyAttestationOptions;
use crate::files::{create_document, create_secret, program, read_small, replace_document, shell};
use crate::output::{facts, tame};

/// The private key.
pub(super) fn private_path(home: &Path) -> PathBuf {
    home.join("attestation-key.pem")
}

/// The public key.
pub(super) fn public_path(home: &Path) -> PathBuf {
    home.join("attestation-key.public.pem")
}

/// What people are told of the private key of a home.
pub(super) fn row(private: &Path) -> (&'static str, String) {
    let (file, public) = (private.display(), private.with_file_name("attestation-key.public.pem"));
    let text = format!("{file} (private: signs pruned models; others get {}, for --attestation-key)", public.display());
    ("attestation key", text)
}

/// The answer of `fedprune key attestation`.
#[derive(Debug, Serialize)]
pub struct AttestationKeyReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    #[serde(serialize_with = "crate::output::lossy::path")]
    public: PathBuf,
    public_key: String,
    made: bool,
    warnings: Vec<String>,
}

crate::report!(AttestationKeyReport);

/// Makes the key if the home has none, writes the public one beside it, and shows it.
///
/// # Errors
/// When there is no such folder, or a key in it that cannot be used.
pub fn run(options: &KeyAttestationOptions) -> anyhow::Result<AttestationKeyReport> {
    let home = &options.home;
    if !home.is_dir() {
        bail!(
            "`{}` is no folder; make the member's key first: {} key new --home {}",
            home.display(),
            program(),
            shell(home)
        );
    }
    let made = make(home)?;
    let public_key = read_private(home)?.public().to_pem()?;
    let public = public_path(home);
    if public.symlink_metadata().is_ok() {
        replace_document(&public, public_key.as_bytes())?;
    } else {
        create_document(&public, public_key.as_bytes())?;
    }
    let file = private_path(home);
    let warnings = exposed(&file).into_iter().collect();
    Ok(AttestationKeyReport { file, public, public_key, made, warnings })
}

/// Makes the key and writes the public one beside it, unless there is one. Returns whether it was made.
pub(super) fn make(home: &Path) -> anyhow::Result<bool> {
    let file = private_path(home);
    if file.symlink_metadata().is_ok() {
        return Ok(false);
    }
    let mut seed = [0; 32];
    let key = loop {
        getrandom::fill(&mut seed).context("the system gave no random bytes, without which no key is made")?;
        // one draw in 2^32 is none
        if let Ok(key) = AttestationKey::from_seed(&seed) {
            break key;
        }
    };
    wipe(&mut seed);
    create_secret(&file, key.to_pem()?.as_ref().as_bytes())?;
    let public = public_path(home);
    if public.symlink_metadata().is_err() {
        create_document(&public, key.public().to_pem()?.as_bytes())?;
    }
    Ok(true)
}

/// Reads the private key of a home.
pub(super) fn read_private(home: &Path) -> anyhow::Result<AttestationKey> {
    let file = private_path(home);
    if file.symlink_metadata().is_err() {
        bail!("`{}` is missing; make it: {} key attestation --home {}", file.display(), program(), shell(home));
    }
    let mut bytes = read_small(&file, MAX_PEM_BYTES)?;
    let unusable = || format!("`{}` cannot be used", file.display());
    let key = match std::str::from_utf8(&bytes) {
        Ok(pem) => AttestationKey::from_pem(pem).with_context(unusable),
        Err(error) => Err(error).with_context(unusable),
    };
    wipe(&mut bytes);
    key
}

/// The public key that a file holds, as PEM for a consortium's document; the file may be that of the private key.
pub(super) fn read_public(file: &Path) -> anyhow::Result<String> {
    let mut bytes = read_small(file, MAX_PEM_BYTES)?;
    let unusable = || format!("`{}` cannot be used", file.display());
    let key = match std::str::from_utf8(&bytes) {
        Ok(pem) if pem.contains("PRIVATE KEY-----") => {
            AttestationKey::from_pem(pem).map(|key| key.public()).with_context(unusable)
        }
        Ok(pem) => AttestationPublicKey::from_pem(pem).with_context(unusable),
        Err(error) => Err(error).with_context(unusable),
    };
    wipe(&mut bytes);
    Ok(key?.to_pem()?)
}

impl AttestationKeyReport {
    fn text(&self) -> String {
        let made = if self.made { "private, new: keep a copy in a safe place" } else { "private" };
        let warnings: String = self.warnings.iter().map(|warning| format!("warning: {}\n", tame(warning))).collect();
        format!(
            "{}{warnings}{}next, whoever writes the consortium's document: {} consortium add consortium.toml … --attestation-key {}",
            facts(&[
                ("attestation key", format!("{} ({made})", self.file.display())),
                ("public key", self.public.display().to_string()),
            ]),
            self.public_key,
            program(),
            shell(&self.public)
        )
    }
}
