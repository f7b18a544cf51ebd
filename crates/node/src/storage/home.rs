//! The home folder of a member.
//!
//! ```text
//! HOME/lock                                    held by the running node, with its process id
//! HOME/key.pem                                 signing key; mode 0600
//! HOME/peer-key.pem                            libp2p key, when it is not the signing key; mode 0600
//! HOME/consortium.toml  consortium.signatures  who may take part, and that they agreed to it; the newest, with its chain
//! HOME/former-keys/<public key>.pem            keys that were renewed, for rounds of the consortiums that had them
//! HOME/rounds/<round id>/round.toml            what the round is
//! HOME/rounds/<round id>/approval.json         that this member's operator approved it
//! HOME/rounds/<round id>/wal/  blobs/  index.redb  status.json  transcript/     what the node makes
//! ```
//!
//! Two nodes on one home would sign two things for one slot, so a node holds a lock (which the system lets go
//! of when the process ends, however it ends). A *copy* of a home has a lock of its own: what guards against
//! that is that a node asks the others for its own statements before it signs.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fedprune_federation::consortium::{ConsortiumError, Draft, NotRatified, RatificationError, Ratified, Whose};
use fedprune_federation::round::{Round, RoundError};
use fedprune_federation::signing::{MAX_PEM_BYTES, SecretKeyPemError};
use fedprune_federation::{
    Consortium, ConsortiumId, MemberIndex, RoundId, SigningKey, VerifyingKey, consortium, round, wire,
};
use serde::{Deserialize, Serialize};

use super::fs::{self, FileError};
use super::limits::{MAX_APPROVAL_BYTES, MAX_ROUNDS};

/// Most bytes of a `status.json`, as [`crate::run::Status`] has it.
const MAX_STATUS_BYTES: usize = 1 << 20;

/// A home folder.
#[derive(Debug)]
pub struct Home {
    folder: PathBuf,
    /// Unlocks when dropped; `None` when the home is only looked at.
    _lock: Option<File>,
}

/// A round, and who takes part in it here.
#[derive(Debug)]
pub struct Part {
    /// That of the round, which may have changed since.
    pub consortium: Ratified,
    /// What is agreed on.
    pub round: Round,
    /// Where it lies.
    pub folder: RoundFolder,
    /// Who this node is in it.
    pub identity: Identity,
}

/// Who this node is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its place in the consortium.
    pub member: MemberIndex,
    /// What it signs with.
    pub signing_key: SigningKey,
    /// What its libp2p node proves; may be the signing key.
    pub peer_key: SigningKey,
}

/// The folder of one round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundFolder {
    folder: PathBuf,
}

/// What `approval.json` must say; what else it holds is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The round that the operator approved.
    #[serde(alias = "round_id")]
    pub round: RoundId,
}

/// What `status.json` says of a round's end.
#[derive(Debug, Deserialize)]
struct Ended {
    round: RoundId,
    transcript: Option<PathBuf>,
}

/// A key that left the consortium at a change.
#[derive(Debug, thiserror::Error)]
#[error(
    "the key in `{path}` ({key}) was that of `{member}` until change {change} of the consortium ({id}), and {since}",
    path = path.display(), id = id.0.short()
)]
pub struct FormerKey {
    /// The key file.
    pub path: PathBuf,
    /// Its public key.
    pub key: VerifyingKey,
    /// Whose it was.
    pub member: String,
    /// The number of the change.
    pub change: u32,
    /// The consortium that the change made.
    pub id: ConsortiumId,
    /// What became of the member, and what to do.
    pub since: String,
}

/// Why a home folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// No folder.
    #[error("`{path}` is not a folder; make a home with: fedprune init --home {path}", path = .0.display())]
    NoFolder(PathBuf),
    /// No key.
    #[error("`{path}` has no key.pem; make a key: fedprune init --home {path}", path = .0.display())]
    NoKey(PathBuf),
    /// No consortium.
    #[error("`{path}` has no consortium.toml; sign the consortium's document: fedprune consortium sign consortium.toml --home {path}", path = .0.display())]
    NoConsortium(PathBuf),
    /// A node runs on it.
    #[error("`{path}` is in use by {}; stop it first, or give another --home", holder(.process), path = home.display())]
    InUse {
        /// The home.
        home: PathBuf,
        /// Which process, if the lock says.
        process: Option<u32>,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Others may read a private key.
    #[error(
        "`{path}` can be read by other users (mode {mode:o}); type: chmod 600 '{path}'; if others had access, make a new key",
        path = path.display()
    )]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not a private key.
    #[error("`{path}` holds no usable key", path = path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why.
        source: SecretKeyPemError,
    },
    /// The signing key is of nobody.
    #[error("the key in `{path}` ({key}) is of no member of consortium `{consortium}`; use the home of a member", path = path.display())]
    NotAMember {
        /// The key file.
        path: PathBuf,
        /// Its public key.
        key: String,
        /// The consortium's name.
        consortium: String,
    },
    /// The signing key is of nobody any more.
    #[error(transparent)]
    FormerKey(Box<FormerKey>),
    /// The libp2p key is not the one in the consortium.
    #[error("the key in `{path}` is {found}, but the consortium lists peer_key {expected} for `{member}`; put that key there", path = path.display())]
    PeerKey {
        /// The key file.
        path: PathBuf,
        /// Its public key.
        found: String,
        /// The one listed.
        expected: String,
        /// This member's name.
        member: String,
    },
    /// Not a consortium.
    #[error("`{path}` cannot be used", path = path.display())]
    Consortium {
        /// The document.
        path: PathBuf,
        /// Why.
        source: ConsortiumError,
    },
    /// Not its signatures.
    #[error("`{path}` cannot be used", path = path.display())]
    Signatures {
        /// The list.
        path: PathBuf,
        /// Why.
        source: RatificationError,
    },
    /// Some members did not sign.
    #[error("`{path}` does not hold everybody's signature: {source}; get the missing ones, and type: fedprune consortium sign --home {home} --merge FILE", path = path.display(), home = path.parent().unwrap_or(path).display())]
    NotRatified {
        /// The list of signatures.
        path: PathBuf,
        /// Who is missing.
        source: NotRatified,
    },
    /// Not a round.
    #[error("`{path}` cannot be used", path = path.display())]
    Round {
        /// The document.
        path: PathBuf,
        /// Why.
        source: RoundError,
    },
    /// Changed after it was approved.
    #[error("`{path}` is round {found}, not the round {expected} of its folder; put the approved document back", path = path.display())]
    RoundChanged {
        /// The document.
        path: PathBuf,
        /// What it hashes to.
        found: RoundId,
        /// The folder's name.
        expected: RoundId,
    },
    /// Not an approval.
    #[error("`{path}` is not an approval of this round; type: fedprune round approve round.toml --home HOME", path = path.display())]
    Approval {
        /// The file.
        path: PathBuf,
        /// What the parser says; nothing when it approves another round.
        source: Option<serde_json::Error>,
    },
    /// The round asked for is not approved.
    #[error("round {round} is not approved in `{path}`; type: fedprune round approve round.toml --home {path}", path = home.display())]
    NotApproved {
        /// The home.
        home: PathBuf,
        /// The round.
        round: RoundId,
    },
    /// Nothing to take part in.
    #[error("no round is approved in `{path}`; type: fedprune round approve round.toml --home {path}", path = .0.display())]
    NoneApproved(PathBuf),
    /// Which one is not clear.
    #[error("several rounds are approved in `{path}`; choose one with --round: {}", listed(.rounds), path = home.display())]
    SeveralApproved {
        /// The home.
        home: PathBuf,
        /// The rounds.
        rounds: Vec<RoundId>,
    },
    /// More than anybody would have.
    #[error("`{path}` has more than {MAX_ROUNDS} entries; move those of old rounds elsewhere", path = .0.display())]
    TooManyRounds(PathBuf),
}

fn holder(process: &Option<u32>) -> String {
    process.map_or_else(|| "another process".to_owned(), |id| format!("process {id} (`kill {id}`)"))
}

fn listed(rounds: &[RoundId]) -> String {
    let rounds: Vec<String> = rounds.iter().map(ToString::to_string).collect();
    rounds.join(", ")
}

impl Home {
    /// Takes a home for a node to run on.
    ///
    /// # Errors
    /// [`HomeError::InUse`] with the process that runs on it; [`HomeError::NoFolder`], [`HomeError::File`].
    pub fn open(folder: &Path) -> Result<Self, HomeError> {
        let mut home = Self::inspect(folder)?;
        let path = folder.join("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut lock = options.open(&path).map_err(fs::failed("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(HomeError::InUse { home: folder.to_owned(), process: process_in(&mut lock) });
            }
            Err(TryLockError::Error(source)) => return Err(fs::failed("lock", &path)(source).into()),
        }
        let process = format!("{}\n", std::process::id());
        let written = lock
            .set_len(0)
            .and_then(|()| lock.seek(SeekFrom::Start(0)))
            .and_then(|_| lock.write_all(process.as_bytes()));
        written.map_err(fs::failed("write", &path))?;
        home._lock = Some(lock);
        Ok(home)
    }

    /// Looks at a home, whether or not a node runs on it.
    ///
    /// # Errors
    /// [`HomeError::NoFolder`].
    pub fn inspect(folder: &Path) -> Result<Self, HomeError> {
        if !folder.is_dir() {
            return Err(HomeError::NoFolder(folder.to_owned()));
        }
        Ok(Self { folder: folder.to_owned(), _lock: None })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The consortium, which all its members must have signed, or enough of those before them.
    ///
    /// # Errors
    /// [`HomeError`] naming the document or the list of signatures.
    pub fn consortium(&self) -> Result<Ratified, HomeError> {
        let path = self.folder.join("consortium.toml");
        let text = match fs::read_text(&path, consortium::DOCUMENT_LIMIT) {
            Err(error) if error.is_not_found() => return Err(HomeError::NoConsortium(self.folder.clone())),
            text => text?,
        };
        let consortium = Consortium::parse(&text).map_err(|source| HomeError::Consortium { path, source })?;
        let path = self.folder.join("consortium.signatures");
        let signatures = fs::read(&path, consortium::SIGNATURES_LIMIT.saturating_add(wire::PREFIX_BYTES))?;
        let mut draft = Draft::new(consortium);
        if let Err(source) = draft.add_encoded(&signatures) {
            return Err(HomeError::Signatures { path, source });
        }
        draft.ratify().map_err(|source| HomeError::NotRatified { path, source })
    }

    /// A round and who takes part in it here. A round of a consortium that has changed since is finished by those who began
    /// it, with the keys that they had.
    ///
    /// # Errors
    /// Those of [`Home::consortium`], [`Home::round`] and [`Home::identity`].
    pub fn part(&self, round: Option<RoundId>) -> Result<Part, HomeError> {
        let newest = self.consortium()?;
        let (round, folder) = match self.round(&newest, round) {
            Ok(found) => found,
            Err(error) => {
                self.identity(&newest)?; // whose key is of nobody any more hears of that first
                return Err(error);
            }
        };
        let consortium = newest.in_lineage(round.terms().consortium).unwrap_or(&newest).clone();
        let identity = self.identity(&consortium)?;
        Ok(Part { consortium, round, folder, identity })
    }

    /// The keys of this member: those in the home's files, or former ones that this consortium has.
    ///
    /// # Errors
    /// [`HomeError::KeyMode`] when others may read one, [`HomeError::NotAMember`], [`HomeError::FormerKey`],
    /// [`HomeError::PeerKey`].
    pub fn identity(&self, consortium: &Ratified) -> Result<Identity, HomeError> {
        let path = self.folder.join("key.pem");
        if path.symlink_metadata().is_err() {
            return Err(HomeError::NoKey(self.folder.clone()));
        }
        let current = load_key(&path)?;
        let former = || consortium.members().iter().find_map(|member| self.former_key(&member.signing_key));
        let signing_key = match consortium.whose(&current.verifying_key()) {
            Whose::Member(_) => current,
            _ => former().ok_or_else(|| self.stranger(path.clone(), &current, consortium))??,
        };
        let key = signing_key.verifying_key();
        let stranger = || self.stranger(path.clone(), &signing_key, consortium);
        let Whose::Member(member) = consortium.whose(&key) else { return Err(stranger()) };
        let known = consortium.member(member).ok_or_else(stranger)?;
        let peer_key = if known.peer_key == key {
            signing_key.clone()
        } else if let Some(former) = self.former_key(&known.peer_key) {
            former?
        } else {
            let path = self.folder.join("peer-key.pem");
            let peer_key = load_key(&path)?;
            if peer_key.verifying_key() != known.peer_key {
                let (found, expected) = (peer_key.verifying_key().to_string(), known.peer_key.to_string());
                return Err(HomeError::PeerKey { path, found, expected, member: known.name.clone() });
            }
            peer_key
        };
        Ok(Identity { member, signing_key, peer_key })
    }

    /// A key that this member had, if it was kept.
    fn former_key(&self, key: &VerifyingKey) -> Option<Result<SigningKey, HomeError>> {
        let path = self.folder.join("former-keys").join(format!("{key}.pem"));
        let loaded = path.exists().then(|| load_key(&path))?;
        // a file of another key than its name says is none of this member's
        loaded.map(|found| (found.verifying_key() == *key).then_some(found)).transpose()
    }

    /// What is said of a key that is of no member: whose it was, if it was anybody's.
    fn stranger(&self, path: PathBuf, key: &SigningKey, consortium: &Ratified) -> HomeError {
        let key = key.verifying_key();
        let Whose::Former(former) = consortium.whose(&key) else {
            let consortium = consortium.consortium().name().to_owned();
            return HomeError::NotAMember { path, key: key.to_string(), consortium };
        };
        let (home, member) = (self.folder.display(), former.member.name.clone());
        let since = if former.replaced {
            format!(
                "`{member}` has another since: put that key there; if it is lost, type: fedprune consortium renew --home {home} --name '{member}'"
            )
        } else {
            format!(
                "`{member}` is no member since; whoever is to take part again needs a new key and a change: fedprune consortium add --help"
            )
        };
        let (change, id) = (former.change(), former.left.id());
        HomeError::FormerKey(Box::new(FormerKey { path, key, member, change, id, since }))
    }

    /// The folder of a round, which may not exist.
    pub fn round_folder(&self, round: RoundId) -> RoundFolder {
        RoundFolder { folder: self.folder.join("rounds").join(round.to_string()) }
    }

    /// Makes the folder of a round, unless there is one.
    ///
    /// # Errors
    /// [`HomeError::File`].
    pub fn create_round_folder(&self, round: RoundId) -> Result<RoundFolder, HomeError> {
        fs::create_folder(&self.folder.join("rounds"))?;
        let folder = self.round_folder(round);
        fs::create_folder(&folder.folder)?;
        Ok(folder)
    }

    /// Rounds that have an `approval.json`, ascending; whether it holds is for [`Home::round`] to say.
    ///
    /// # Errors
    /// [`HomeError::TooManyRounds`], [`HomeError::File`].
    pub fn rounds_with_approval(&self) -> Result<Vec<RoundId>, HomeError> {
        let path = self.folder.join("rounds");
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fs::failed("list", &path)(error).into()),
        };
        let mut rounds = Vec::new();
        for (number, entry) in entries.enumerate() {
            if number == MAX_ROUNDS {
                return Err(HomeError::TooManyRounds(path));
            }
            let name = entry.map_err(fs::failed("list", &path))?.file_name();
            let Some(round) = name.to_str().and_then(|name| name.parse::<RoundId>().ok()) else { continue };
            // the name must be the very one that `round_folder` makes: lowercase
            if name == round.to_string().as_str() && self.round_folder(round).approval().exists() {
                rounds.push(round);
            }
        }
        rounds.sort_unstable();
        Ok(rounds)
    }

    /// The round to take part in: `wanted`, or the only approved one, or the only one of the newest consortium, or of several
    /// the only one that is not over here.
    ///
    /// It may be of a consortium that `newest` took the place of, which is then in its lineage.
    ///
    /// # Errors
    /// [`HomeError`] when none or several are approved, or the approval or the document is of another round.
    pub fn round(&self, newest: &Ratified, wanted: Option<RoundId>) -> Result<(Round, RoundFolder), HomeError> {
        let mut approved = self.rounds_with_approval()?;
        if wanted.is_none() && approved.len() > 1 && newest.predecessor().is_some() {
            let of_predecessors: Vec<RoundId> = approved
                .iter()
                .copied()
                .filter(|round| {
                    let of = self.consortium_of(*round);
                    of.is_some_and(|id| id != newest.id() && newest.in_lineage(id).is_some())
                })
                .collect();
            if of_predecessors.len() < approved.len() {
                approved.retain(|round| !of_predecessors.contains(round));
            }
        }
        if wanted.is_none() && approved.len() > 1 {
            let mut unfinished = approved.iter().copied().filter(|round| !self.is_over(*round));
            if let (Some(round), None) = (unfinished.next(), unfinished.next()) {
                approved = vec![round];
            }
        }
        let home = || self.folder.clone();
        let expected = match (wanted, approved.as_slice()) {
            (Some(round), approved) if approved.contains(&round) => round,
            (Some(round), _) => return Err(HomeError::NotApproved { home: home(), round }),
            (None, [round]) => *round,
            (None, []) => return Err(HomeError::NoneApproved(home())),
            (None, _) => return Err(HomeError::SeveralApproved { home: home(), rounds: approved }),
        };
        let folder = self.round_folder(expected);
        let path = folder.approval();
        let approval = fs::read(&path, MAX_APPROVAL_BYTES)?;
        match serde_json::from_slice::<Approval>(&approval) {
            Ok(approval) if approval.round == expected => {}
            Ok(_) => return Err(HomeError::Approval { path, source: None }),
            Err(source) => return Err(HomeError::Approval { path, source: Some(source) }),
        }
        let path = folder.document();
        let text = fs::read_text(&path, round::DOCUMENT_LIMIT)?;
        let named = Round::consortium_named_in(&text).ok().and_then(|id| newest.in_lineage(id)).unwrap_or(newest);
        let round = match Round::parse(&text, named.consortium()) {
            Ok(round) => round,
            Err(source) => return Err(HomeError::Round { path, source }),
        };
        if round.id() != expected {
            return Err(HomeError::RoundChanged { path, found: round.id(), expected });
        }
        Ok((round, folder))
    }

    /// Whether a node has said here that it brought a round to its end: it writes where the transcript is once that is
    /// complete. Of a round of which that cannot be told, it is not.
    fn is_over(&self, round: RoundId) -> bool {
        let status = fs::read(&self.round_folder(round).status(), MAX_STATUS_BYTES);
        let ended = status.ok().and_then(|bytes| serde_json::from_slice::<Ended>(&bytes).ok());
        ended.is_some_and(|ended| ended.round == round && ended.transcript.is_some())
    }

    /// Which consortium a round's document names, if it can be read.
    fn consortium_of(&self, round: RoundId) -> Option<ConsortiumId> {
        let text = fs::read_text(&self.round_folder(round).document(), round::DOCUMENT_LIMIT).ok()?;
        Round::consortium_named_in(&text).ok()
    }
}

impl RoundFolder {
    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `round.toml`.
    pub fn document(&self) -> PathBuf {
        self.folder.join("round.toml")
    }

    /// `approval.json`.
    pub fn approval(&self) -> PathBuf {
        self.folder.join("approval.json")
    }

    /// The folder of [`super::Wal`].
    pub fn wal(&self) -> PathBuf {
        self.folder.join("wal")
    }

    /// The folder of [`super::BlobStore`].
    pub fn blobs(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    /// The file of [`super::Index`].
    pub fn index(&self) -> PathBuf {
        self.folder.join("index.redb")
    }

    /// What the running node says of itself.
    pub fn status(&self) -> PathBuf {
        self.folder.join("status.json")
    }

    /// What an auditor gets.
    pub fn transcript(&self) -> PathBuf {
        self.folder.join("transcript")
    }
}

fn load_key(path: &Path) -> Result<SigningKey, HomeError> {
    let file = fs::open(path)?;
    // Asked of the open file, so that it is the file that is read.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = file.metadata().map_err(fs::failed("read", path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(HomeError::KeyMode { path: path.to_owned(), mode });
        }
    }
    let mut bytes = fs::read_open(file, path, MAX_PEM_BYTES)?;
    let key = match std::str::from_utf8(&bytes) {
        Ok(pem) => SigningKey::from_pkcs8_pem(pem).map_err(|source| HomeError::Key { path: path.to_owned(), source }),
        Err(_) => Err(FileError::NotText { path: path.to_owned() }.into()),
    };
    // secret bytes are overwritten before their memory is given back
    bytes.fill(0);
    std::hint::black_box(&mut bytes);
    key
}

/// Which process wrote a lock file.
fn process_in(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests;
