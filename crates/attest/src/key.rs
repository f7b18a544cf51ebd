//! The key that signs pruned models: ECDSA over P-256, since that is what the verifiers of Model Signing take.
//!
//! It signs nothing else. Nonces are those of RFC 6979, so that no bad randomness gives the key away. A signature's bytes
//! are no identity: (r, s) and (r, n − s) both verify.

use std::fmt;

use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use sha2::{Digest as _, Sha256};

use crate::hex;

/// Longest PEM text that is looked at, in bytes.
pub const MAX_PEM_BYTES: usize = 1024;

/// The private key; never shown.
pub struct AttestationKey(p256::SecretKey);

/// The public key, as it stands in the consortium's document.
#[derive(Clone, PartialEq, Eq)]
pub struct AttestationPublicKey(p256::PublicKey);

/// Why a text is no such key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Larger than any.
    #[error("it has {0} bytes, more than the {MAX_PEM_BYTES} of any attestation key")]
    TooLarge(usize),
    /// Not a private key of P-256.
    #[error("it is no P-256 private key in PKCS#8 PEM (`-----BEGIN PRIVATE KEY-----`)")]
    Private,
    /// Not a public key of P-256.
    #[error("it is no P-256 public key in PEM (`-----BEGIN PUBLIC KEY-----`)")]
    Public,
    /// One seed in 2^32 is none.
    #[error("these bytes are no key; draw others")]
    Seed,
    /// A key that cannot be written, which is none that this program makes.
    #[error("it cannot be written as PEM")]
    Unwritable,
}

impl AttestationKey {
    /// The key of 32 secret bytes, which must be random.
    ///
    /// # Errors
    /// [`KeyError::Seed`] for bytes that are none, as one in 2^32 is not: draw again.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        p256::SecretKey::from_slice(seed).map(Self).map_err(|_| KeyError::Seed)
    }

    /// Reads PKCS#8 PEM, as [`AttestationKey::to_pem`] or `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256`
    /// writes it.
    ///
    /// # Errors
    /// [`KeyError`] for anything else.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.len() > MAX_PEM_BYTES {
            return Err(KeyError::TooLarge(pem.len()));
        }
        p256::SecretKey::from_pkcs8_pem(pem).map(Self).map_err(|_| KeyError::Private)
    }

    /// PKCS#8 PEM, to be written where only its owner reads; wiped from memory when dropped.
    ///
    /// # Errors
    /// [`KeyError::Unwritable`] never in practice.
    pub fn to_pem(&self) -> Result<impl AsRef<str> + use<>, KeyError> {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Unwritable)?;
        Ok(Pem(pem))
    }

    /// The key by which others know it.
    pub fn public(&self) -> AttestationPublicKey {
        AttestationPublicKey(self.0.public_key())
    }

    /// Signs bytes; the signature is in DER.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        let signature: Signature = SigningKey::from(&self.0).sign(bytes);
        signature.to_der().as_bytes().to_vec()
    }
}

/// Text that is wiped from memory when dropped.
struct Pem<T>(T);

impl<T: std::ops::Deref<Target = String>> AsRef<str> for Pem<T> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AttestationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttestationKey(private)")
    }
}

impl AttestationPublicKey {
    /// Reads a public key in PEM, as it stands in `consortium.toml`.
    ///
    /// # Errors
    /// [`KeyError`] for anything else, a point outside the curve included.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if pem.len() > MAX_PEM_BYTES {
            return Err(KeyError::TooLarge(pem.len()));
        }
        p256::PublicKey::from_public_key_pem(pem).map(Self).map_err(|_| KeyError::Public)
    }

    /// The key as PEM, lines ending in LF.
    ///
    /// # Errors
    /// [`KeyError::Unwritable`] never in practice.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        self.0.to_public_key_pem(LineEnding::LF).map_err(|_| KeyError::Unwritable)
    }

    /// SHA-256 of the PEM, in hexadecimal, by which a bundle names its key.
    ///
    /// # Errors
    /// As [`AttestationPublicKey::to_pem`].
    pub fn hint(&self) -> Result<String, KeyError> {
        Ok(hex(&Sha256::digest(self.to_pem()?.as_bytes())))
    }

    /// Whether this key signed the bytes; `signature` is in DER.
    pub(crate) fn verifies(&self, bytes: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_der(signature) else { return false };
        VerifyingKey::from(self.0).verify(bytes, &signature).is_ok()
    }
}

impl fmt::Debug for AttestationPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttestationPublicKey({})", self.hint().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_round_trips_and_nothing_else_is_read() {
        let key = AttestationKey::from_seed(&[7; 32]).unwrap();
        let pem = key.to_pem().unwrap();
        assert!(pem.as_ref().starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(AttestationKey::from_pem(pem.as_ref()).unwrap().public(), key.public());
        let public = key.public().to_pem().unwrap();
        assert_eq!(AttestationPublicKey::from_pem(&public).unwrap(), key.public());
        assert_eq!(AttestationPublicKey::from_pem(pem.as_ref()).unwrap_err(), KeyError::Public);
        assert_eq!(AttestationKey::from_pem(&public).unwrap_err(), KeyError::Private);
        assert_eq!(AttestationKey::from_pem(&"x".repeat(2000)).unwrap_err(), KeyError::TooLarge(2000));
        assert_eq!(AttestationKey::from_seed(&[0; 32]).unwrap_err(), KeyError::Seed);
        assert_eq!(AttestationKey::from_seed(&[0xff; 32]).unwrap_err(), KeyError::Seed);
        // an Ed25519 key
        let other = fedprune_federation::SigningKey::from_seed(&[7; 32]).unwrap();
        assert!(AttestationKey::from_pem(&other.to_pkcs8_pem().unwrap()).is_err());
        assert!(AttestationPublicKey::from_pem(&other.verifying_key().to_public_key_pem().unwrap()).is_err());
        assert!(!format!("{key:?}").contains("07"));
    }

    /// RFC 6979, A.2.5: P-256 with SHA-256 of "sample".
    #[test]
    fn nonces_are_those_of_the_standard() {
        let seed = "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721";
        let seed: fedprune_mask::Digest = seed.parse().unwrap();
        let key = AttestationKey::from_seed(&seed.0).unwrap();
        let signature = Signature::from_der(&key.sign(b"sample")).unwrap();
        let (r, s) = signature.split_bytes();
        assert_eq!(hex(&r), "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716");
        // or n − s, where signatures are brought to the lower half
        let s = hex(&s);
        assert!(
            s == "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
                || s == "0834e36ad29a83bf2bc9385e491d6099c8fdf9d1ed67aa7ea5f51f93782857a9",
            "{s}"
        );
        assert!(key.public().verifies(b"sample", &key.sign(b"sample")));
        assert!(!key.public().verifies(b"other", &key.sign(b"sample")));
        assert!(!key.public().verifies(b"sample", b""));
    }
}
