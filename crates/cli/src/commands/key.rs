//! `fedprune key`: the keys by which members sign and their nodes are known.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_federation::{SigningKey, VerifyingKey};
use serde::Serialize;

use super::attestation_key;
use super::home::{exposed, key_path, read_key, wipe};
use super::peer_id::peer_id;
use crate::args::{KeyNewOptions, KeyShowOptions};
use crate::files::{check_new, create_document, create_secret, program, shell};
use crate::output::{facts, tame};
use crate::usage;

/// The answer of `fedprune key`.
#[derive(Debug, Serialize)]
pub struct KeyReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    file: PathBuf,
    /// Whether the file holds the private key too.
    private: bool,
    public_key: VerifyingKey,
    /// What libp2p calls it: `/ip4/…/tcp/4001/p2p/<peer id>`.
    peer_id: String,
    warnings: Vec<String>,
    /// The key made beside it, which signs pruned models.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::output::lossy::optional_path")]
    attestation_key: Option<PathBuf>,
    #[serde(skip)]
    made: bool,
    /// The home whose key it is, where one was named.
    #[serde(skip)]
    home: Option<PathBuf>,
}

crate::report!(KeyReport);

/// Makes a key from the system's randomness and writes it, readable by its owner alone.
///
/// # Errors
/// When the file exists already, or cannot be written.
pub fn new(options: &KeyNewOptions) -> anyhow::Result<KeyReport> {
    let file = file(options.out.as_ref(), options.home.as_deref())?;
    if file.symlink_metadata().is_ok() {
        bail!(
            "`{0}` exists and is not overwritten: a key that is lost cannot be made again; \
             show it: {1} key show {2}, or move it away first",
            file.display(),
            program(),
            shell(&file)
        );
    }
    if let Some(home) = &options.home {
        make_home(home)?;
    }
    check_new(&file)?;
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the system gave no random bytes, without which no key is made")?;
    let key = SigningKey::from_seed(&seed);
    wipe(&mut seed);
    let key = key?;
    create_secret(&file, key.to_pkcs8_pem()?.as_bytes())?;
    let mut report = report(file, key.verifying_key(), true, true);
    if let Some(home) = &options.home {
        attestation_key::make(home)?;
        report.attestation_key = Some(attestation_key::private_path(home));
        report.home = Some(home.clone());
    }
    Ok(report)
}

/// Reads a key.
///
/// # Errors
/// When the file holds no key, or one not to rely on.
pub fn show(options: &KeyShowOptions) -> anyhow::Result<KeyReport> {
    let file = file(options.file.as_ref(), options.home.as_deref())?;
    let (key, private) = read_key(&file)?;
    if let Some(public) = &options.public {
        if public.symlink_metadata().is_ok() {
            bail!("`{}` exists and is not overwritten; choose another --public or remove it", public.display());
        }
        create_document(public, key.to_public_key_pem()?.as_bytes())?;
    }
    Ok(KeyReport { home: options.home.clone(), ..report(file, key, private, false) })
}

/// How a member is written into the consortium's document, with the key by which it signs pruned models if its home has one.
pub(super) fn add_command(key: &VerifyingKey, home: Option<&Path>) -> String {
    let attestation = home.map(attestation_key::public_path).filter(|file| file.exists());
    let attestation = attestation.map(|file| format!(" --attestation-key {}", shell(&file))).unwrap_or_default();
    format!(
        "{} consortium add consortium.toml --name NAME --key {key}{attestation} --address /dns4/HOST/tcp/4001",
        program()
    )
}

/// The file named, or the key in the home folder; the parser admits one of the two.
fn file(file: Option<&PathBuf>, home: Option<&Path>) -> anyhow::Result<PathBuf> {
    match (file, home) {
        (Some(file), _) => Ok(file.clone()),
        (None, Some(home)) => Ok(key_path(home)),
        (None, None) => usage!("give a file, or --home HOME"),
    }
}

/// A folder for one member; others have no business in it.
fn make_home(home: &Path) -> anyhow::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(home).with_context(|| format!("cannot make the folder `{}`", home.display()))
}

fn report(file: PathBuf, public_key: VerifyingKey, private: bool, made: bool) -> KeyReport {
    let warnings = if private { exposed(&file).into_iter().collect() } else { Vec::new() };
    KeyReport {
        private,
        public_key,
        peer_id: peer_id(&public_key),
        warnings,
        attestation_key: None,
        made,
        home: None,
        file,
    }
}

impl KeyReport {
    fn text(&self) -> String {
        let file = self.file.display();
        let kind = match (self.private, self.made) {
            (true, true) => format!("{file} (private: keep a copy in a safe place, and give it to nobody)"),
            (true, false) => format!("{file} (private)"),
            (false, _) => format!("{file} (public)"),
        };
        let mut rows =
            vec![("key", kind), ("public key", self.public_key.to_string()), ("peer id", self.peer_id.clone())];
        if let Some(file) = &self.attestation_key {
            rows.push(attestation_key::row(file));
        }
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {}", tame(warning))).collect();
        format!(
            "{}{warnings}\nnext, whoever writes the consortium's document: {}",
            facts(&rows),
            add_command(&self.public_key, self.home.as_deref()),
        )
    }
}
