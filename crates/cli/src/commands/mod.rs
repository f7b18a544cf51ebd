//! One file a command; each `run` takes what was typed and returns a report.

#[cfg(feature = "silo")]
pub mod apply;
#[cfg(feature = "audit")]
pub mod attest;
#[cfg(all(feature = "audit", feature = "federation"))]
pub mod attest_sign;
#[cfg(feature = "federation")]
pub mod attestation_key;
#[cfg(feature = "audit")]
pub mod audit;
#[cfg(feature = "federation")]
pub mod command_line;
#[cfg(feature = "federation")]
pub mod consortium;
#[cfg(feature = "federation")]
pub mod contribute;
#[cfg(feature = "federation")]
pub mod demo;
#[cfg(feature = "silo")]
pub mod eval_perplexity;
#[cfg(feature = "federation")]
pub mod init;
#[cfg(feature = "federation")]
pub mod key;
#[cfg(feature = "silo")]
pub mod mask_compute;
#[cfg(feature = "silo")]
pub mod mask_show;
#[cfg(feature = "silo")]
pub mod model_devices;
#[cfg(feature = "silo")]
pub mod model_fetch;
#[cfg(feature = "silo")]
pub mod model_import;
#[cfg(feature = "silo")]
pub mod model_inspect;
#[cfg(feature = "federation")]
pub mod node;
#[cfg(feature = "federation")]
pub mod node_install;
#[cfg(feature = "federation")]
pub mod preflight;
#[cfg(feature = "audit")]
pub mod proof;
#[cfg(feature = "federation")]
pub mod round;
#[cfg(feature = "federation")]
pub mod simulate;
#[cfg(feature = "study")]
pub mod study;
#[cfg(feature = "silo")]
pub mod tally;
#[cfg(feature = "federation")]
pub mod testnet;
#[cfg(feature = "federation")]
pub mod watch;

#[cfg(feature = "silo")]
mod agreement;
#[cfg(feature = "federation")]
mod approvals;
#[cfg(feature = "federation")]
mod home;
#[cfg(feature = "silo")]
mod machine_memory;
#[cfg(feature = "silo")]
mod mask_file;
#[cfg(feature = "silo")]
mod model_card;
#[cfg(feature = "federation")]
mod node_gate;
#[cfg(feature = "federation")]
mod peer_id;
#[cfg(feature = "silo")]
mod recipe;
#[cfg(feature = "silo")]
mod shared;
#[cfg(feature = "federation")]
mod site_policy;

#[cfg(feature = "silo")]
use shared::{content_digest, decoder, sequence_tokens};
