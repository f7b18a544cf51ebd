//! The manifest against everything that f faulty members can say, and decisions as bytes.

use super::*;
use crate::testing::{consortium_of, key, named_consortium, round, terms};
use proptest::prelude::*;
use std::sync::LazyLock;

static CONSORTIUMS: LazyLock<Vec<Ratified>> = LazyLock::new(|| (0..=13).map(|n| consortium_of(n.max(1))).collect());

fn digest(member: usize, version: u8) -> Digest {
    Digest::of(&[member as u8, version])
}

fn round_with_minimum(consortium: &Ratified, minimum_ballots: u16) -> Round {
    let mut terms = terms(consortium.consortium());
    terms.minimum_ballots = minimum_ballots;
    Round::new(terms, consortium.consortium()).unwrap()
}

fn say(
    consortium: &Ratified,
    round: &Round,
    height: u32,
    member: usize,
    ballots: Vec<Option<Digest>>,
) -> SignatureChecked<Holdings> {
    let holdings = Holdings::from_digests(ballots);
    SignatureChecked::sign(holdings, Height(height), &key(member), consortium, round.id()).unwrap()
}

/// Statements of the members 0, 1 and 2 of four, who hold what is listed: 0 none, otherwise a version.
fn statements(lists: [[u8; 4]; 3]) -> (Ratified, Round, Vec<SignatureChecked<Holdings>>) {
    let consortium = consortium_of(4);
    let round = round_with_minimum(&consortium, 1);
    let said = lists.iter().enumerate().map(|(member, list)| {
        let ballots = list.iter().enumerate().map(|(of, version)| (*version > 0).then(|| digest(of, *version)));
        say(&consortium, &round, 0, member, ballots.collect())
    });
    let said = said.collect();
    (consortium, round, said)
}

#[test]
fn a_digest_in_f_plus_one_statements_counts() {
    let (consortium, round, said) = statements([[1, 1, 0, 1], [1, 0, 0, 2], [1, 1, 1, 0]]);
    let manifest = Manifest::from_holdings(&said, Height(0), &consortium, &round).unwrap();
    assert_eq!(manifest.ballots(), [Some(digest(0, 1)), Some(digest(1, 1)), None, None]);
    let contributors: Vec<_> = manifest.contributors().map(|(member, _)| member.0).collect();
    assert_eq!((contributors, manifest.count()), (vec![0, 1], 2));
}

#[test]
fn none_counts_where_two_qualify() {
    // five members tolerate one fault, and four statements hold two pairs
    let consortium = consortium_of(5);
    let round = round_with_minimum(&consortium, 1);
    let version = |member: usize| if member < 2 { 1 } else { 2 };
    let said: Vec<_> = (0..4)
        .map(|member| {
            let ballots = vec![Some(digest(0, version(member))), Some(digest(1, 1)), None, None, None];
            say(&consortium, &round, 0, member, ballots)
        })
        .collect();
    let manifest = Manifest::from_holdings(&said, Height(0), &consortium, &round).unwrap();
    assert_eq!(manifest.ballots()[..2], [None, Some(digest(1, 1))]);
}

#[test]
fn refuses_statements_that_do_not_belong_together() {
    let (consortium, round, said) = statements([[1; 4]; 3]);
    let make = |said: &[SignatureChecked<Holdings>]| Manifest::from_holdings(said, Height(0), &consortium, &round);
    assert!(make(&said).is_ok());
    assert_eq!(make(&said[..2]), Err(ManifestError::Count { found: 2, q: 3 }));
    let fourth = say(&consortium, &round, 0, 3, vec![None; 4]);
    assert_eq!(make(&[said.clone(), vec![fourth]].concat()), Err(ManifestError::Count { found: 4, q: 3 }));
    let twice = [said[0].clone(), said[1].clone(), say(&consortium, &round, 0, 0, vec![None; 4])];
    assert_eq!(make(&twice), Err(ManifestError::Duplicate(MemberIndex(0))));
    let other_height = say(&consortium, &round, 1, 2, vec![None; 4]);
    let other_round = say(&consortium, &round_with_minimum(&consortium, 2), 0, 2, vec![None; 4]);
    let others = named_consortium("others", 4);
    let other_consortium = say(&others, &round, 0, 2, vec![None; 4]);
    for stray in [other_height, other_round, other_consortium] {
        assert_eq!(make(&[said[0].clone(), said[1].clone(), stray]), Err(ManifestError::Elsewhere(MemberIndex(2))));
    }
    let error = Manifest::from_holdings(&said, Height(0), &others, &round).unwrap_err();
    assert_eq!(error, ManifestError::OtherConsortium);
}

#[test]
fn too_few_ballots_make_no_manifest() {
    let (consortium, _, _) = statements([[1; 4]; 3]);
    let round = round_with_minimum(&consortium, 3);
    let said: Vec<_> = (0..3)
        .map(|member| say(&consortium, &round, 0, member, vec![Some(digest(0, 1)), Some(digest(1, 1)), None, None]))
        .collect();
    let error = Manifest::from_holdings(&said, Height(0), &consortium, &round).unwrap_err();
    assert_eq!(error, ManifestError::TooFewBallots { found: 2, minimum: 3 });
}

fn decided(mask_root: Option<Digest>, tally: TallyBy) -> (Ratified, Round, Result<Decision, DecisionError>) {
    let consortium = consortium_of(4);
    let mut terms = terms(consortium.consortium());
    terms.tally = tally;
    let round = Round::new(terms, consortium.consortium()).unwrap();
    let ballots: Vec<_> = (0..4).map(|member| (member != 2).then(|| digest(member, 1))).collect();
    let said: Vec<_> = (0..3).map(|member| say(&consortium, &round, 0, member, ballots.clone())).collect();
    let manifest = Manifest::from_holdings(&said, Height(0), &consortium, &round).unwrap();
    let decision = Decision::manifest(manifest, mask_root, &consortium, &round);
    (consortium, round, decision)
}

#[test]
fn values_are_pinned() {
    let root = Some(Digest::of(b"root"));
    for (mask_root, tally, golden) in [
        (None, TallyBy::EveryPeer, "0b76a3c753dd3f2048adc694454526659712a729cbf10536b40a68f5f2a85e6b"),
        (root, TallyBy::Elected, "84d09eb9bdfb6f7f69a2595adf5d7e8bbe20bcf1865a29f13d18167c8964f0c2"),
    ] {
        let (consortium, round, decision) = decided(mask_root, tally);
        let decision = decision.unwrap();
        assert_eq!(decision.value().to_string(), golden);
        assert_eq!(Decision::decode(&decision.encode(), &consortium, &round).unwrap(), decision);
        assert_eq!((decision.mask_root(), decision.ballots().unwrap().count()), (mask_root, 3));
    }
    let consortium = consortium_of(4);
    let round = round(consortium.consortium());
    let abandoned = Decision::abandoned(Height(2), &consortium, &round);
    assert_eq!(abandoned.value().to_string(), "282f23177df684635fc6fa4967a5b8ea4cc1377f7adf7b0c077720711d4b4e9e");
    let read = Decision::decode(&abandoned.encode(), &consortium, &round).unwrap();
    assert!(read.is_abandoned() && read.ballots().is_none() && read.height() == Height(2));
}

#[test]
fn decisions_that_the_round_cannot_come_to_are_refused() {
    let root = Some(Digest::of(b"root"));
    for (mask_root, tally) in [(root, TallyBy::EveryPeer), (None, TallyBy::Elected)] {
        let (_, _, decision) = decided(mask_root, tally);
        assert!(matches!(decision.unwrap_err(), DecisionError::MaskRoot(..)));
    }
    let (consortium, round, decision) = decided(None, TallyBy::EveryPeer);
    let bytes = decision.unwrap().encode();
    let other = round_with_minimum(&consortium, 2);
    assert!(matches!(Decision::decode(&bytes, &consortium, &other), Err(DecisionError::OtherRound)));
    let encode = |ballots: Vec<Option<Digest>>| {
        let outcome = Outcome::Manifest { ballots, mask_root: None };
        wire::encode(Content::Decision, &(consortium.id(), round.id(), Height(0), outcome))
    };
    let all = vec![root; 5];
    let error = Decision::decode(&encode(all), &consortium, &round).unwrap_err();
    assert!(matches!(error, DecisionError::Members { found: 5, members: 4 }));
    let error = Decision::decode(&encode(vec![root, root, None, None]), &consortium, &round).unwrap_err();
    assert!(matches!(error, DecisionError::TooFewBallots { found: 2, minimum: 3 }));
    let huge = wire::encode(Content::Decision, &vec![0u8; DECISION_LIMIT]);
    assert!(matches!(Decision::decode(&huge, &consortium, &round), Err(DecisionError::Wire(_))));
}

#[test]
fn a_manifest_of_a_thousand_members_fits() {
    let consortium = consortium_of(1000);
    let round = round_with_minimum(&consortium, 1000);
    let ballots = vec![Some(digest(0, 1)); 1000];
    let outcome = Outcome::Manifest { ballots, mask_root: None };
    let decision = Decision { consortium: consortium.id(), round: round.id(), height: Height(0), outcome };
    assert_eq!(Decision::decode(&decision.encode(), &consortium, &round).unwrap(), decision);
}

/// Who is faulty, what is held by whom, and which q members are asked.
#[derive(Debug, Clone)]
struct World {
    n: usize,
    faulty: Vec<usize>,
    /// For each speaker and each subject: 0 none, 1 or 2 a version of its ballot.
    held: Vec<Vec<u8>>,
    /// Members that all honest ones hold version 1 of.
    everywhere: Vec<bool>,
    asked: Vec<usize>,
    shuffled: Vec<usize>,
}

fn world() -> impl Strategy<Value = World> {
    (4usize..=13)
        .prop_flat_map(|n| {
            let quorum = crate::Quorum::of(n).unwrap();
            let members: Vec<usize> = (0..n).collect();
            let asked = proptest::sample::subsequence(members.clone(), quorum.q());
            (
                Just(n),
                proptest::sample::subsequence(members, 0..=quorum.f()),
                proptest::collection::vec(proptest::collection::vec(0u8..=2, n), n),
                proptest::collection::vec(any::<bool>(), n),
                asked.clone(),
                asked.prop_shuffle(),
            )
        })
        .prop_map(|(n, faulty, held, everywhere, asked, _)| {
            let shuffled = asked.iter().rev().copied().collect();
            World { n, faulty, held, everywhere, asked, shuffled }
        })
}

impl World {
    fn holds(&self, speaker: usize, subject: usize) -> Option<Digest> {
        let honest = !self.faulty.contains(&speaker);
        let mut version = self.held[speaker][subject];
        if honest && self.everywhere[subject] {
            version = 1;
        } else if honest && !self.faulty.contains(&subject) {
            version = version.min(1); // honest members have one ballot
        }
        (version > 0).then(|| digest(subject, version))
    }

    fn said(&self, members: &[usize], consortium: &Ratified, round: &Round) -> Vec<SignatureChecked<Holdings>> {
        let list = |speaker| (0..self.n).map(|subject| self.holds(speaker, subject)).collect();
        members.iter().map(|&speaker| say(consortium, round, 0, speaker, list(speaker))).collect()
    }
}

proptest! {
    #[test]
    fn what_all_honest_members_hold_is_in_and_what_is_in_an_honest_member_holds(world in world(), rotate in 0usize..13) {
        let consortium = &CONSORTIUMS[world.n];
        let round = round_with_minimum(consortium, 1);
        let mut said = world.said(&world.asked, consortium, &round);
        let made = Manifest::from_holdings(&said, Height(0), consortium, &round);
        // the order of statements does not matter
        let turn = rotate % said.len();
        said.rotate_left(turn);
        prop_assert_eq!(&Manifest::from_holdings(&said, Height(0), consortium, &round), &made);
        let said = world.said(&world.shuffled, consortium, &round);
        prop_assert_eq!(&Manifest::from_holdings(&said, Height(0), consortium, &round), &made);

        let honest = || (0..world.n).filter(|member| !world.faulty.contains(member));
        let everywhere = world.everywhere.iter().any(|everywhere| *everywhere);
        let manifest = match made {
            Ok(manifest) => manifest,
            Err(error) => {
                let none = ManifestError::TooFewBallots { found: 0, minimum: 1 };
                prop_assert!(error == none && !everywhere, "{error}");
                return Ok(());
            }
        };
        for subject in 0..world.n {
            let listed = manifest.ballots()[subject];
            if world.everywhere[subject] {
                prop_assert_eq!(listed, Some(digest(subject, 1)), "left out");
            }
            if let Some(digest) = listed {
                prop_assert!(honest().any(|member| world.holds(member, subject) == Some(digest)), "held by none");
            }
        }
    }

    #[test]
    fn damaged_decisions_are_refused_or_have_another_value(at in 0usize..10_000, bit in 0u8..8, cut in 0usize..10_000) {
        let (consortium, round, decision) = decided(None, TallyBy::EveryPeer);
        let decision = decision.unwrap();
        let bytes = decision.encode();
        prop_assert!(Decision::decode(&bytes[..cut % bytes.len()], &consortium, &round).is_err());
        let mut flipped = bytes.clone();
        flipped[at % bytes.len()] ^= 1 << bit;
        if let Ok(other) = Decision::decode(&flipped, &consortium, &round) {
            prop_assert_ne!(other.value(), decision.value());
            prop_assert_eq!(other.encode(), flipped);
        }
    }
}
