//! Keys, and the bytes under a signature.
//!
//! Every signature is over a preimage of one fixed form, integers little-endian:
//!
//! | bytes | what | what it stops |
//! |---|---|---|
//! | 32 | [`Domain`] of the kind, ASCII, padded with zeros | a signature made for another purpose or program |
//! | 2 | version | a statement of another version |
//! | 32 | consortium id | replay between consortia that share members |
//! | 32 | round id, or zeros outside rounds | replay between rounds |
//! | 4 | height | replay between blocks of an iterative round |
//! | 1 | kind | (the domain again, in one byte for other implementations) |
//! | 2 | member | one member's statement passed off as another's with the same key material |
//! | … | fields, of one width per kind | two readings of the same bytes |
//!
//! A member's key may also be its libp2p key. libp2p signs messages that start with
//! `noise-libp2p-static-key:`, `libp2p-tls-handshake:` or the length of an envelope's domain; no domain here
//! starts so, hence no signature made in one place verifies in another. Attestations for other programs begin with `DSSEv1 `
//! for the same reason.

mod dsse;
mod keys;
mod preimage;

pub use dsse::{DSSE_PREFIX, pre_authentication_encoding};
pub use keys::{
    KeyError, MAX_PEM_BYTES, PublicKeyPemError, SecretKeyPemError, Signature, SignatureError, SigningKey, VerifyingKey,
};
pub use preimage::{DOMAIN_BYTES, Domain, Kind, Place, preimage};
