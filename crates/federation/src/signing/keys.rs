//! Ed25519 keys and signatures, with the loopholes of the curve closed.
//!
//! Ed25519 has keys under which some signatures verify in one program and not in another (keys with a
//! component of small order), and keys under which one signature fits every message (weak keys). Members
//! must agree on every signature, so such keys are refused where they are loaded, encodings that are not
//! canonical too, and every check is `verify_strict`, one at a time: batches accept what it refuses.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::pkcs8::spki::{self, DecodePublicKey, EncodePublicKey, der::pem::LineEnding};
use ed25519_dalek::pkcs8::{self, DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signer, ed25519};
use fedprune_mask::codec::bincode;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use spki::der::zeroize::Zeroizing;

use super::preimage::{Kind, Place, preimage};

/// Longest PEM text that is looked at.
pub const MAX_PEM_BYTES: usize = 4096;

/// The key with which a member signs.
///
/// It is wiped from memory when dropped, and never shown.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

/// The key by which others know a member; shown and parsed as 64 lowercase hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

/// A signature; nothing is known about it until it verifies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct Signature(pub [u8; 64]);

/// Why 32 bytes are no key to rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a point of the curve.
    #[error("it is not a point of the curve; copy the key again")]
    NotAPoint,
    /// A second encoding of the same point.
    #[error("it is not the canonical encoding of its point; make a new key")]
    NotCanonical,
    /// Of small order: anybody can sign for it.
    #[error("it is weak: anybody can make signatures for it; make a new key")]
    Weak,
    /// Has a component of small order: programs disagree on its signatures.
    #[error("it has a component of small order, so programs disagree on its signatures; make a new key")]
    NotTorsionFree,
    /// Not 64 hexadecimal digits.
    #[error("it is not a key: expected 64 lowercase hexadecimal digits")]
    Syntax,
}

/// Why a PEM text is no private key.
#[derive(Debug, thiserror::Error)]
pub enum SecretKeyPemError {
    /// Larger than any key.
    #[error("it has {0} bytes, more than the {MAX_PEM_BYTES} of any key file; give the file with the private key")]
    TooLarge(usize),
    /// Not an Ed25519 private key in PKCS#8 PEM.
    #[error("it is no Ed25519 private key in PKCS#8 PEM (`-----BEGIN PRIVATE KEY-----`)")]
    Pkcs8(#[from] pkcs8::Error),
    /// A key not to rely on.
    #[error("its key cannot be used")]
    Key(#[from] KeyError),
}

/// Why a PEM text is no public key.
#[derive(Debug, thiserror::Error)]
pub enum PublicKeyPemError {
    /// Larger than any key.
    #[error("it has {0} bytes, more than the {MAX_PEM_BYTES} of any key file; give the file with the public key")]
    TooLarge(usize),
    /// Not an Ed25519 public key in PEM.
    #[error("it is no Ed25519 public key in PEM (`-----BEGIN PUBLIC KEY-----`)")]
    Spki(#[from] spki::Error),
    /// A key not to rely on.
    #[error("its key cannot be used")]
    Key(#[from] KeyError),
}

/// A signature that the key did not make of these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify")]
pub struct SignatureError;

impl SigningKey {
    /// The key of 32 secret bytes, which must be random.
    ///
    /// # Errors
    /// [`KeyError`] for a key not to rely on; no random bytes give one.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::SigningKey::from_bytes(seed);
        VerifyingKey::check(key.verifying_key())?;
        Ok(Self(key))
    }

    /// Reads PKCS#8 PEM, as written by [`SigningKey::to_pkcs8_pem`] or `openssl genpkey -algorithm ed25519`.
    ///
    /// # Errors
    /// [`SecretKeyPemError`] for anything else; a public key in it must be that of the private one.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, SecretKeyPemError> {
        if pem.len() > MAX_PEM_BYTES {
            return Err(SecretKeyPemError::TooLarge(pem.len()));
        }
        let key = ed25519_dalek::SigningKey::from_pkcs8_pem(pem)?;
        VerifyingKey::check(key.verifying_key())?;
        Ok(Self(key))
    }

    /// PKCS#8 PEM, to be written where only its owner reads; wiped from memory when dropped.
    ///
    /// # Errors
    /// [`SecretKeyPemError::Pkcs8`] never in practice: a key always encodes.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, SecretKeyPemError> {
        Ok(self.0.to_pkcs8_pem(LineEnding::LF)?)
    }

    /// The key by which others know it.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key())
    }

    /// Its 32 secret bytes, for the identity of a libp2p node; wiped from memory when dropped.
    pub fn to_seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Signs the [`preimage`](super::preimage()) of these fields; anything else that it signs is a DSSE envelope's payload.
    ///
    /// Statements are signed by [`crate::SignatureChecked::sign`]; this is for proposals and votes, whose
    /// fields belong to whatever carries out the agreement.
    pub fn sign(&self, kind: Kind, place: Place, fields: &[u8]) -> Signature {
        self.sign_bytes(&preimage(kind, place, fields))
    }

    pub(crate) fn sign_bytes(&self, bytes: &[u8]) -> Signature {
        Signature(self.0.sign(bytes).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.verifying_key())
    }
}

impl VerifyingKey {
    /// The key of 32 bytes.
    ///
    /// # Errors
    /// [`KeyError`] for a key not to rely on.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAPoint)?;
        Self::check(key)
    }

    fn check(key: ed25519_dalek::VerifyingKey) -> Result<Self, KeyError> {
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        let point = key.to_edwards();
        if point.compress().as_bytes() != key.as_bytes() {
            return Err(KeyError::NotCanonical);
        }
        if !point.is_torsion_free() {
            return Err(KeyError::NotTorsionFree);
        }
        Ok(Self(key))
    }

    /// Reads a public key in PEM, as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// [`PublicKeyPemError`] for anything else.
    pub fn from_public_key_pem(pem: &str) -> Result<Self, PublicKeyPemError> {
        if pem.len() > MAX_PEM_BYTES {
            return Err(PublicKeyPemError::TooLarge(pem.len()));
        }
        Ok(Self::check(ed25519_dalek::VerifyingKey::from_public_key_pem(pem)?)?)
    }

    /// The key as PEM, for other programs.
    ///
    /// # Errors
    /// [`PublicKeyPemError::Spki`] never in practice: a key always encodes.
    pub fn to_public_key_pem(&self) -> Result<String, PublicKeyPemError> {
        Ok(self.0.to_public_key_pem(LineEnding::LF)?)
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Checks that this key signed the [`preimage`](super::preimage()) of these fields.
    ///
    /// # Errors
    /// [`SignatureError`] if not.
    pub fn verify(&self, kind: Kind, place: Place, fields: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        self.verify_bytes(&preimage(kind, place, fields), signature)
    }

    pub(crate) fn verify_bytes(&self, bytes: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        let signature = ed25519::Signature::from_bytes(&signature.0);
        self.0.verify_strict(bytes, &signature).map_err(|_| SignatureError)
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({self})")
    }
}

impl PartialOrd for VerifyingKey {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for VerifyingKey {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl FromStr for VerifyingKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return Err(KeyError::Syntax);
        }
        let digest: fedprune_mask::Digest = text.parse().map_err(|_| KeyError::Syntax)?;
        Self::from_bytes(&digest.0)
    }
}

impl Serialize for VerifyingKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VerifyingKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl bincode::Encode for VerifyingKey {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        bincode::Encode::encode(self.as_bytes(), encoder)
    }
}

impl<Context> bincode::Decode<Context> for VerifyingKey {
    fn decode<D: bincode::de::Decoder>(decoder: &mut D) -> Result<Self, bincode::error::DecodeError> {
        let bytes: [u8; 32] = bincode::Decode::decode(decoder)?;
        Self::from_bytes(&bytes).map_err(|error| bincode::error::DecodeError::OtherString(format!("a key: {error}")))
    }
}

bincode::impl_borrow_decode!(VerifyingKey);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
    use curve25519_dalek::edwards::CompressedEdwardsY;

    /// The first test vector of RFC 8032, §7.1.
    const SEED: [u8; 32] = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
        0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];
    /// Its private key as `openssl` writes it: version 1, without the public key.
    const OPENSSL: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
        -----END PRIVATE KEY-----\n";

    fn key() -> SigningKey {
        SigningKey::from_seed(&SEED).unwrap()
    }

    #[test]
    fn is_the_ed25519_of_the_standard() {
        let key = key();
        assert_eq!(key.verifying_key().to_string(), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let signature = key.sign_bytes(b"");
        assert!(
            format!("{signature:?}")
                .starts_with("Signature(e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e0652249015")
        );
        assert_eq!(key.verifying_key().verify_bytes(b"", &signature), Ok(()));
        assert_eq!(key.verifying_key().verify_bytes(b"x", &signature), Err(SignatureError));
    }

    #[test]
    fn pem_round_trips_and_openssl_is_read() {
        let key = key();
        let pem = key.to_pkcs8_pem().unwrap();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(SigningKey::from_pkcs8_pem(&pem).unwrap().verifying_key(), key.verifying_key());
        assert_eq!(SigningKey::from_pkcs8_pem(OPENSSL).unwrap().verifying_key(), key.verifying_key());
        let public = key.verifying_key().to_public_key_pem().unwrap();
        assert_eq!(VerifyingKey::from_public_key_pem(&public).unwrap(), key.verifying_key());
    }

    #[test]
    fn refuses_pem_that_is_not_a_key() {
        let long = " ".repeat(MAX_PEM_BYTES + 1);
        assert!(matches!(SigningKey::from_pkcs8_pem(&long), Err(SecretKeyPemError::TooLarge(4097))));
        assert!(matches!(VerifyingKey::from_public_key_pem(&long), Err(PublicKeyPemError::TooLarge(4097))));
        let public = key().verifying_key().to_public_key_pem().unwrap();
        for text in ["", "-----BEGIN PRIVATE KEY-----", &public, &OPENSSL[..80], &OPENSSL.replace("MC4C", "MC4D")] {
            assert!(matches!(SigningKey::from_pkcs8_pem(text), Err(SecretKeyPemError::Pkcs8(_))), "{text}");
        }
        assert!(matches!(VerifyingKey::from_public_key_pem(OPENSSL), Err(PublicKeyPemError::Spki(_))));
        // a private key beside somebody else's public key
        let pem = key().to_pkcs8_pem().unwrap();
        let other = SigningKey::from_seed(&[1; 32]).unwrap().to_pkcs8_pem().unwrap();
        let (pem, other): (Vec<&str>, Vec<&str>) = (pem.lines().collect(), other.lines().collect());
        let mixed = [pem[0], pem[1], other[2], other[3]].join("\n");
        assert!(matches!(SigningKey::from_pkcs8_pem(&mixed), Err(SecretKeyPemError::Pkcs8(_))), "{mixed}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", key());
        assert_eq!(shown, format!("SigningKey(of {})", key().verifying_key()));
        assert!(!shown.contains("9d61b19d"));
    }

    #[test]
    fn weak_keys_are_refused() {
        for point in EIGHT_TORSION {
            assert_eq!(VerifyingKey::from_bytes(point.compress().as_bytes()), Err(KeyError::Weak));
        }
        // The identity: R = identity and s = 0 verify under it for every message, outside strict verification.
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(VerifyingKey::from_bytes(&identity), Err(KeyError::Weak));
        let text = "01".to_owned() + &"00".repeat(31);
        assert_eq!(text.parse::<VerifyingKey>(), Err(KeyError::Weak));
    }

    #[test]
    fn keys_with_torsion_are_refused() {
        let honest = CompressedEdwardsY(*key().verifying_key().as_bytes()).decompress().unwrap();
        for torsion in &EIGHT_TORSION[1..] {
            for point in [honest + torsion, ED25519_BASEPOINT_POINT + torsion] {
                let bytes = point.compress().to_bytes();
                assert!(ed25519_dalek::VerifyingKey::from_bytes(&bytes).is_ok_and(|key| !key.is_weak()));
                assert_eq!(VerifyingKey::from_bytes(&bytes), Err(KeyError::NotTorsionFree));
            }
        }
    }

    #[test]
    fn second_encodings_are_refused() {
        // y = p + i for i in 0..19 fits 255 bits, and some of these are points; with either sign
        let mut points = 0;
        for i in 0..19u8 {
            for sign in [0, 0x80] {
                let mut bytes = [0xff; 32];
                bytes[0] = 0xed + i;
                bytes[31] = 0x7f | sign;
                points += usize::from(ed25519_dalek::VerifyingKey::from_bytes(&bytes).is_ok());
                let error = VerifyingKey::from_bytes(&bytes).unwrap_err();
                assert!(matches!(error, KeyError::NotAPoint | KeyError::Weak | KeyError::NotCanonical), "{error}");
            }
        }
        assert!(points > 4, "the library accepts {points} of them: more than those of small order");
    }

    #[test]
    fn keys_are_written_one_way() {
        let text = key().verifying_key().to_string();
        assert_eq!(text.parse(), Ok(key().verifying_key()));
        for other in [text.to_uppercase(), format!(" {text}"), text[1..].to_owned(), format!("{text}0"), "é".repeat(32)]
        {
            assert_eq!(other.parse::<VerifyingKey>(), Err(KeyError::Syntax), "{other}");
        }
        let off_curve = "02".to_owned() + &"00".repeat(31);
        assert_eq!(off_curve.parse::<VerifyingKey>(), Err(KeyError::NotAPoint));
    }

    #[test]
    fn a_signature_with_another_s_is_refused() {
        // s + L verifies in lax programs; so would a second signature of the same statement appear
        let order = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10u8,
        ];
        let mut signature = key().sign_bytes(b"statement");
        let mut carry = 0u16;
        for (byte, add) in signature.0[32..].iter_mut().zip(order) {
            carry += u16::from(*byte) + u16::from(add);
            *byte = carry as u8;
            carry >>= 8;
        }
        assert_eq!(key().verifying_key().verify_bytes(b"statement", &signature), Err(SignatureError));
    }

    /// With r = 0 a signer makes signatures whose R is of small order; other programs accept them.
    #[test]
    fn a_signature_with_a_weak_nonce_is_refused() {
        use curve25519_dalek::scalar::{Scalar, clamp_integer};
        use curve25519_dalek::traits::Identity;
        use sha2::{Digest, Sha512};
        let half = |bytes: &[u8]| <[u8; 32]>::try_from(&bytes[..32]).unwrap();
        let secret = Scalar::from_bytes_mod_order(clamp_integer(half(&Sha512::digest(SEED))));
        let nonce = CompressedEdwardsY::identity();
        let public = key().verifying_key();
        let hashed = Sha512::new().chain_update(nonce.as_bytes()).chain_update(public.as_bytes()).chain_update(b"any");
        let challenge = Scalar::from_bytes_mod_order_wide(&hashed.finalize().into());
        let mut signature = Signature([0; 64]);
        signature.0[..32].copy_from_slice(nonce.as_bytes());
        signature.0[32..].copy_from_slice((challenge * secret).as_bytes());
        let lax = ed25519::Signature::from_bytes(&signature.0);
        assert!(ed25519_dalek::Verifier::verify(&public.0, b"any", &lax).is_ok(), "the check is about something");
        assert_eq!(public.verify_bytes(b"any", &signature), Err(SignatureError));
    }
}
