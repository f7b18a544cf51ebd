//! `fedprune init`: a member's folder with a key and a file of settings, each explained.

use std::path::PathBuf;

use fedprune_federation::VerifyingKey;
use serde::Serialize;

use super::attestation_key;
use super::home::{exposed, key_path, read_key};
use super::key;
use super::peer_id::peer_id;
use crate::args::{InitOptions, KeyNewOptions};
use crate::files::{absolute, create_secret, program, shell};
use crate::output::{facts, tame};
use crate::settings;

/// The answer of `fedprune init`.
#[derive(Debug, Serialize)]
pub struct InitReport {
    #[serde(serialize_with = "crate::output::lossy::path")]
    home: PathBuf,
    #[serde(serialize_with = "crate::output::lossy::path")]
    config: PathBuf,
    #[serde(serialize_with = "crate::output::lossy::path")]
    key: PathBuf,
    /// Whether the key was there already, and was kept.
    key_kept: bool,
    public_key: VerifyingKey,
    peer_id: String,
    /// Absent in a home of before there were any.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "crate::output::lossy::optional_path")]
    attestation_key: Option<PathBuf>,
    warnings: Vec<String>,
    /// What to type next.
    next: String,
}

crate::report!(InitReport);

/// Makes a home folder with settings and a key; a key that is there already is kept.
///
/// # Errors
/// When there are settings already, or something cannot be written.
pub fn run(options: &InitOptions) -> anyhow::Result<InitReport> {
    let home = &options.home;
    let config = home.join(settings::FILE);
    if config.symlink_metadata().is_ok() {
        anyhow::bail!(
            "`{}` exists and is not overwritten; edit it, see what it does with `{} node run --home {} --show-settings`, \
             or move it away first",
            config.display(),
            program(),
            shell(home)
        );
    }
    let full = |paths: &[PathBuf]| paths.iter().map(|path| absolute(path)).collect::<anyhow::Result<Vec<_>>>();
    let listen = options.listen.iter().map(|address| PathBuf::from(address.to_string())).collect();
    let model: Vec<PathBuf> = options.model.iter().cloned().collect();
    let text = settings::template(&[("model", full(&model)?), ("data", full(&options.data)?), ("listen", listen)])?;
    let key = key_path(home);
    let key_kept = key.symlink_metadata().is_ok();
    if key_kept {
        read_key(&key)?;
    } else {
        key::new(&KeyNewOptions { out: None, home: Some(home.clone()) })?;
    }
    create_secret(&config, text.as_bytes())?;
    let (public_key, _) = read_key(&key)?;
    let next = key::add_command(&public_key, Some(home));
    Ok(InitReport {
        home: home.clone(),
        config,
        warnings: exposed(&key).into_iter().collect(),
        key,
        key_kept,
        public_key,
        peer_id: peer_id(&public_key),
        attestation_key: Some(attestation_key::private_path(home)).filter(|file| file.exists()),
        next,
    })
}

impl InitReport {
    fn text(&self) -> String {
        let kept = match self.key_kept {
            true => "it was there already and was kept; give it to nobody",
            false => "keep a copy in a safe place, and give it to nobody",
        };
        let warnings: String = self.warnings.iter().map(|warning| format!("\nwarning: {}", tame(warning))).collect();
        let mut rows = vec![
            ("home", self.home.display().to_string()),
            ("settings", self.config.display().to_string()),
            ("key", format!("{} (private: {kept})", self.key.display())),
            ("public key", self.public_key.to_string()),
            ("peer id", self.peer_id.clone()),
        ];
        rows.extend(self.attestation_key.as_deref().map(attestation_key::row));
        format!(
            "{}{warnings}\nnext, look at {} and set what is yours; then, whoever writes the consortium's document: {}",
            facts(&rows),
            shell(&self.config),
            self.next,
        )
    }
}
