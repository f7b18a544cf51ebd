//! Writing a transcript, file by file, as the round goes on.
//!
//! A file is written whole under another name, synced, and renamed, so that a reader never sees half of one.
//! Everything may be written again: a node that restarts writes what it finds in its log, and what lies there
//! already stays.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use fedprune_federation::holdings::{Reissue, reissue};
use fedprune_federation::statement::STATEMENT_LIMIT;
use fedprune_federation::wire::PREFIX_BYTES;
use fedprune_federation::{
    BallotHeader, Evidence, Height, Holdings, MaskResult, Proposal, Ratified, Received, Round, RoundId, Settled,
    SignatureChecked,
};
use fedprune_mask::Digest;

use super::{
    CONSORTIUM, Class, ROUND, SIGNATURES, SUMMARY, Summary, UNFINISHED, below, body_path, evidence_name, header_name,
    member_name, path_of, proposal_name, settled_path,
};

/// Writes the transcript of one round.
#[derive(Debug)]
pub struct TranscriptWriter {
    root: PathBuf,
    consortium: Ratified,
    round: RoundId,
}

/// Why something is not in the transcript.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The system refused.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder is of something else.
    #[error("`{}` holds something else; give a folder of this round, or one that does not exist", .0.display())]
    Other(PathBuf),
    /// Of another consortium or round than the transcript.
    #[error("the statement is of another round than the transcript in `{}`", .0.display())]
    OtherRound(PathBuf),
    /// The body is not the one named.
    #[error("`{}` is not the ballot {expected}", path.display())]
    Body {
        /// The file given.
        path: PathBuf,
        /// The digest that was named.
        expected: Digest,
    },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> WriteError + '_ {
    |source| WriteError::Io { path: path.to_owned(), source }
}

impl TranscriptWriter {
    /// Starts a transcript in `folder`, which is made if it does not exist, or goes on with one of the same round.
    ///
    /// # Errors
    /// [`WriteError::Other`] for a folder that holds the transcript of another round.
    pub fn create(folder: &Path, consortium: &Ratified, round: &Round) -> Result<Self, WriteError> {
        fs::create_dir_all(folder).map_err(io(folder))?;
        let writer = Self { root: folder.to_owned(), consortium: consortium.clone(), round: round.id() };
        for (name, bytes) in [
            (CONSORTIUM, consortium.consortium().encode()),
            (SIGNATURES, consortium.encode_signatures()),
            (ROUND, round.encode()),
        ] {
            match fs::read(folder.join(name)) {
                Ok(found) if found == bytes => {}
                Ok(_) => return Err(WriteError::Other(folder.join(name))),
                Err(error) if error.kind() == ErrorKind::NotFound => writer.write(name, &bytes)?,
                Err(error) => return Err(io(&folder.join(name))(error)),
            }
        }
        Ok(writer)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.root
    }

    fn check<T: fedprune_federation::Statement>(&self, statement: &SignatureChecked<T>) -> Result<(), WriteError> {
        let here = (self.consortium.id(), self.round);
        if (statement.consortium(), statement.round()) == here {
            Ok(())
        } else {
            Err(WriteError::OtherRound(self.root.clone()))
        }
    }

    /// The signed header of a ballot; of an equivocator all that are given.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn header(&mut self, header: &SignatureChecked<BallotHeader>) -> Result<(), WriteError> {
        self.check(header)?;
        let name = header_name(header.member(), header.content().body);
        self.write_once(&path_of(header.height(), Class::Headers, &name), &header.encode())
    }

    /// A holdings statement; the one that says most stays.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn holdings(&mut self, statement: &SignatureChecked<Holdings>) -> Result<(), WriteError> {
        self.check(statement)?;
        let relative = path_of(statement.height(), Class::Holdings, &member_name(statement.member()));
        let known = self.read(&relative).and_then(|bytes| Received::<Holdings>::decode(&bytes).ok());
        let known = known.and_then(|received| received.check(&self.consortium, self.round).ok());
        match known.map(|known| reissue(&known, statement)) {
            Some(Reissue::Older | Reissue::Conflict) => Ok(()),
            Some(Reissue::Newer | Reissue::Unrelated) | None => self.write(&relative, &statement.encode()),
        }
    }

    /// A signed result; the first one of a member stays.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn result(&mut self, result: &SignatureChecked<MaskResult>) -> Result<(), WriteError> {
        self.check(result)?;
        self.write_once(&path_of(result.height(), Class::Results, &member_name(result.member())), &result.encode())
    }

    /// A proposal with what it rests on, as it came: `bytes` are those of the whole, whether it stands up or not.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn proposed(&mut self, proposal: &SignatureChecked<Proposal>, bytes: &[u8]) -> Result<(), WriteError> {
        self.check(proposal)?;
        let name = proposal_name(proposal.content().view, proposal.member(), Digest::of(bytes));
        self.write_once(&path_of(proposal.height(), Class::Proposals, &name), bytes)
    }

    /// What a height came to; the first one stays, since a later one can differ in who is quoted only.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn settled(&mut self, settled: &Settled) -> Result<(), WriteError> {
        let height: Height = settled.decision().height();
        self.write_once(&settled_path(height), &settled.encode())
    }

    /// Proof of equivocation.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn evidence(&mut self, evidence: &Evidence) -> Result<(), WriteError> {
        let place = evidence.slot().place;
        if (place.consortium, place.round) != (self.consortium.id(), self.round) {
            return Err(WriteError::OtherRound(self.root.clone()));
        }
        let bytes = evidence.encode();
        let name = evidence_name(Digest::of(&bytes));
        self.write_once(&path_of(place.height, Class::Evidence, &name), &bytes)
    }

    /// The body of a ballot that counts, from the file that holds it: linked where the file system can, copied
    /// elsewhere. The file must not be written to afterwards.
    ///
    /// # Errors
    /// [`WriteError::Body`] when a copy turns out to be of another digest; a linked file is not read.
    pub fn body(&mut self, body: Digest, from: &Path) -> Result<(), WriteError> {
        let path = self.prepare(&body_path(body))?;
        if path.symlink_metadata().is_ok() {
            return Ok(());
        }
        // of the file itself: a link to a link would not outlive what it points to
        let from = &from.canonicalize().map_err(io(from))?;
        if fs::hard_link(from, &path).is_ok() {
            return Ok(());
        }
        copy_body(body, from, &path)
    }

    /// Unsigned facts; those written before are replaced.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn summary(&mut self, summary: &Summary) -> Result<(), WriteError> {
        let failed = |error: serde_json::Error| io(&self.root.join(SUMMARY))(error.into());
        let mut bytes = serde_json::to_vec_pretty(summary).map_err(failed)?;
        bytes.push(b'\n');
        self.write(SUMMARY, &bytes)
    }

    /// What was written before under this name, if it is small.
    fn read(&self, relative: &str) -> Option<Vec<u8>> {
        let path = below(&self.root, relative);
        let small = path.symlink_metadata().ok()?.len() <= (STATEMENT_LIMIT + PREFIX_BYTES) as u64;
        small.then(|| fs::read(path).ok()).flatten()
    }

    fn write_once(&self, relative: &str, bytes: &[u8]) -> Result<(), WriteError> {
        if below(&self.root, relative).symlink_metadata().is_ok() { Ok(()) } else { self.write(relative, bytes) }
    }

    fn write(&self, relative: &str, bytes: &[u8]) -> Result<(), WriteError> {
        let path = self.prepare(relative)?;
        let unfinished = path.with_file_name(UNFINISHED);
        let written = File::create(&unfinished).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.and_then(|()| fs::rename(&unfinished, &path)).map_err(io(&path))
    }

    /// Makes the folder of a file.
    fn prepare(&self, relative: &str) -> Result<PathBuf, WriteError> {
        let path = below(&self.root, relative);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io(folder))?;
        }
        Ok(path)
    }
}

/// Copies a body to `path` if it is the one named.
fn copy_body(body: Digest, from: &Path, path: &Path) -> Result<(), WriteError> {
    let unfinished = path.with_file_name(UNFINISHED);
    fs::copy(from, &unfinished).map_err(io(&unfinished))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(&unfinished).map_err(io(&unfinished))?).map_err(io(&unfinished))?;
    if Digest::from(hasher.finalize()) != body {
        fs::remove_file(&unfinished).map_err(io(&unfinished))?;
        return Err(WriteError::Body { path: from.to_owned(), expected: body });
    }
    File::open(&unfinished).and_then(|file| file.sync_all()).map_err(io(&unfinished))?;
    fs::rename(&unfinished, path).map_err(io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_ballot_named_or_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let (from, path) = (folder.path().join("blob"), folder.path().join("ballot"));
        fs::write(&from, b"some ballot").unwrap();
        let error = copy_body(Digest::of(b"another"), &from, &path).unwrap_err();
        assert!(matches!(error, WriteError::Body { .. }), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        copy_body(Digest::of(b"some ballot"), &from, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"some ballot");
    }
}
