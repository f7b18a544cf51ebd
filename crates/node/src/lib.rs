//! A member's node: libp2p, storage, the loop that turns effects into I/O, and seeing it run.

pub mod limits;
pub mod network;
pub mod observe;
pub mod preflight;
pub mod run;
pub mod storage;
pub mod transfer;

pub use libp2p::Multiaddr;
