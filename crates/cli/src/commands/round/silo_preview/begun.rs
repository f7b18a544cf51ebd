//! What a node has already said of a round: what it signed is what counts, whatever is previewed or approved after.

use std::io;

use anyhow::Context;
use fedprune_federation::machine::Record as LogRecord;
use fedprune_federation::{BallotHeader, Height, MemberIndex, Received, Round};
use fedprune_mask::Digest;
use fedprune_node::run::Status;
use fedprune_node::storage::home::RoundFolder;
use fedprune_node::storage::wal::{Disk, Folder, Wal};

use crate::commands::home::Home;
use crate::exit::Refused;

/// How far a round is in this home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands::round) enum Begun {
    /// Nothing is signed.
    NotSigned,
    /// The ballot of height 0 is.
    Signed(Digest),
    /// It came to an end.
    Over,
}

impl Begun {
    /// Reads it from the folder of the round, in which a node may be writing.
    ///
    /// # Errors
    /// A log that cannot be read, of which nobody can tell what was signed.
    pub fn of(home: &Home, round: &Round) -> anyhow::Result<Self> {
        let folder = fedprune_node::storage::Home::inspect(&home.folder)?.round_folder(round.id());
        if is_over(&folder) {
            return Ok(Self::Over);
        }
        let unread = || format!("`{}` does not tell whether a ballot is signed", folder.wal().display());
        Ok(signed(&folder, home.member).with_context(unread)?.map_or(Self::NotSigned, Self::Signed))
    }

    /// Why nothing can be previewed or approved any more.
    pub fn refusal(self, round: &Round) -> Option<Refused> {
        match self {
            Self::NotSigned => None,
            Self::Signed(ballot) => Some(Refused(format!(
                "the ballot of this round is already signed: {ballot}; nothing can take its place, and nothing was written"
            ))),
            Self::Over => Some(Refused(format!(
                "this round is over here, and nothing was written: {}; another needs a round.toml of its own",
                round.id()
            ))),
        }
    }
}

/// Whether a node brought the round to its end: it writes the transcript last.
fn is_over(folder: &RoundFolder) -> bool {
    folder.transcript().is_dir() || Status::read(&folder.status()).is_ok_and(|status| status.transcript.is_some())
}

/// The ballot of height 0 that stands in the log as this member's.
fn signed(folder: &RoundFolder, member: MemberIndex) -> anyhow::Result<Option<Digest>> {
    let path = folder.wal();
    if !path.is_dir() {
        return Ok(None);
    }
    let (mut log, _) = Wal::open_disk(ReadOnly(Folder::new(path)))?;
    for entry in log.entries() {
        // what it heard in its own name is of a copy of this home
        let (LogRecord::Said(message) | LogRecord::Heard(message)) = LogRecord::decode(&entry?.payload)? else {
            continue;
        };
        // what is no ballot header is none of these bytes
        let Ok(header) = Received::<BallotHeader>::decode(&message) else { continue };
        if (header.claimed_member(), header.claimed_height()) == (member, Height(0)) {
            return Ok(Some(header.claimed().body));
        }
    }
    Ok(None)
}

/// A log of which nothing is changed: a torn tail is passed over, and stays for the node.
#[derive(Debug)]
struct ReadOnly(Folder);

impl Disk for ReadOnly {
    fn segments(&mut self) -> io::Result<Vec<(u32, u64)>> {
        self.0.segments()
    }

    fn read_at(&mut self, height: u32, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(height, offset_bytes, buffer)
    }

    fn write_at(&mut self, _: u32, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&mut self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&mut self, _: u32, _: u64) -> io::Result<()> {
        Ok(())
    }
}
