//! A member's node: libp2p, storage, and the loop that turns effects into I/O.

pub mod limits;
pub mod network;
pub mod preflight;
pub mod run;
pub mod storage;
pub mod transfer;

pub use libp2p::Multiaddr;
