//! A model as it lies on the Hugging Face Hub, brought into a folder: only what is needed of it, of one commit, with each
//! file as long as the hub says and of the digest that it says.
//!
//! A hub, a mirror or whoever answers in its place is not trusted with this machine's disk:
//!
//! * A file's size and digest are known from the list before it is asked for, and its announced length is compared
//!   before a byte is written.
//! * The list, and files that have no SHA-256 in it, come from the hub's own address. Files that have one may be handed
//!   over to another host, as the hub does with weights; a token never is.
//! * What is said goes over an encrypted line or stays on this machine.
//! * Names become paths only if they are among those that a model folder has.
//! * A transfer that broke off goes on where it was, in this run or the next.
//!
//! # Why not `hf-hub`
//!
//! Version 0.5 takes a file's name on disk from the server's `ETag` and its length from the answer itself, ends the process
//! where a redirection is malformed, and brings `option-ext`, which is under the MPL. Version 1.0 adds 77 crates to this
//! program, `option-ext` among them; `ureq` with what is here adds five.

#![forbid(unsafe_code)]

mod client;
mod error;
mod fetch;
mod folder;
mod listing;
mod name;
mod need;
mod origin;
mod transfer;
mod trouble;

pub use client::{DEFAULT_ENDPOINT, Hub, Settings};
pub use error::HubError;
pub use fetch::{FetchedFile, Observer, Provenance, Ready, Request, Suits};
pub use listing::{Identity, Listing, RemoteFile};
pub use name::{Commit, RepositoryName, Revision};
pub use need::{Needed, Weights, shards};
