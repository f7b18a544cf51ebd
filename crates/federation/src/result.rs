//! Which mask a member derived from the agreed ballots; q equal results complete a certificate.
//!
//! Content on the wire and under the signature: the mask root (32).

use fedprune_mask::Digest;
use fedprune_mask::codec::bincode;

use crate::ids::Quorum;
use crate::signing::Kind;
use crate::statement::{SignatureChecked, Statement};
use crate::wire::Content;

/// The root of the global mask that a member derived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
#[bincode(crate = "fedprune_mask::codec::bincode")]
pub struct MaskResult {
    /// BLAKE3 of layout digest and matrix digests.
    pub mask_root: Digest,
}

impl Statement for MaskResult {
    const KIND: Kind = Kind::Result;
    const CONTENT: Content = Content::MaskResult;

    fn fields(&self) -> Vec<u8> {
        self.mask_root.0.to_vec()
    }

    fn check(&self, _members: usize) -> Result<(), &'static str> {
        Ok(())
    }
}

/// The one mask root that at least q members of the slot of `first` derived, if there is one.
///
/// Statements of other rounds and heights do not count, nor does a member twice: its first result counts.
pub fn agreed_root(results: &[SignatureChecked<MaskResult>], quorum: Quorum) -> Option<Digest> {
    let first = results.first()?;
    let place = |result: &SignatureChecked<MaskResult>| (result.consortium(), result.round(), result.height());
    let mut by_member = std::collections::BTreeMap::new();
    for result in results.iter().filter(|result| place(result) == place(first)) {
        by_member.entry(result.member()).or_insert(result.content().mask_root);
    }
    let mut members = std::collections::BTreeMap::<Digest, usize>::new();
    for root in by_member.into_values() {
        let count = members.entry(root).or_default();
        *count = count.saturating_add(1);
    }
    members.into_iter().find(|(_, count)| *count >= quorum.q()).map(|(root, _)| root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Height, RoundId};
    use crate::testing::{consortium_of, key};

    fn result(member: usize, height: u32, root: &str) -> SignatureChecked<MaskResult> {
        let content = MaskResult { mask_root: Digest::of(root.as_bytes()) };
        let round = RoundId(Digest([3; 32]));
        SignatureChecked::sign(content, Height(height), &key(member), &consortium_of(4), round).unwrap()
    }

    #[test]
    fn bytes_are_pinned() {
        let signed = result(1, 7, "root");
        assert_eq!(signed.encode().len(), 11 + 2 + 4 + 32 + 64);
        assert_eq!(
            Digest::of(&signed.preimage()).to_string(),
            "e75ca07ba552fe8a0090177a465ed19bcf175df332aa2efffae1159caf6f88b2"
        );
        assert_eq!(
            Digest::of(&signed.encode()).to_string(),
            "6d54ca3cc3191bb95ac17f6c925e526c8c5e2f1faf7615108650037fd7b58523"
        );
    }

    #[test]
    fn a_quorum_of_members_makes_a_root() {
        let quorum = Quorum::of(4).unwrap();
        let root = Some(Digest::of(b"a"));
        assert_eq!(agreed_root(&[result(0, 0, "a"), result(1, 0, "a"), result(3, 0, "a")], quorum), root);
        assert_eq!(agreed_root(&[result(0, 0, "a"), result(1, 0, "b"), result(3, 0, "a")], quorum), None);
        assert_eq!(agreed_root(&[result(0, 0, "a"), result(1, 0, "a"), result(1, 0, "a")], quorum), None);
        assert_eq!(agreed_root(&[result(0, 0, "a"), result(1, 0, "a"), result(2, 1, "a")], quorum), None);
        assert_eq!(agreed_root(&[], quorum), None);
    }
}
