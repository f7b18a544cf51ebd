//! Proof that a quorum committed to one value of one height: q precommits of one view.
//!
//! Whoever has the consortium and the round can check it, without having been there. On the wire after the
//! prefix: consortium id (32), round id (32), height (4), view (4), value (32), number (8), then for each
//! precommit, members ascending: member (2), signature (64) over the preimage of that member's precommit.

use fedprune_mask::Digest;
use fedprune_mask::codec::bincode::{Decode, Encode};

use crate::consortium::Ratified;
use crate::ids::{ConsortiumId, Height, MemberIndex, RoundId};
use crate::signing::Signature;
use crate::statement::{Received, SignatureChecked, Signed, StatementError};
use crate::vote::Precommit;
use crate::wire::{self, Content, WireError};

/// Most bytes of a certificate after its prefix: fits 1000 members.
pub const CERTIFICATE_LIMIT: usize = 128 << 10;

/// A certificate as it arrived; proves nothing yet.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct ReceivedCertificate {
    consortium: ConsortiumId,
    round: RoundId,
    height: Height,
    view: u32,
    value: Digest,
    precommits: Vec<(MemberIndex, Signature)>,
}

/// A certificate that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate(ReceivedCertificate);

/// Why a certificate proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Not a certificate.
    #[error("the certificate cannot be read")]
    Wire(#[from] WireError),
    /// Of another consortium or round.
    #[error("the certificate is of another consortium or round")]
    OtherRound,
    /// Too few members committed.
    #[error("the certificate has {found} precommits, and {q} are needed")]
    TooFew {
        /// Precommits.
        found: usize,
        /// The quorum.
        q: usize,
    },
    /// A member twice, or out of order.
    #[error("the certificate's precommits are not in order at member {0}")]
    Order(MemberIndex),
    /// A precommit that its member did not make.
    #[error("a precommit of the certificate does not count")]
    Precommit(#[from] StatementError),
    /// Precommits of different views or values make no certificate.
    #[error("the precommits are not all of one height, view and value")]
    Mixed,
}

impl ReceivedCertificate {
    /// Reads a certificate.
    ///
    /// # Errors
    /// [`WireError`] for bytes that are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode::<_, CERTIFICATE_LIMIT>(Content::Certificate, bytes)
    }

    /// Of which height it speaks.
    pub fn claimed_height(&self) -> Height {
        self.height
    }

    /// Checks that q members committed to the value.
    ///
    /// # Errors
    /// [`CertificateError`] when it proves nothing in `round`.
    pub fn check(self, consortium: &Ratified, round: RoundId) -> Result<Certificate, CertificateError> {
        if (self.consortium, self.round) != (consortium.id(), round) {
            return Err(CertificateError::OtherRound);
        }
        // order first: there are then no more signatures to check than members
        if let Some([_, (member, _)]) = self.precommits.array_windows().find(|[a, b]| a.0 >= b.0) {
            return Err(CertificateError::Order(*member));
        }
        let (found, q) = (self.precommits.len(), consortium.quorum().q());
        if found < q {
            return Err(CertificateError::TooFew { found, q });
        }
        for (member, signature) in &self.precommits {
            let content = Precommit { view: self.view, value: Some(self.value) };
            let signed = Signed { member: *member, height: self.height, content, signature: *signature };
            Received(signed).check(consortium, round)?;
        }
        Ok(Certificate(self))
    }
}

impl Certificate {
    /// What these precommits prove; more than a quorum are kept.
    ///
    /// # Errors
    /// [`CertificateError`] when they are too few, or not of one height, view and value.
    pub fn from_precommits(
        precommits: &[SignatureChecked<Precommit>],
        consortium: &Ratified,
    ) -> Result<Self, CertificateError> {
        let (found, q) = (precommits.len(), consortium.quorum().q());
        let first = precommits.first().ok_or(CertificateError::TooFew { found, q })?;
        let place =
            |vote: &SignatureChecked<Precommit>| (vote.consortium(), vote.round(), vote.height(), *vote.content());
        let value = first.content().value.ok_or(CertificateError::Mixed)?;
        if first.consortium() != consortium.id() || precommits.iter().any(|vote| place(vote) != place(first)) {
            return Err(CertificateError::Mixed);
        }
        let mut signatures: Vec<_> = precommits.iter().map(|vote| (vote.member(), vote.signature())).collect();
        signatures.sort_unstable_by_key(|(member, _)| *member);
        signatures.dedup_by_key(|(member, _)| *member);
        if signatures.len() < q {
            return Err(CertificateError::TooFew { found: signatures.len(), q });
        }
        Ok(Self(ReceivedCertificate {
            consortium: first.consortium(),
            round: first.round(),
            height: first.height(),
            view: first.content().view,
            value,
            precommits: signatures,
        }))
    }

    /// The certificate as it travels and is stored.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(Content::Certificate, &self.0)
    }

    /// Of which height.
    pub fn height(&self) -> Height {
        self.0.height
    }

    /// In which view it was decided.
    pub fn view(&self) -> u32 {
        self.0.view
    }

    /// What was decided: the value of a [`crate::Decision`].
    pub fn value(&self) -> Digest {
        self.0.value
    }

    /// Who committed to it, ascending.
    pub fn members(&self) -> impl Iterator<Item = MemberIndex> + '_ {
        self.0.precommits.iter().map(|(member, _)| *member)
    }

    pub(crate) fn received(&self) -> &ReceivedCertificate {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{consortium_of, key};

    const ROUND: RoundId = RoundId(Digest([3; 32]));

    fn precommit(member: usize, view: u32, value: Option<&str>) -> SignatureChecked<Precommit> {
        let content = Precommit { view, value: value.map(|text| Digest::of(text.as_bytes())) };
        SignatureChecked::sign(content, Height(2), &key(member), &consortium_of(4), ROUND).unwrap()
    }

    fn certificate() -> Certificate {
        let votes = [3, 0, 2].map(|member| precommit(member, 1, Some("a")));
        Certificate::from_precommits(&votes, &consortium_of(4)).unwrap()
    }

    #[test]
    fn bytes_are_pinned_and_check() {
        let bytes = certificate().encode();
        let read = ReceivedCertificate::decode(&bytes).unwrap().check(&consortium_of(4), ROUND).unwrap();
        assert_eq!(read, certificate());
        assert_eq!(read.members().map(|member| member.0).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(bytes.len(), 11 + 32 + 32 + 4 + 4 + 32 + 8 + 3 * 66);
        assert_eq!(Digest::of(&bytes).to_string(), "94c0d3ed2d90e9b2f00f26ad6dcbadf7805f679478e01578c3f16b33e4fce952");
    }

    #[test]
    fn precommits_that_prove_nothing_make_none() {
        let make = |votes: &[SignatureChecked<Precommit>]| Certificate::from_precommits(votes, &consortium_of(4));
        let a = |member| precommit(member, 1, Some("a"));
        assert!(matches!(make(&[a(0), a(1)]), Err(CertificateError::TooFew { found: 2, q: 3 })));
        assert!(matches!(make(&[a(0), a(1), a(1)]), Err(CertificateError::TooFew { found: 2, q: 3 })));
        assert!(matches!(make(&[a(0), a(1), precommit(2, 1, Some("b"))]), Err(CertificateError::Mixed)));
        assert!(matches!(make(&[a(0), a(1), precommit(2, 2, Some("a"))]), Err(CertificateError::Mixed)));
        assert!(matches!(make(&[0, 1, 2].map(|member| precommit(member, 1, None))), Err(CertificateError::Mixed)));
        assert!(make(&[]).is_err());
    }

    #[test]
    fn certificates_that_prove_nothing_are_refused() {
        let consortium = consortium_of(4);
        let check = |change: &dyn Fn(&mut ReceivedCertificate)| {
            let mut received = certificate().0;
            change(&mut received);
            received.check(&consortium, ROUND).unwrap_err()
        };
        assert!(matches!(check(&|c| c.height = Height(3)), CertificateError::Precommit(_)));
        assert!(matches!(check(&|c| c.view = 2), CertificateError::Precommit(_)));
        assert!(matches!(check(&|c| c.value = Digest::of(b"b")), CertificateError::Precommit(_)));
        assert!(matches!(check(&|c| c.round = RoundId(Digest([4; 32]))), CertificateError::OtherRound));
        assert!(matches!(check(&|c| c.precommits.truncate(2)), CertificateError::TooFew { found: 2, q: 3 }));
        assert!(matches!(check(&|c| c.precommits[1] = c.precommits[0]), CertificateError::Order(MemberIndex(0))));
        assert!(matches!(check(&|c| c.precommits[2].0 = MemberIndex(9)), CertificateError::Precommit(_)));
        assert!(matches!(check(&|c| c.precommits.swap(0, 1)), CertificateError::Order(_)));
        assert!(certificate().0.check(&consortium, RoundId(Digest([4; 32]))).is_err());
    }

    #[test]
    fn oversized_certificates_are_refused_unread() {
        let bytes = wire::encode(Content::Certificate, &vec![0u8; CERTIFICATE_LIMIT]);
        assert!(ReceivedCertificate::decode(&bytes).is_err());
    }
}
