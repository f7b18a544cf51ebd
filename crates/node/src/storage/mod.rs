//! What a member keeps on disk, and how it survives a crash at any instruction.
//!
//! | module | what it keeps |
//! |---|---|
//! | [`home`] | the home folder: its lock, keys, the consortium, the rounds and who approved them |
//! | [`wal`] | what the node said and heard, in order, synced before it acts on it |
//! | [`blobs`] | ballot bodies, named by their BLAKE3 root, verified as they arrive |
//! | [`index`] | what can be looked up quickly, rebuilt from the other two whenever in doubt |
//! | [`fs`] | files written whole or not at all, and read under a limit |
//! | [`limits`] | every limit |
//!
//! All of it blocks. Nothing here knows what a record or a body means: they are bytes.

pub mod blobs;
pub mod fs;
pub mod home;
pub mod index;
pub mod limits;
pub mod wal;

pub use blobs::{BlobError, BlobStore, Partial};
pub use home::{Home, HomeError, Identity, RoundFolder};
pub use index::{Index, IndexError};
pub use wal::{Entry, Position, Wal, WalError};
