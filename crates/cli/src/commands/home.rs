//! A member's own folder, and the keys and documents that commands of the federation read.
//!
//! ```text
//! HOME/key.pem                          private, mode 0600
//! HOME/peer-key.pem                     only when the node has a key of its own
//! HOME/consortium.toml                  the same for all members
//! HOME/consortium.signatures            everybody's, once they are merged; of a changed consortium with its chain
//! HOME/next/                            a change of the consortium that not enough have signed yet
//! HOME/former-keys/                     keys that were renewed
//! HOME/rounds/<round id>/round.toml     with approval.json beside it: this member takes part
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fedprune_federation::consortium::{
    self, Consortium, Draft, FormerMember, Member, RatificationError, Ratified, SIGNATURES_LIMIT, Whose,
};
use fedprune_federation::round::{self, Round, RoundError};
use fedprune_federation::signing::MAX_PEM_BYTES;
use fedprune_federation::{MemberIndex, SigningKey, VerifyingKey};

use crate::exit::Membership;
use crate::files::{program, read_small, shell};

/// Bytes before the list of signatures: magic, version, content.
const PREFIX_BYTES: usize = 64;

/// The member's private key.
pub(super) fn key_path(home: &Path) -> PathBuf {
    home.join("key.pem")
}

/// The private key of its node, where that is another.
fn peer_key_path(home: &Path) -> PathBuf {
    home.join("peer-key.pem")
}

/// The consortium's document.
pub(super) fn consortium_path(home: &Path) -> PathBuf {
    home.join("consortium.toml")
}

/// Where a change of the consortium lies until enough have signed it.
pub(super) fn next_path(home: &Path) -> PathBuf {
    home.join("next")
}

/// Where the signatures of a document are kept unless said otherwise: beside it.
pub(super) fn signatures_path(consortium: &Path) -> PathBuf {
    consortium.with_extension("signatures")
}

/// Reads a private key.
pub(super) fn read_signing_key(path: &Path) -> anyhow::Result<SigningKey> {
    let unusable = || format!("`{}` cannot be used", path.display());
    let mut bytes = read_small(path, MAX_PEM_BYTES)?;
    let key = match std::str::from_utf8(&bytes) {
        Ok(pem) => SigningKey::from_pkcs8_pem(pem).with_context(unusable),
        Err(error) => Err(error).with_context(unusable),
    };
    wipe(&mut bytes);
    key
}

/// Reads a key file, private or public. Returns the public key, and whether the file holds the private one too.
pub(super) fn read_key(path: &Path) -> anyhow::Result<(VerifyingKey, bool)> {
    let unusable = || format!("`{}` cannot be used", path.display());
    let mut bytes = read_small(path, MAX_PEM_BYTES)?;
    let key = match std::str::from_utf8(&bytes) {
        Ok(pem) if pem.contains("PRIVATE KEY-----") => match SigningKey::from_pkcs8_pem(pem) {
            Ok(key) => Ok((key.verifying_key(), true)),
            Err(error) => Err(error).with_context(unusable),
        },
        Ok(pem) => VerifyingKey::from_public_key_pem(pem).map(|key| (key, false)).with_context(unusable),
        Err(error) => Err(error).with_context(unusable),
    };
    wipe(&mut bytes);
    key
}

/// Overwrites secret bytes before their memory is given back.
pub(super) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    // keeps the writes, which nobody reads again
    std::hint::black_box(bytes);
}

/// A public key as typed: its digits, or a file that holds it.
pub(super) fn public_key(given: &str) -> anyhow::Result<VerifyingKey> {
    if given.len() == 64 && given.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return given.parse().with_context(|| format!("the key `{given}` cannot be used"));
    }
    let path = Path::new(given);
    if path.symlink_metadata().is_err() {
        bail!("`{given}` is neither a key of 64 hexadecimal digits, as `{} key show` prints it, nor a file", program());
    }
    Ok(read_key(path)?.0)
}

/// What to say about a private key that others can read.
pub(super) fn exposed(path: &Path) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).ok()?.permissions().mode();
        (mode & 0o077 != 0)
            .then(|| format!("others can read the private key `{}`: chmod 600 {}", path.display(), shell(path)))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Reads a document that people write.
pub(super) fn read_text(path: &Path, limit: usize) -> anyhow::Result<String> {
    let bytes = read_small(path, limit)?;
    String::from_utf8(bytes)
        .map_err(|error| error.utf8_error())
        .with_context(|| format!("`{}` is no text", path.display()))
}

/// Reads `consortium.toml`; also returns its text.
pub(super) fn read_consortium(path: &Path) -> anyhow::Result<(Consortium, String)> {
    let text = read_text(path, consortium::DOCUMENT_LIMIT)?;
    match Consortium::parse(&text) {
        Ok(consortium) => Ok((consortium, text)),
        Err(_) if !lists_members(&text) => bail!(
            "`{}` has no members yet; add one: {} consortium add {} --name NAME --key KEY --attestation-key FILE --address \
             /dns4/HOST/tcp/4001",
            path.display(),
            program(),
            shell(path)
        ),
        Err(error) => Err(error).with_context(|| format!("`{}` cannot be used", path.display())),
    }
}

/// Whether a document so much as mentions a member; what it says of it may still be wrong.
pub(super) fn lists_members(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.trim_start();
        line.starts_with("[[") || line.starts_with("member")
    })
}

/// Adds a list of signatures to a draft. Returns how many were new.
pub(super) fn add_signatures(draft: &mut Draft, path: &Path) -> anyhow::Result<usize> {
    let bytes = read_small(path, SIGNATURES_LIMIT + PREFIX_BYTES)?;
    draft.add_encoded(&bytes).map_err(|error| {
        let remedy = match &error {
            RatificationError::OtherConsortium { .. } => {
                let path = shell(path);
                format!("; if the document was changed on purpose, begin anew: mv {path} {path}.old")
            }
            _ => String::new(),
        };
        let mut causes = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(deeper) = cause {
            causes.push_str(&format!(": {deeper}"));
            cause = deeper.source();
        }
        // what to do stands last, where it can be copied from
        anyhow::Error::from(error).context(format!("`{}` cannot be used: {causes}{remedy}", path.display()))
    })
}

/// Reads `round.toml`; also returns its text.
pub(super) fn read_round(path: &Path, consortium: &Consortium) -> anyhow::Result<(Round, String)> {
    let text = read_text(path, round::DOCUMENT_LIMIT)?;
    let round = Round::parse(&text, consortium)
        .map_err(round_error)
        .with_context(|| format!("`{}` cannot be used", path.display()))?;
    Ok((round, text))
}

/// The error of a round, with all that is wrong on one line.
pub(super) fn round_error(error: RoundError) -> anyhow::Error {
    match error {
        RoundError::Contradictions(found) => {
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            anyhow::anyhow!("the round cannot be carried out: {}", found.join("; "))
        }
        error => error.into(),
    }
}

/// A member's folder with a ratified consortium and the key of one of its members.
pub(super) struct Home {
    /// The folder.
    pub folder: PathBuf,
    /// The consortium, signed by all.
    pub consortium: Ratified,
    /// Whose folder it is.
    pub member: MemberIndex,
    /// What to know about the folder.
    pub warnings: Vec<String>,
}

impl Home {
    /// The signing keys that this member has, newest first, and had before changes of the consortium.
    pub fn keys(&self) -> Vec<VerifyingKey> {
        let Some(member) = self.consortium.member(self.member) else { return Vec::new() };
        let mut keys = Vec::new();
        for consortium in self.consortium.lineage() {
            let entry = consortium.consortium().index_by_name(&member.name).and_then(|index| consortium.member(index));
            keys.extend(entry.map(|entry| entry.signing_key).filter(|key| !keys.contains(key)));
        }
        keys
    }

    /// Reads key, consortium and signatures.
    ///
    /// # Errors
    /// Naming what is missing and the command that makes it; who has not signed; a key of no member.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let (key_file, document) = (key_path(folder), consortium_path(folder));
        let (program, home) = (program(), shell(folder));
        if !key_file.exists() {
            bail!("`{}` is missing; make a key: {program} key new --home {home}", key_file.display());
        }
        if !document.exists() {
            bail!(
                "`{}` is missing; sign the consortium's document: {program} consortium sign consortium.toml --home {home}",
                document.display()
            );
        }
        let key = read_signing_key(&key_file)?.verifying_key();
        let (consortium, _) = read_consortium(&document)?;
        // of a founding consortium this is known before anybody has signed it
        if consortium.index_of(&key).is_none() && consortium.origin().is_none() {
            return Err(stranger(&key_file, &key, &consortium));
        }
        let signatures = signatures_path(&document);
        let mut draft = Draft::new(consortium);
        if signatures.exists() {
            add_signatures(&mut draft, &signatures)?;
        }
        let consortium = draft.ratify().with_context(|| {
            format!("no round can begin; get their lists and merge them: {program} consortium sign --home {home} --merge FILE")
        })?;
        let member = match consortium.whose(&key) {
            Whose::Member(member) => member,
            Whose::Former(one) => return Err(former(&key_file, &key, &consortium, one, folder)),
            Whose::Nobody => return Err(stranger(&key_file, &key, consortium.consortium())),
        };
        let mut warnings: Vec<String> = exposed(&key_file).into_iter().collect();
        if let Some(member) = consortium.member(member) {
            warnings.extend(peer_key_problem(folder, member));
        }
        Ok(Self { folder: folder.to_owned(), consortium, member, warnings })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.consortium.member(self.member).map_or("", |member| member.name.as_str())
    }
}

/// What is said of a key that is of no member.
fn stranger(file: &Path, key: &VerifyingKey, consortium: &Consortium) -> anyhow::Error {
    Membership(format!(
        "the key of `{}`, {key}, is of no member of `{}`; its members are {}",
        file.display(),
        consortium.name(),
        names(consortium.members())
    ))
    .into()
}

/// What is said of a key that is of no member, in a consortium that has changed.
fn former(
    file: &Path,
    key: &VerifyingKey,
    consortium: &Ratified,
    former: FormerMember<'_>,
    home: &Path,
) -> anyhow::Error {
    let (name, change) = (&former.member.name, former.change());
    let since = if former.replaced {
        format!(
            "`{name}` has another since: put that key there; if it is lost, type: {} consortium renew --home {} --name '{name}'",
            program(),
            shell(home)
        )
    } else {
        format!("`{name}` is no member since; the members are {}", names(consortium.members()))
    };
    Membership(format!(
        "the key of `{}`, {key}, was that of `{name}` until change {change} of the consortium ({}), and {since}",
        file.display(),
        former.left.id().0.short()
    ))
    .into()
}

/// A node whose own key is not there cannot start, which is better known beforehand.
fn peer_key_problem(folder: &Path, member: &Member) -> Option<String> {
    if member.peer_key == member.signing_key {
        return None;
    }
    let path = peer_key_path(folder);
    match read_key(&path) {
        Ok((key, true)) if key == member.peer_key => exposed(&path),
        _ => Some(format!(
            "`{}` must hold the private key of `peer_key` {} before the node can start",
            path.display(),
            member.peer_key
        )),
    }
}

/// Names of members for a message.
pub(super) fn names(members: &[Member]) -> String {
    let shown: Vec<String> = members.iter().take(10).map(|member| format!("`{}`", member.name)).collect();
    let more = members.len().saturating_sub(shown.len());
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}
