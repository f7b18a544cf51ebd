//! A member's node: libp2p, storage, and the loop that turns effects into I/O.

pub mod storage;
pub mod transfer;
