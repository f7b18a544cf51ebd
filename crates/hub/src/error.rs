//! What is in the way of a model, each with its cause and what to do.

use std::path::PathBuf;

/// What is said of text from outside, at most, in characters.
const SHOWN_CHARS: usize = 100;

/// Why a model is not fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No name of a repository.
    #[error("`{0}` is no name of a model on the hub: write OWNER/NAME, as in HuggingFaceTB/SmolLM2-135M")]
    Name(String),
    /// No branch, tag or commit.
    #[error("`{0}` is no revision: give a branch, a tag or the 40 digits of a commit")]
    Revision(String),
    /// No address of a hub.
    #[error("`{0}` is no address of a hub: write https://HOST, without user or query")]
    Endpoint(String),
    /// An address where anybody on the way could read and change what is said.
    #[error(
        "`{0}` is not encrypted: anybody on the way could change the list of files, and their contents and digests with it; \
         use an address that begins with https://, as only one on this machine need not"
    )]
    NotEncrypted(String),
    /// A proxy that cannot be used.
    #[error(
        "`{0}` is behind a SOCKS proxy, as the environment has it (the first of ALL_PROXY, HTTPS_PROXY and HTTP_PROXY, in upper \
         or lower case), and this program speaks with HTTP proxies only: name one of those, or put the host into NO_PROXY if \
         it is reached without any"
    )]
    SocksProxy(String),
    /// Nobody answers.
    #[error(
        "cannot reach `{endpoint}`: {why}; this machine may be offline, or need a proxy (HTTPS_PROXY) or a mirror \
         (--endpoint, or HF_ENDPOINT). Without one, fetch the model where the hub can be reached and copy the folder"
    )]
    Unreachable {
        /// Of the hub, or of who has its files.
        endpoint: String,
        /// What happened.
        why: String,
    },
    /// A certificate that nobody signed whom this program knows.
    #[error(
        "the certificate of `{host}` is of an authority that this program does not know: it knows the public ones only, and none \
         that were added to this machine. A mirror needs a certificate of a public authority; where a proxy opens encrypted \
         connections, fetch the model on another line and copy the folder"
    )]
    UnknownAuthority {
        /// Who has it.
        host: String,
    },
    /// A certificate that does not hold.
    #[error(
        "the certificate of `{host}` does not hold: {why}; see that the address and the clock of this machine are right"
    )]
    Certificate {
        /// Who has it.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no such model, or none that may be known of.
    #[error(
        "`{endpoint}` has no model `{name}` that it shows to this account: see that the name is right, upper and lower case \
         included; a private model needs a token (HF_TOKEN)"
    )]
    NoSuchModel {
        /// Of the hub.
        endpoint: String,
        /// As asked for.
        name: String,
    },
    /// There is no such branch, tag or commit.
    #[error("`{name}` has no revision `{revision}`: give a branch, a tag or a commit that its page lists")]
    NoSuchRevision {
        /// Of the model.
        name: String,
        /// As asked for.
        revision: String,
    },
    /// Its terms must be accepted first.
    #[error(
        "`{name}` is given only to those who accepted its terms: do that on its page at {endpoint}/{name}, and set HF_TOKEN to a \
         token of that account"
    )]
    Gated {
        /// Of the hub.
        endpoint: String,
        /// As asked for.
        name: String,
    },
    /// It has another name now.
    #[error("`{name}` has moved: the hub sends on to `{to}`; fetch it under its new name")]
    Moved {
        /// As asked for.
        name: String,
        /// Where it is said to be.
        to: String,
    },
    /// The hub has too much to do, or is broken.
    #[error("`{address}` answers with status {status}; try again later, the same command goes on")]
    Busy {
        /// What was asked for.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// An answer that nothing can be made of.
    #[error("`{address}` answers with status {status}, which no file of a model comes with; see that it is a hub")]
    Status {
        /// What was asked for.
        address: String,
        /// The HTTP status.
        status: u16,
    },
    /// Who keeps the hub's files does not give one.
    #[error(
        "`{file}` comes from `{host}`, where the hub sends on to and which answers with status {status}; something on the way may \
         keep that host away. Try again later or from another line, the same command goes on"
    )]
    Storage {
        /// Which file.
        file: String,
        /// Who answered.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// A list of files of another commit than the one that was asked for.
    #[error(
        "the list of `{name}` is of commit {commit}, and {asked} was asked for; nothing is fetched. See that the address is that \
         of a hub that keeps commits"
    )]
    OtherCommit {
        /// Of the model.
        name: String,
        /// Of which it is.
        commit: String,
        /// Of which it should be.
        asked: String,
    },
    /// A list of files that is none.
    #[error("the hub's list of files cannot be used: {0}; see that the address is that of a hub")]
    Listing(String),
    /// A file that is needed is not there.
    #[error("`{name}` has no `{file}` at commit {commit}: {remedy}")]
    Missing {
        /// Of the model.
        name: String,
        /// Which file.
        file: String,
        /// Which commit.
        commit: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A small file that is too large.
    #[error("`{file}` has {bytes} bytes, more than the {most} of any such file; it is not fetched")]
    TooLarge {
        /// Which file.
        file: String,
        /// Its size.
        bytes: u64,
        /// The most.
        most: u64,
    },
    /// An index that names what it may not.
    #[error("the index of the weights cannot be used: {0}")]
    Index(String),
    /// Another host, where it may not be one.
    #[error("`{address}` is sent on to `{to}`, {why}; nothing was written")]
    Redirect {
        /// What was asked for.
        address: String,
        /// Where it was sent on to.
        to: String,
        /// Why that is refused.
        why: &'static str,
    },
    /// Not as long as the list says.
    #[error("`{file}` has {listed} bytes as the hub lists it, and {sent} as it is sent; it is refused")]
    Length {
        /// Which file.
        file: String,
        /// As listed.
        listed: u64,
        /// As sent: how many, or that there are more.
        sent: String,
    },
    /// Not what is listed.
    #[error("`{file}` is not what the hub lists: its {kind} is {found} instead of {listed}; it was removed")]
    Digest {
        /// Which file.
        file: String,
        /// Of what kind.
        kind: &'static str,
        /// As listed.
        listed: String,
        /// Of what was sent.
        found: String,
    },
    /// It broke off, again and again.
    #[error(
        "`{file}` broke off after {bytes} of {of} bytes: {why}; what is there is kept, and the same command goes on"
    )]
    BrokenOff {
        /// Which file.
        file: String,
        /// How many are there.
        bytes: u64,
        /// How many there should be.
        of: u64,
        /// The last reason.
        why: String,
    },
    /// The disk is too small.
    #[error(
        "`{folder}` has room for {available} bytes, and {needed} are still to come; make room, or give another --out", folder = folder.display()
    )]
    NoSpace {
        /// Where they would go.
        folder: PathBuf,
        /// How much room there is.
        available: u64,
        /// How much is needed.
        needed: u64,
    },
    /// A folder of an earlier try that is of something else.
    #[error("`{folder}` {what}, or remove it: rm -r {folder}", folder = folder.display())]
    Leftover {
        /// Which folder.
        folder: PathBuf,
        /// What it is.
        what: String,
    },
    /// Another process does the same.
    #[error("another process is fetching into `{folder}`; wait for it, or stop it", folder = folder.display())]
    Locked {
        /// Which folder.
        folder: PathBuf,
    },
    /// The model is not one that the caller takes.
    #[error("`{name}` is not fetched")]
    Unsuitable {
        /// Of the model.
        name: String,
        /// Why.
        #[source]
        why: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of this machine.
    #[error("cannot {action} `{path}`", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

impl HubError {
    /// Whether it is about the network or who answers there, and not about this machine or what was typed.
    pub fn is_of_network(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::UnknownAuthority { .. }
            | Self::Certificate { .. }
            | Self::NoSuchModel { .. }
            | Self::NoSuchRevision { .. }
            | Self::Gated { .. }
            | Self::Moved { .. }
            | Self::Busy { .. }
            | Self::Status { .. }
            | Self::Storage { .. }
            | Self::OtherCommit { .. }
            | Self::Listing(_)
            | Self::Missing { .. }
            | Self::TooLarge { .. }
            | Self::Index(_)
            | Self::Redirect { .. }
            | Self::Length { .. }
            | Self::Digest { .. }
            | Self::BrokenOff { .. } => true,
            Self::Name(_)
            | Self::Revision(_)
            | Self::Endpoint(_)
            | Self::NotEncrypted(_)
            | Self::SocksProxy(_)
            | Self::NoSpace { .. }
            | Self::Leftover { .. }
            | Self::Locked { .. }
            | Self::Unsuitable { .. }
            | Self::File { .. } => false,
        }
    }

    /// Whether it is about what was typed, or what the environment says instead.
    pub fn is_of_usage(&self) -> bool {
        matches!(
            self,
            Self::Name(_) | Self::Revision(_) | Self::Endpoint(_) | Self::NotEncrypted(_) | Self::SocksProxy(_)
        )
    }
}

/// The beginning of a text from outside.
pub(crate) fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
