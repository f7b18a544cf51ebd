//! A model into a folder: everything grows in `OUT.fetching`, and gets its name when it is whole.
//!
//! The folder in which it grows says which commit it is of, from its first moment on: a later run goes on with that commit
//! or says what is in the way, and never mixes two.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::client::Hub;
use crate::error::HubError;
use crate::folder::{LOCK, begin, sweep, sync, write};
use crate::listing::{Listing, RemoteFile};
use crate::name::{RepositoryName, Revision};
use crate::need::{Needed, Weights, shards};
use crate::transfer::{Transfer, failed};

/// What is fetched, and into what.
pub struct Request<'a> {
    /// Of the model.
    pub name: &'a RepositoryName,
    /// Which of its revisions.
    pub revision: &'a Revision,
    /// The folder to make, which must not be there; the one that holds it must.
    pub out: &'a Path,
    /// The name of the file in it that says where it came from.
    pub provenance: &'a str,
    /// The program that fetches, as it calls itself.
    pub program: &'a str,
    /// How many bytes a folder's disk has room for, where that can be told.
    pub room: &'a dyn Fn(&Path) -> Option<u64>,
    /// Whether a model with this `config.json` is wanted, asked before anything larger is fetched.
    pub suits: &'a Suits,
}

/// Looks at a `config.json`; says why a model with it is not wanted.
pub type Suits = dyn Fn(&Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Who is told how far things are. A process that ends meanwhile, in whatever way, loses nothing that came.
pub trait Observer {
    /// So many bytes are needed in all, as far as is known.
    fn planned(&mut self, bytes: u64);

    /// So many bytes more are there; those of an earlier run count when they were read again.
    fn advanced(&mut self, bytes: u64);
}

/// Where the files of a folder came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The program that fetched them.
    pub fetched_by: String,
    /// The hub's address.
    pub hub: String,
    /// The model's name there.
    pub repository: String,
    /// The branch, tag or commit that was asked for.
    pub revision: String,
    /// The commit that this was.
    pub commit: String,
    /// What the model's card calls its licence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// BLAKE3 of what the folder holds, by which rounds name a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_digest: Option<String>,
    /// All of them; none while they are on their way.
    pub files: Vec<FetchedFile>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchedFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Of its contents.
    pub sha256: String,
}

/// A model that is whole, and has not got its name yet.
pub struct Ready {
    folder: PathBuf,
    out: PathBuf,
    provenance_file: PathBuf,
    provenance: Provenance,
    resumed_bytes: u64,
    // released by the system, however this process ends
    _lock: File,
}

impl Hub {
    /// Brings a model.
    ///
    /// # Errors
    /// [`HubError`]; what came is kept for another run wherever that makes sense.
    pub fn fetch(&self, request: &Request<'_>, observer: &mut dyn Observer) -> Result<Ready, HubError> {
        let listing = self.listing(request.name, request.revision)?;
        let needed = Needed::of(&listing, request.name)?;
        let provenance = Provenance {
            fetched_by: request.program.to_owned(),
            hub: self.endpoint().to_owned(),
            repository: request.name.to_string(),
            revision: request.revision.to_string(),
            commit: listing.commit.to_string(),
            licence: listing.licence.clone(),
            content_digest: None,
            files: Vec::new(),
        };
        let (folder, lock) = begin(request, &provenance)?;
        let fetching = Fetching { hub: self, request, listing: &listing, folder: &folder };

        let small: Vec<&RemoteFile> = needed.small().collect();
        let resumed = |files: &[&RemoteFile]| files.iter().map(|file| fetching.transfer(file).present()).sum::<u64>();
        observer.planned(total(&small));
        let mut resumed_bytes = resumed(&small);
        fetching.check_room(&small)?;
        let mut files = Vec::new();
        for file in &small {
            files.push(fetching.bring(file, observer)?);
            if file.name == needed.config.name {
                let suits = (request.suits)(&folder.join(&file.name));
                suits.map_err(|why| HubError::Unsuitable { name: request.name.to_string(), why })?;
            }
        }
        let weights = match &needed.weights {
            Weights::Single(file) => vec![file.clone()],
            Weights::Index(index) => {
                let path = folder.join(&index.name);
                shards(&std::fs::read(&path).map_err(failed("read", &path))?, &listing)?
            }
        };
        let weights: Vec<&RemoteFile> = weights.iter().collect();
        let all: Vec<&RemoteFile> = small.iter().chain(&weights).copied().collect();
        // before the room for the weights is looked at, of which that may have some
        sweep(&folder, request.provenance, &all)?;
        observer.planned(total(&all));
        resumed_bytes += resumed(&weights);
        fetching.check_room(&weights)?;
        for file in &weights {
            files.push(fetching.bring(file, observer)?);
        }
        // nothing that came into it meanwhile gets the model's name either
        sweep(&folder, request.provenance, &all)?;
        Ok(Ready {
            provenance_file: folder.join(request.provenance),
            folder,
            out: request.out.to_owned(),
            provenance: Provenance { files, ..provenance },
            resumed_bytes,
            _lock: lock,
        })
    }
}

/// A model on its way.
struct Fetching<'a> {
    hub: &'a Hub,
    request: &'a Request<'a>,
    listing: &'a Listing,
    folder: &'a Path,
}

impl Fetching<'_> {
    fn transfer<'a>(&'a self, file: &'a RemoteFile) -> Transfer<'a> {
        let (name, commit) = (self.request.name, &self.listing.commit);
        Transfer { hub: self.hub, name, commit, file, folder: self.folder }
    }

    fn bring(&self, file: &RemoteFile, observer: &mut dyn Observer) -> Result<FetchedFile, HubError> {
        let sha256 = self.transfer(file).run(observer)?;
        Ok(FetchedFile { name: file.name.clone(), bytes: file.bytes, sha256 })
    }

    /// Whether the disk has room for what is still to come of these.
    fn check_room(&self, files: &[&RemoteFile]) -> Result<(), HubError> {
        let present: u64 = files.iter().map(|file| self.transfer(file).present()).sum();
        let needed = total(files).saturating_sub(present);
        match (self.request.room)(self.folder) {
            Some(available) if available < needed => {
                Err(HubError::NoSpace { folder: self.folder.to_owned(), available, needed })
            }
            _ => Ok(()),
        }
    }
}

fn total(files: &[&RemoteFile]) -> u64 {
    // what is listed is anything: more than there can be is more than there is room for
    files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
}

impl Ready {
    /// Where it lies meanwhile.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Which commit it is.
    pub fn commit(&self) -> &str {
        &self.provenance.commit
    }

    /// How much of it was there from an earlier run.
    pub fn resumed_bytes(&self) -> u64 {
        self.resumed_bytes
    }

    /// Says in the folder where it came from, and gives it its name.
    ///
    /// # Errors
    /// [`HubError::File`].
    pub fn finish(mut self, content_digest: String) -> Result<Provenance, HubError> {
        self.provenance.content_digest = Some(content_digest);
        write(&self.provenance_file, &self.provenance)?;
        sync(&self.folder)?;
        if self.out.symlink_metadata().is_ok() {
            let source = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(HubError::File { action: "create", path: self.out.clone(), source });
        }
        std::fs::rename(&self.folder, &self.out).map_err(failed("create", &self.out))?;
        // not earlier, or another process could begin in between; where it stays, it is hidden, and the model is whole
        let _ = std::fs::remove_file(self.out.join(LOCK));
        match self.out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync(parent)?,
            _ => sync(Path::new("."))?,
        }
        Ok(self.provenance)
    }
}
