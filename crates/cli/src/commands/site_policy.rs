//! The site's policy, from its file.

use std::path::{Path, PathBuf};

use fedprune_federation::policy::{DOCUMENT_LIMIT, Policy, PolicyRefusal, Refused};

use super::home::read_text;
use crate::exit::Usage;

/// A policy and where it lies.
#[derive(Debug, Clone)]
pub(super) struct SitePolicy {
    pub path: PathBuf,
    pub policy: Policy,
}

impl SitePolicy {
    /// The policy that was given, or that of the home; none if there is none.
    ///
    /// # Errors
    /// A file that cannot be read or is no policy: whoever wrote one wants it heeded.
    pub fn find(home: &Path, given: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => home.join("policy.toml"),
        };
        if given.is_none() && path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let text = read_text(&path, DOCUMENT_LIMIT)?;
        let policy =
            Policy::parse(&text).map_err(|error| Usage(format!("`{}` is no policy: {error}", path.display())))?;
        Ok(Some(Self { path, policy }))
    }

    /// Nothing refused, or the refusal.
    ///
    /// # Errors
    /// [`PolicyRefusal`].
    pub fn heed(&self, refused: Vec<Refused>) -> Result<(), PolicyRefusal> {
        if refused.is_empty() { Ok(()) } else { Err(PolicyRefusal { file: self.path.clone(), refused }) }
    }
}
