use super::*;
use crate::testing::{consortium_of, key, round};
use proptest::prelude::*;

fn holdings(member: usize, ballots: &[Option<&str>]) -> SignatureChecked<Holdings> {
    let consortium = consortium_of(4);
    let digests = ballots.iter().map(|ballot| ballot.map(|text| Digest::of(text.as_bytes()))).collect();
    let round = round(consortium.consortium()).id();
    SignatureChecked::sign(Holdings::from_digests(digests), Height(0), &key(member), &consortium, round).unwrap()
}

fn all(member: usize) -> SignatureChecked<Holdings> {
    holdings(member, &[Some("a"), Some("b"), Some("c"), Some("d")])
}

fn three(member: usize) -> SignatureChecked<Holdings> {
    holdings(member, &[Some("a"), Some("b"), Some("c"), None])
}

fn justified() -> Justified {
    let consortium = consortium_of(4);
    let statements = [all(3), three(1), all(0)];
    Justified::from_holdings(&statements, Height(0), None, &consortium, &round(consortium.consortium())).unwrap()
}

fn proposal(value: Digest, height: u32) -> SignatureChecked<Proposal> {
    let consortium = consortium_of(4);
    let content = Proposal { view: 2, value, valid_view: None };
    SignatureChecked::sign(content, Height(height), &key(2), &consortium, round(consortium.consortium()).id()).unwrap()
}

fn proposed() -> Proposed {
    Proposed::new(proposal(justified().decision().value(), 0), justified()).unwrap()
}

fn settled() -> Settled {
    let consortium = consortium_of(4);
    let round = round(consortium.consortium()).id();
    let content = crate::Precommit { view: 1, value: Some(justified().decision().value()) };
    let votes =
        [0, 1, 2].map(|member| SignatureChecked::sign(content, Height(0), &key(member), &consortium, round).unwrap());
    Settled::new(Certificate::from_precommits(&votes, &consortium).unwrap(), justified()).unwrap()
}

fn check(received: ReceivedProposed) -> Result<Proposed, ProposedError> {
    let consortium = consortium_of(4);
    received.check(&consortium, &round(consortium.consortium()))
}

#[test]
fn bytes_are_pinned_and_check() {
    let bytes = proposed().encode();
    assert_eq!(check(ReceivedProposed::decode(&bytes).unwrap()).unwrap(), proposed());
    assert_eq!(Digest::of(&bytes).to_string(), "1681032033da82efbdedfe995bb8c7181d70f96ed0a2d0616126366aaf24acb4");
    let bytes = settled().encode();
    let consortium = consortium_of(4);
    let read = ReceivedSettled::decode(&bytes).unwrap().check(&consortium, &round(consortium.consortium()));
    assert_eq!(read.unwrap(), settled());
    assert_eq!(Digest::of(&bytes).to_string(), "806919ea72a7337890dd5a2d0a7b1748a4031e9908700ea3d981be1beae3a6fa");
    assert_eq!(justified().statements().iter().map(|one| one.member().0).collect::<Vec<_>>(), [0, 1, 3]);
    // two of the three hold the same: their list travels once
    assert_eq!(justified().wire().lists.len(), 2);
}

#[test]
fn abandoned_heights_rest_on_nothing() {
    let consortium = consortium_of(4);
    let round = round(consortium.consortium());
    let justified = Justified::abandoned(Height(0), &consortium, &round);
    let proposed = Proposed::new(proposal(justified.decision().value(), 0), justified).unwrap();
    let received = ReceivedProposed::decode(&proposed.encode()).unwrap();
    assert_eq!(check(received.clone()).unwrap(), proposed);
    let mut needless = received;
    needless.justified.lists.push(Holdings::none(4));
    assert!(matches!(unfounded(needless), (JustificationError::Needless, false)));
}

fn unfounded(received: ReceivedProposed) -> (JustificationError, bool) {
    match check(received).unwrap_err() {
        ProposedError::Unfounded(unfounded) => {
            let blames = unfounded.blames();
            (unfounded.why, blames)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn what_travels_beside_a_proposal_blames_nobody_and_what_was_signed_does() {
    let changed = |change: &dyn Fn(&mut ReceivedProposed)| {
        let mut received = ReceivedProposed::decode(&proposed().encode()).unwrap();
        change(&mut received);
        unfounded(received)
    };
    assert!(matches!(changed(&|r| r.justified.decision[20] ^= 1), (JustificationError::OtherValue { .. }, false)));
    assert!(matches!(changed(&|r| r.justified.statements.swap(0, 1)), (JustificationError::Order, false)));
    assert!(matches!(changed(&|r| r.justified.lists.swap(0, 1)), (JustificationError::Statement(_), false)));
    assert!(matches!(changed(&|r| r.justified.lists.push(Holdings::none(4))), (JustificationError::Order, false)));
    assert!(matches!(changed(&|r| r.justified.statements[1].1 = 7), (JustificationError::Order, false)));
    assert!(matches!(
        changed(&|r| r.justified.statements.truncate(2)),
        (JustificationError::Order | JustificationError::Manifest(_), false)
    ));
    // a decision of another height, signed by the aggregator
    let wrong = ReceivedProposed {
        proposal: proposal(justified().decision().value(), 1).signed().clone(),
        justified: justified().wire(),
    };
    assert!(matches!(unfounded(wrong), (JustificationError::OtherHeight { .. }, true)));
    let noise = vec![7; 40];
    let wrong = ReceivedProposed {
        proposal: proposal(Digest::of(&noise), 0).signed().clone(),
        justified: Wire { decision: noise, lists: vec![], statements: vec![] },
    };
    assert!(matches!(unfounded(wrong), (JustificationError::Decision(_), true)));
}

/// An aggregator may choose among statements, and nothing else: a manifest that its statements do not make is refused.
#[test]
fn a_manifest_that_the_statements_do_not_make_is_refused() {
    let consortium = consortium_of(4);
    let round = round(consortium.consortium());
    let other =
        Justified::from_holdings(&[three(0), three(1), three(3)], Height(0), None, &consortium, &round).unwrap();
    let wire = Wire { decision: other.decision().encode(), ..justified().wire() };
    let wrong = ReceivedProposed { proposal: proposal(other.decision().value(), 0).signed().clone(), justified: wire };
    assert!(matches!(unfounded(wrong), (JustificationError::OtherManifest(MemberIndex(3)), false)));
}

#[test]
fn a_settled_decision_needs_its_own_grounds() {
    let consortium = consortium_of(4);
    let round = round(consortium.consortium());
    let mut received = ReceivedSettled::decode(&settled().encode()).unwrap();
    received.justified = Justified::abandoned(Height(0), &consortium, &round).wire();
    let error = received.check(&consortium, &round).unwrap_err();
    assert!(matches!(error, SettledError::Justification(JustificationError::OtherValue { .. })), "{error}");
    assert!(Proposed::new(proposal(Digest::of(b"other"), 0), justified()).is_err());
    assert!(Proposed::new(proposal(justified().decision().value(), 1), justified()).is_err());
}

#[test]
fn oversized_proposals_are_refused_unread() {
    let bytes = wire::encode(Content::Proposed, &vec![0u8; PROPOSED_LIMIT]);
    assert!(ReceivedProposed::decode(&bytes).is_err());
    let bytes = wire::encode(Content::Settled, &vec![0u8; PROPOSED_LIMIT]);
    assert!(ReceivedSettled::decode(&bytes).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damage_is_noticed(at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
        let consortium = consortium_of(4);
        let round = round(consortium.consortium());
        for bytes in [proposed().encode(), settled().encode()] {
            let mut flipped = bytes.clone();
            flipped[at % bytes.len()] ^= 1 << bit;
            prop_assert!(ReceivedProposed::decode(&flipped).is_err() || check(ReceivedProposed::decode(&flipped).unwrap()).is_err());
            let read = ReceivedSettled::decode(&flipped);
            prop_assert!(read.is_err() || read.unwrap().check(&consortium, &round).is_err());
            let short = &bytes[..cut % bytes.len()];
            prop_assert!(ReceivedProposed::decode(short).is_err() && ReceivedSettled::decode(short).is_err());
        }
    }
}
