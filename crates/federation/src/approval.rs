//! That a person approved what leaves a silo: signed with the member's key, kept by the silo, never sent.
//!
//! An approval says which round, and where a preview was made, which very ballot, from which text, under which policy, as
//! which preview showed them. Its signature is over the head that all signatures have (see [`crate::signing`]), with a
//! domain of its own, kind 0 and height 0, so that it is no statement of the protocol and no statement is one; then:
//!
//! | bytes | what |
//! |---|---|
//! | 33 × 4 | ballot of height 0, calibration, preview, policy: 1 and the digest, or 33 zeros |
//! | 8 | time, milliseconds since 1970, little-endian |
//! | 32 × 3 | BLAKE3 of person, role, program, as UTF-8 |
//! | 32 | digest of the approval before it in the log, or zeros |
//!
//! Approvals of one home follow each other by digest, so that one that is taken out of the log is missed.

use fedprune_mask::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{ConsortiumId, MemberIndex, RoundId};
use crate::signing::{DOMAIN_BYTES, Signature, SignatureError, SigningKey, VerifyingKey};
use crate::wire::VERSION;

/// Longest person, role or program, in bytes.
pub const MAX_NAME_BYTES: usize = 200;
/// First bytes under the signature.
const DOMAIN: &[u8; DOMAIN_BYTES] = b"fedprune-silo-approval:\0\0\0\0\0\0\0\0\0";

/// What was approved, by whom, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The round.
    pub round: RoundId,
    /// Of which consortium.
    pub consortium: ConsortiumId,
    /// Whose silo.
    pub member: MemberIndex,
    /// BLAKE3 of the ballot of height 0, where it existed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ballot: Option<Digest>,
    /// Digest of the token windows that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Digest>,
    /// Digest of the preview that the person was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<Digest>,
    /// Digest of the site's policy, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Digest>,
    /// Milliseconds since 1970, by the clock of whoever approved.
    pub approved_unix_ms: u64,
    /// Who approved; empty if not said.
    #[serde(default)]
    pub person: String,
    /// As what; empty if not said.
    #[serde(default)]
    pub role: String,
    /// What wrote it.
    pub program: String,
    /// Digest of the approval before it in this home's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
}

/// An approval with the signature of the member that it names; not checked when it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedApproval {
    /// What was approved.
    pub approval: Approval,
    /// Ed25519, 128 hexadecimal digits.
    #[serde(with = "hexadecimal")]
    pub signature: Signature,
}

/// Why an approval does not count, or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    /// Too long, or with characters that would fake a line.
    #[error(
        "the {what} of an approval is one line of at most {MAX_NAME_BYTES} bytes without control characters, and this one is not"
    )]
    Name {
        /// Person, role or program.
        what: &'static str,
    },
    /// Not signed by this key.
    #[error(
        "the approval of round {round} is not signed by this member's key: it was changed, or made with another key; approve \
         the round again"
    )]
    Signature {
        /// The round that it names.
        round: RoundId,
    },
}

impl Approval {
    /// Whether everything that people typed is bounded and harmless.
    ///
    /// # Errors
    /// [`ApprovalError::Name`].
    pub fn check(&self) -> Result<(), ApprovalError> {
        for (what, text) in [("person", &self.person), ("role", &self.role), ("program", &self.program)] {
            if text.len() > MAX_NAME_BYTES || text.chars().any(char::is_control) {
                return Err(ApprovalError::Name { what });
            }
        }
        Ok(())
    }

    /// Signs it with the member's key.
    ///
    /// # Errors
    /// [`ApprovalError::Name`].
    pub fn sign(self, key: &SigningKey) -> Result<SignedApproval, ApprovalError> {
        self.check()?;
        let signature = key.sign_bytes(&self.preimage());
        Ok(SignedApproval { approval: self, signature })
    }

    /// The bytes under its signature.
    pub fn preimage(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(DOMAIN);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.consortium.0.0);
        bytes.extend_from_slice(&self.round.0.0);
        bytes.extend_from_slice(&[0; 5]); // height and kind
        bytes.extend_from_slice(&self.member.0.to_le_bytes());
        for digest in [self.ballot, self.calibration, self.preview, self.policy] {
            bytes.push(u8::from(digest.is_some()));
            bytes.extend_from_slice(&digest.map_or([0; 32], |digest| digest.0));
        }
        bytes.extend_from_slice(&self.approved_unix_ms.to_le_bytes());
        for text in [&self.person, &self.role, &self.program] {
            bytes.extend_from_slice(&Digest::of(text.as_bytes()).0);
        }
        bytes.extend_from_slice(&self.previous.map_or([0; 32], |digest| digest.0));
        bytes
    }
}

impl SignedApproval {
    /// Checks that `key` signed it.
    ///
    /// # Errors
    /// [`ApprovalError`].
    pub fn check(&self, key: &VerifyingKey) -> Result<&Approval, ApprovalError> {
        self.approval.check()?;
        match key.verify_bytes(&self.approval.preimage(), &self.signature) {
            Ok(()) => Ok(&self.approval),
            Err(SignatureError) => Err(ApprovalError::Signature { round: self.approval.round }),
        }
    }

    /// What the next approval in the log names: BLAKE3 of the bytes under the signature and the signature.
    pub fn digest(&self) -> Digest {
        let mut bytes = self.approval.preimage();
        bytes.extend_from_slice(&self.signature.0);
        Digest::of(&bytes)
    }
}

/// A signature as text.
mod hexadecimal {
    use super::{Deserialize, Deserializer, Serializer, Signature};
    use std::fmt::Write;

    pub(super) fn serialize<S: Serializer>(signature: &Signature, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(128);
        for byte in signature.0 {
            write!(text, "{byte:02x}").map_err(serde::ser::Error::custom)?;
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Signature, D::Error> {
        let text = String::deserialize(deserializer)?;
        let refused = || serde::de::Error::custom("a signature has 128 hexadecimal digits, lowercase");
        let digit = |byte: &u8| match byte {
            b'0'..=b'9' => Some(byte.wrapping_sub(b'0')),
            b'a'..=b'f' => Some(byte.wrapping_sub(b'a').wrapping_add(10)),
            _ => None,
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != 64 || !rest.is_empty() {
            return Err(refused());
        }
        let mut signature = [0; 64];
        for (byte, [high, low]) in signature.iter_mut().zip(pairs) {
            *byte = digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low).ok_or_else(refused)?;
        }
        Ok(Signature(signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::Kind;
    use crate::testing::key;

    fn approval() -> Approval {
        Approval {
            round: RoundId(Digest([3; 32])),
            consortium: ConsortiumId(Digest([4; 32])),
            member: MemberIndex(1),
            ballot: Some(Digest([5; 32])),
            calibration: Some(Digest([6; 32])),
            preview: Some(Digest([7; 32])),
            policy: None,
            approved_unix_ms: 1_700_000_000_000,
            person: "Ada Example".to_owned(),
            role: "data protection officer".to_owned(),
            program: "fedprune 0.1.0".to_owned(),
            previous: None,
        }
    }

    #[test]
    fn bytes_are_pinned() {
        let bytes = approval().preimage();
        assert_eq!(bytes.len(), 32 + 2 + 32 + 32 + 4 + 1 + 2 + 4 * 33 + 8 + 3 * 32 + 32);
        assert_eq!(Digest::of(&bytes).to_string(), "f2b916837197d292bd081361592979eada244091bfefde996de5d627e6247bff");
    }

    /// Whatever is changed, the signature is of something else.
    #[test]
    fn every_field_is_signed() {
        let signed = approval().sign(&key(1)).unwrap();
        assert_eq!(signed.check(&key(1).verifying_key()), Ok(&approval()));
        assert!(matches!(signed.check(&key(2).verifying_key()), Err(ApprovalError::Signature { .. })));
        let other = Some(Digest([9; 32]));
        let changes: [&dyn Fn(&mut Approval); 13] = [
            &|approval| approval.round = RoundId(Digest([9; 32])),
            &|approval| approval.consortium = ConsortiumId(Digest([9; 32])),
            &|approval| approval.member = MemberIndex(2),
            &|approval| approval.ballot = other,
            &|approval| approval.ballot = None,
            &|approval| approval.calibration = other,
            &|approval| approval.preview = other,
            &|approval| approval.policy = other,
            &|approval| approval.approved_unix_ms += 1,
            &|approval| approval.person = "Eve".to_owned(),
            &|approval| approval.role = String::new(),
            &|approval| approval.program = "fedprune 9".to_owned(),
            &|approval| approval.previous = other,
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut changed = signed.clone();
            change(&mut changed.approval);
            assert!(changed.check(&key(1).verifying_key()).is_err(), "change {number}");
            assert_ne!(changed.digest(), signed.digest(), "change {number}");
        }
    }

    #[test]
    fn the_domain_is_of_no_statement_and_not_of_libp2p() {
        assert_eq!(DOMAIN[DOMAIN_BYTES - 1], 0);
        for kind in Kind::ALL {
            assert_ne!(kind.domain().as_bytes(), DOMAIN);
        }
        for foreign in ["noise-libp2p-static-key:", "libp2p-tls-handshake:", "libp2p-pubsub:"] {
            assert_ne!(foreign.as_bytes()[0], DOMAIN[0]);
        }
    }

    #[test]
    fn names_are_bounded() {
        let mut long = approval();
        long.person = "a".repeat(MAX_NAME_BYTES + 1);
        assert_eq!(long.sign(&key(1)), Err(ApprovalError::Name { what: "person" }));
        let mut lines = approval();
        lines.role = "one\ntwo".to_owned();
        assert_eq!(lines.sign(&key(1)), Err(ApprovalError::Name { what: "role" }));
    }
}
