//! DSSE envelopes with Ed25519 signatures of members: one statement, and whoever signed it.
//!
//! `keyid` is the member's signing key as it stands in `consortium.toml`, so that an envelope says whose signatures it has,
//! and no key is taken from it. Members who attest the same sign the same bytes; envelopes of one statement can be merged,
//! and a threshold counted.

use std::collections::BTreeSet;

use base64ct::{Base64, Encoding};
use fedprune_federation::{Consortium, MemberIndex, Signature, SigningKey};
use serde::{Deserialize, Serialize};

use crate::PAYLOAD_TYPE;

/// Most bytes of an envelope's file.
pub const ENVELOPE_LIMIT: usize = 8 << 20;

/// A statement's bytes with signatures; nothing is known of either until [`Envelope::signers`] says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    payload: Vec<u8>,
    /// Key id, signature.
    signatures: Vec<(String, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<SignatureDocument>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureDocument {
    keyid: String,
    sig: String,
}

/// Why an envelope cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Larger than any.
    #[error("it has {0} bytes, more than the {ENVELOPE_LIMIT} of any envelope")]
    TooLarge(usize),
    /// No envelope.
    #[error("it is no DSSE envelope")]
    Json(#[from] serde_json::Error),
    /// Of another type.
    #[error("its payload is of type `{0}`, and `{PAYLOAD_TYPE}` is expected")]
    Type(String),
    /// Not base64 in the standard alphabet with padding.
    #[error("its {0} is not base64")]
    Base64(&'static str),
    /// Nobody signed.
    #[error("it has no signatures")]
    Unsigned,
    /// A signature of nobody known.
    #[error("a signature is by key `{0}`, which is of no member of the consortium")]
    Stranger(String),
    /// Twice the same.
    #[error("`{0}` signed it twice")]
    Twice(String),
    /// A signature that does not verify.
    #[error("the signature of `{0}` does not verify: the statement was changed, or `{0}` never signed it")]
    Signature(String),
    /// Envelopes of different statements.
    #[error("they hold different statements: only signatures of the same bytes can be put together")]
    Different,
}

impl Envelope {
    /// A statement signed by one key.
    pub fn sign(payload: Vec<u8>, key: &SigningKey) -> Self {
        let signature = key.sign_dsse(PAYLOAD_TYPE, &payload).0.to_vec();
        Self { signatures: vec![(key.verifying_key().to_string(), signature)], payload }
    }

    /// Reads an envelope.
    ///
    /// # Errors
    /// [`EnvelopeError`] for anything that is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > ENVELOPE_LIMIT {
            return Err(EnvelopeError::TooLarge(bytes.len()));
        }
        let document: Document = serde_json::from_slice(bytes)?;
        if document.payload_type != PAYLOAD_TYPE {
            return Err(EnvelopeError::Type(document.payload_type.chars().take(100).collect()));
        }
        let payload = decode(&document.payload, "payload")?;
        let signature = |signature: SignatureDocument| Ok((signature.keyid, decode(&signature.sig, "signature")?));
        let signatures = document.signatures.into_iter().map(signature).collect::<Result<_, EnvelopeError>>()?;
        Ok(Self { payload, signatures })
    }

    /// The envelope's file.
    ///
    /// # Errors
    /// [`EnvelopeError::Json`] never in practice.
    pub fn to_json(&self) -> Result<Vec<u8>, EnvelopeError> {
        let signature = |(keyid, signature): &(String, Vec<u8>)| SignatureDocument {
            keyid: keyid.clone(),
            sig: Base64::encode_string(signature),
        };
        let document = Document {
            payload: Base64::encode_string(&self.payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: self.signatures.iter().map(signature).collect(),
        };
        let mut json = serde_json::to_vec(&document)?;
        json.push(b'\n');
        Ok(json)
    }

    /// The statement's bytes, as they were signed.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// How many keys signed it, as it says.
    pub fn keys(&self) -> usize {
        self.signatures.iter().map(|(keyid, _)| keyid).collect::<BTreeSet<_>>().len()
    }

    /// Adds the signatures of another envelope of the same statement; of one key the first stays.
    ///
    /// # Errors
    /// [`EnvelopeError::Different`].
    pub fn merge(&mut self, other: Envelope) -> Result<(), EnvelopeError> {
        if other.payload != self.payload {
            return Err(EnvelopeError::Different);
        }
        for (keyid, signature) in other.signatures {
            if !self.signatures.iter().any(|(known, _)| *known == keyid) {
                self.signatures.push((keyid, signature));
            }
        }
        self.signatures.sort();
        Ok(())
    }

    /// Which members signed it, ascending: each signature must be of a member, verify, and be its only one.
    ///
    /// # Errors
    /// [`EnvelopeError`] naming the signature that does not count.
    pub fn signers(&self, consortium: &Consortium) -> Result<Vec<MemberIndex>, EnvelopeError> {
        let mut signers = Vec::new();
        // there are at most as many signatures to check as members, and one more
        for (keyid, signature) in &self.signatures {
            let stranger = || EnvelopeError::Stranger(keyid.chars().take(100).collect());
            let key = keyid.parse().map_err(|_| stranger())?;
            let member = consortium.index_of(&key).ok_or_else(stranger)?;
            let name = consortium.member(member).map_or_else(String::new, |member| member.name.clone());
            if signers.contains(&member) {
                return Err(EnvelopeError::Twice(name));
            }
            let signature = <[u8; 64]>::try_from(signature.as_slice()).map(Signature);
            let verified =
                signature.is_ok_and(|signature| key.verify_dsse(PAYLOAD_TYPE, &self.payload, &signature).is_ok());
            if !verified {
                return Err(EnvelopeError::Signature(name));
            }
            signers.push(member);
        }
        if signers.is_empty() {
            return Err(EnvelopeError::Unsigned);
        }
        signers.sort_unstable();
        Ok(signers)
    }
}

/// Standard base64 with padding; a second encoding of the same bytes is refused.
pub(crate) fn decode(text: &str, what: &'static str) -> Result<Vec<u8>, EnvelopeError> {
    Base64::decode_vec(text).map_err(|_| EnvelopeError::Base64(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fedprune_federation::consortium::Member;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    fn consortium() -> Consortium {
        let member = |(index, name): (usize, &str)| {
            let signing_key = key(index as u8 + 1).verifying_key();
            let name = name.to_owned();
            Member { name, signing_key, peer_key: signing_key, addresses: Vec::new(), attestation_key: None }
        };
        let members = ["east", "north", "south"].into_iter().enumerate().map(member).collect();
        Consortium::new("three".to_owned(), members).unwrap()
    }

    #[test]
    fn what_is_signed_is_read_and_merged() {
        let payload = b"{\"a\":1}".to_vec();
        let mut envelope = Envelope::sign(payload.clone(), &key(3));
        envelope.merge(Envelope::sign(payload.clone(), &key(1))).unwrap();
        envelope.merge(Envelope::sign(payload, &key(1))).unwrap();
        let read = Envelope::parse(&envelope.to_json().unwrap()).unwrap();
        assert_eq!((read.keys(), &read), (2, &envelope));
        let signers = read.signers(&consortium()).unwrap();
        assert_eq!(signers, [MemberIndex(0), MemberIndex(2)]);
        let other = Envelope::sign(b"{}".to_vec(), &key(1));
        assert!(matches!(envelope.merge(other), Err(EnvelopeError::Different)));
    }

    #[test]
    fn what_was_changed_is_refused() {
        let signed = || Envelope::sign(b"{\"a\":1}".to_vec(), &key(1));
        let refused = |change: &dyn Fn(&mut Envelope)| {
            let mut envelope = signed();
            change(&mut envelope);
            envelope.signers(&consortium()).unwrap_err()
        };
        assert!(matches!(refused(&|envelope| envelope.payload[1] ^= 1), EnvelopeError::Signature(_)));
        assert!(matches!(refused(&|envelope| envelope.signatures[0].1[5] ^= 1), EnvelopeError::Signature(_)));
        assert!(matches!(refused(&|envelope| envelope.signatures[0].1.truncate(63)), EnvelopeError::Signature(_)));
        let other = key(2).verifying_key().to_string();
        assert!(matches!(refused(&|envelope| envelope.signatures[0].0 = other.clone()), EnvelopeError::Signature(_)));
        let stranger = key(9).verifying_key().to_string();
        assert!(matches!(refused(&|envelope| envelope.signatures[0].0 = stranger.clone()), EnvelopeError::Stranger(_)));
        assert!(matches!(refused(&|envelope| envelope.signatures[0].0.clear()), EnvelopeError::Stranger(_)));
        assert!(matches!(refused(&|envelope| envelope.signatures.clear()), EnvelopeError::Unsigned));
        let again = |envelope: &mut Envelope| envelope.signatures.push(envelope.signatures[0].clone());
        assert!(matches!(refused(&again), EnvelopeError::Twice(_)));
        // one good signature does not make up for a bad one
        let both = |envelope: &mut Envelope| envelope.signatures.push((other.clone(), vec![0; 64]));
        assert!(matches!(refused(&both), EnvelopeError::Signature(_)));
    }

    #[test]
    fn other_documents_are_no_envelopes() {
        let json = String::from_utf8(Envelope::sign(b"{}".to_vec(), &key(1)).to_json().unwrap()).unwrap();
        for (from, to) in [
            ("payloadType", "payloadtype"),
            ("in-toto+json", "in-toto"),
            ("\"payload\":\"e30=\"", "\"payload\":\"e30\""),
            ("\"payload\":\"e30=\"", "\"payload\":\"e31=\""),
            ("\"signatures\"", "\"more\":1,\"signatures\""),
        ] {
            assert!(json.contains(from), "{json}");
            assert!(Envelope::parse(json.replace(from, to).as_bytes()).is_err(), "{to}");
        }
        assert!(Envelope::parse(b"").is_err());
        assert!(matches!(Envelope::parse(&vec![b' '; ENVELOPE_LIMIT + 1]), Err(EnvelopeError::TooLarge(_))));
    }
}
