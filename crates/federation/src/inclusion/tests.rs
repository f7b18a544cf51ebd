use super::*;
use crate::holdings::Holdings;
use crate::manifest::Manifest;
use crate::round::{Strategy, Terms};
use crate::testing::{consortium_of, key, terms};
use crate::vote::Precommit;

struct Small {
    consortium: Ratified,
    round: Round,
}

impl Small {
    fn with(change: impl FnOnce(&mut Terms)) -> Self {
        let consortium = consortium_of(4);
        let mut terms = terms(consortium.consortium());
        change(&mut terms);
        Self { round: Round::new(terms, consortium.consortium()).unwrap(), consortium }
    }

    fn new() -> Self {
        Self::with(|_| ())
    }

    fn sign<T: crate::Statement>(&self, content: T, height: u32, member: usize) -> SignatureChecked<T> {
        SignatureChecked::sign(content, Height(height), &key(member), &self.consortium, self.round.id()).unwrap()
    }

    fn body(member: usize) -> Digest {
        Digest::of(&[member as u8])
    }

    fn header(&self, height: u32, member: usize) -> SignatureChecked<BallotHeader> {
        self.sign(BallotHeader { body: Self::body(member), body_bytes: 7, claimed_unix_ms: 1 }, height, member)
    }

    /// That the ballots of the first three count.
    fn decision(&self, height: u32) -> Decision {
        let held = |member: usize| (member < 3).then(|| Self::body(member));
        let holdings = Holdings::from_digests((0..4).map(held).collect());
        let statements = [0, 1, 3].map(|member| self.sign(holdings.clone(), height, member));
        let manifest = Manifest::from_holdings(&statements, Height(height), &self.consortium, &self.round).unwrap();
        let root = (self.round.terms().tally == TallyBy::Elected).then(|| Digest::of(b"root"));
        Decision::manifest(manifest, root, &self.consortium, &self.round).unwrap()
    }

    fn certificate(&self, decision: &Decision) -> Certificate {
        let content = Precommit { view: 1, value: Some(decision.value()) };
        let votes = [3, 0, 1, 2].map(|member| self.sign(content, decision.height().0, member));
        Certificate::from_precommits(&votes, &self.consortium).unwrap()
    }

    fn result(&self, height: u32, member: usize, root: &str) -> SignatureChecked<MaskResult> {
        self.sign(MaskResult { mask_root: Digest::of(root.as_bytes()) }, height, member)
    }

    fn included(&self, height: u32, member: usize) -> Result<IncludedBallot, InclusionError> {
        let (decision, elected) = (self.decision(height), self.round.terms().tally == TallyBy::Elected);
        let certificate = self.certificate(&decision);
        let results = [(3, "root"), (1, "other"), (2, "root"), (0, "root"), (2, "root")];
        let results = results.map(|(member, root)| self.result(height, member, root));
        let results = if elected { &results[..0] } else { &results };
        let header = self.header(height, member);
        IncludedBallot::new(header, decision, certificate, results, &self.consortium, &self.round)
    }

    fn proof(&self) -> Inclusion {
        let heights = vec![self.included(0, 1).unwrap()];
        Inclusion::new(&self.consortium, &self.round, heights).unwrap()
    }

    fn check(&self, bytes: &[u8]) -> Result<Inclusion, InclusionError> {
        ReceivedInclusion::decode(bytes)?.check(self.consortium.id(), Some(self.round.id()))
    }
}

#[test]
fn bytes_are_pinned_and_check() {
    let small = Small::new();
    let bytes = small.proof().encode();
    let read = small.check(&bytes).unwrap();
    assert_eq!(read, small.proof());
    assert_eq!((read.member(), read.heights().len()), (MemberIndex(1), 1));
    let height = &read.heights()[0];
    assert_eq!((height.header().body, height.mask_root()), (Small::body(1), Digest::of(b"root")));
    assert_eq!((height.ballots(), height.committed().count(), height.results.len()), (3, 4, 3));
    assert_eq!(Digest::of(&bytes).to_string(), "5c30e0e156de56a4b7e64bcebc52e1d31774e2ba621ea8bc1e8704d573f08134");
}

/// The property of the module: nothing that anybody changes on the way is believed.
#[test]
fn every_changed_byte_is_refused() {
    for small in [Small::new(), Small::with(|terms| terms.tally = TallyBy::Elected)] {
        let bytes = small.proof().encode();
        for at in 0..bytes.len() {
            for bits in [1, 0x80] {
                let mut changed = bytes.clone();
                changed[at] ^= bits;
                // whoever pins the consortium alone learns the same
                let read = ReceivedInclusion::decode(&changed)
                    .map_err(InclusionError::from)
                    .and_then(|received| received.check(small.consortium.id(), None));
                assert!(read.is_err(), "byte {at} ^ {bits} of {} changes nothing", bytes.len());
            }
        }
        for length in 0..bytes.len() {
            assert!(ReceivedInclusion::decode(&bytes[..length]).is_err(), "{length}");
        }
    }
}

#[test]
fn what_is_not_counted_is_not_proven() {
    let small = Small::new();
    assert!(matches!(small.included(0, 3), Err(InclusionError::NotCounted { member: MemberIndex(3), .. })));
    let (decision, header) = (small.decision(0), small.header(0, 1));
    let certificate = small.certificate(&decision);
    let make = |header: SignatureChecked<BallotHeader>, certificate: Certificate, results: &[_]| {
        IncludedBallot::new(header, decision.clone(), certificate, results, &small.consortium, &small.round)
    };
    let results = [0, 1, 2].map(|member| small.result(0, member, "root"));
    assert!(make(header.clone(), certificate.clone(), &results).is_ok());
    let error = make(header.clone(), certificate.clone(), &results[..2]).unwrap_err();
    assert!(matches!(error, InclusionError::Results { found: 0, wanted: 3, .. }), "{error}");
    let abandoned = Decision::abandoned(Height(0), &small.consortium, &small.round);
    let error = make(header.clone(), small.certificate(&abandoned), &results).unwrap_err();
    assert!(matches!(error, InclusionError::OtherDecision(Height(0))), "{error}");
    let error = make(small.header(1, 1), certificate.clone(), &results).unwrap_err();
    assert!(matches!(error, InclusionError::Mixed(Height(1))), "{error}");
    let error = make(header, certificate, &[0, 1, 2].map(|member| small.result(1, member, "root"))).unwrap_err();
    assert!(matches!(error, InclusionError::Mixed(Height(0))), "{error}");
}

#[test]
fn another_consortium_or_round_is_told() {
    let small = Small::new();
    let bytes = small.proof().encode();
    let received = || ReceivedInclusion::decode(&bytes).unwrap();
    let other = consortium_of(5).id();
    assert!(matches!(received().check(other, None), Err(InclusionError::OtherConsortium { .. })));
    let round = RoundId(Digest::of(b"other"));
    assert!(matches!(received().check(small.consortium.id(), Some(round)), Err(InclusionError::OtherRound { .. })));
    assert!(received().check(small.consortium.id(), None).is_ok());
}

#[test]
fn a_quorum_of_results_is_needed_and_no_more() {
    let small = Small::new();
    let change = |change: &dyn Fn(&mut HeightWire)| {
        let mut received = ReceivedInclusion::decode(&small.proof().encode()).unwrap();
        change(&mut received.0.heights[0]);
        small.check(&wire::encode(Content::Inclusion, &received.0)).unwrap_err()
    };
    let is_results = |error: InclusionError| matches!(error, InclusionError::Results { .. });
    assert!(is_results(change(&|height| height.results.truncate(2))));
    assert!(is_results(change(&|height| height.results.push(small.result(0, 1, "root").encode()))));
    assert!(is_results(change(&|height| height.results.swap(0, 1))));
    assert!(is_results(change(&|height| height.results[1] = height.results[0].clone())));
    assert!(is_results(change(&|height| height.results[2] = small.result(0, 3, "other").encode())));
}

#[test]
fn heights_of_an_iterative_round_ascend_and_are_of_one_member() {
    let small = Small::with(|terms| terms.strategy = Strategy::Iterative);
    let included = |height, member| small.included(height, member).unwrap();
    let make = |heights| Inclusion::new(&small.consortium, &small.round, heights);
    let proof = make(vec![included(0, 1), included(1, 1), included(4, 1)]).unwrap();
    assert_eq!(small.check(&proof.encode()).unwrap(), proof);
    assert!(matches!(make(Vec::new()), Err(InclusionError::Heights)));
    assert!(matches!(make(vec![included(1, 1), included(0, 1)]), Err(InclusionError::Heights)));
    assert!(matches!(make(vec![included(1, 1), included(1, 1)]), Err(InclusionError::Heights)));
    let several = make(vec![included(0, 1), included(1, 2)]);
    assert!(matches!(several, Err(InclusionError::SeveralMembers(MemberIndex(1), MemberIndex(2)))));
}
