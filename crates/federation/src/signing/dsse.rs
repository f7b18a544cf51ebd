//! Signatures in DSSE envelopes, for programs that are not ours.
//!
//! Such a signature is over the pre-authentication encoding of DSSE v1, which begins with `DSSEv1 `. No domain of this
//! protocol begins so, and no message that libp2p signs: an attestation is never a vote, nor a vote an attestation.

use super::{Signature, SignatureError, SigningKey, VerifyingKey};

/// First bytes under every signature in a DSSE envelope.
pub const DSSE_PREFIX: &[u8; 7] = b"DSSEv1 ";

/// The bytes under a signature in a DSSE envelope: `DSSEv1`, length and text of the type, length and bytes of the
/// payload, lengths in decimal, a space between each two.
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = DSSE_PREFIX.to_vec();
    bytes.extend_from_slice(format!("{} {payload_type} {} ", payload_type.len(), payload.len()).as_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

impl SigningKey {
    /// Signs a payload of a DSSE envelope.
    pub fn sign_dsse(&self, payload_type: &str, payload: &[u8]) -> Signature {
        self.sign_bytes(&pre_authentication_encoding(payload_type, payload))
    }
}

impl VerifyingKey {
    /// Checks that this key signed a payload of a DSSE envelope.
    ///
    /// # Errors
    /// [`SignatureError`] if not.
    pub fn verify_dsse(&self, payload_type: &str, payload: &[u8], signature: &Signature) -> Result<(), SignatureError> {
        self.verify_bytes(&pre_authentication_encoding(payload_type, payload), signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ConsortiumId, Height, MemberIndex, RoundId};
    use crate::signing::{Kind, Place, preimage};
    use fedprune_mask::Digest;

    /// The example of the DSSE specification.
    #[test]
    fn encoding_is_that_of_the_specification() {
        let encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world");
        assert_eq!(encoded, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
        assert_eq!(pre_authentication_encoding("", b""), b"DSSEv1 0  0 ");
    }

    #[test]
    fn an_attestation_is_no_statement_and_no_message_of_libp2p() {
        let place = Place {
            consortium: ConsortiumId(Digest([1; 32])),
            round: RoundId(Digest([2; 32])),
            height: Height(0),
            member: MemberIndex(0),
        };
        let key = SigningKey::from_seed(&[7; 32]).unwrap();
        for kind in Kind::ALL {
            let statement = preimage(kind, place, b"fields");
            assert!(!statement.starts_with(DSSE_PREFIX) && !DSSE_PREFIX.starts_with(&statement));
            // the bytes of one as the payload of the other, both ways
            let attested = key.sign_dsse("application/vnd.in-toto+json", &statement);
            assert!(key.verifying_key().verify(kind, place, b"fields", &attested).is_err());
            let signed = key.sign(kind, place, b"fields");
            assert!(key.verifying_key().verify_dsse("application/vnd.in-toto+json", &statement, &signed).is_err());
        }
        for foreign in
            [&b"noise-libp2p-static-key:"[..], b"libp2p-tls-handshake:", b"libp2p-pubsub:", b"\x12libp2p-peer-record"]
        {
            assert_ne!(foreign.first(), DSSE_PREFIX.first());
        }
    }
}
