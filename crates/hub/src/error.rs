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
    /// A token that would be read by whoever listens.
    #[error(
        "the token (HF_TOKEN) is not sent to `{0}` in the clear; use an address that begins with https://, or unset it"
    )]
    TokenInTheClear(String),
    /// Nobody answers.
    #[error(
        "cannot reach `{endpoint}`: {why}; this machine may be offline, or need a proxy (HTTPS_PROXY) or a mirror \
         (--endpoint, or HF_ENDPOINT). Without one, fetch the model where the hub can be reached and copy the folder"
    )]
    Unreachable {
        /// Of the hub.
        endpoint: String,
        /// What happened.
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
            | Self::NoSuchModel { .. }
            | Self::NoSuchRevision { .. }
            | Self::Gated { .. }
            | Self::Moved { .. }
            | Self::Busy { .. }
            | Self::Status { .. }
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
            | Self::TokenInTheClear(_)
            | Self::NoSpace { .. }
            | Self::Leftover { .. }
            | Self::Locked { .. }
            | Self::Unsuitable { .. }
            | Self::File { .. } => false,
        }
    }

    /// Whether it is about what was typed.
    pub fn is_of_usage(&self) -> bool {
        matches!(self, Self::Name(_) | Self::Revision(_) | Self::Endpoint(_) | Self::TokenInTheClear(_))
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
