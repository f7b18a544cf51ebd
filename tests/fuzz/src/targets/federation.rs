//! What members say to each other, as bytes and as documents.

use std::sync::LazyLock;

use fedprune_federation::consortium::Origin;
use fedprune_federation::evidence::ReceivedEvidence;
use fedprune_federation::machine::{Question, Record, claims, decode_answer, encode_answer};
use fedprune_federation::round::{Strategy, TallyBy};
use fedprune_federation::statement::Statement;
use fedprune_federation::wire::{Content, content_of};
use fedprune_federation::{
    BallotHeader, Consortium, Decision, Draft, Height, Holdings, Justified, MaskResult, Precommit, Prevote, Proposal,
    Ratified, Received, ReceivedCertificate, ReceivedProposed, ReceivedSettled, Round, SignatureChecked, SigningKey,
    VerifyingKey,
};
use fedprune_mask::Digest;
use fedprune_testnet::simulator::{NEVER_ABANDON_MS, Shape, World};

/// Four members and a round of each kind.
pub(crate) static WORLDS: LazyLock<Vec<World>> = LazyLock::new(|| {
    ROUNDS
        .map(|(strategy, tally)| World::new(Shape { members: 4, strategy, tally, abandon_ms: NEVER_ABANDON_MS }))
        .into()
});

/// The worlds' consortium after its last member renewed its key.
pub(crate) static CHANGED: LazyLock<Ratified> = LazyLock::new(|| {
    let world = &WORLDS[0];
    let key = SigningKey::from_seed(&[77; 32]).expect("a key");
    let mut members = world.consortium.members().to_vec();
    let last = members.last_mut().expect("four members");
    (last.signing_key, last.peer_key) = (key.verifying_key(), key.verifying_key());
    let origin = Origin { predecessor: world.consortium.id(), change: 1 };
    let name = world.consortium.consortium().name().to_owned();
    let consortium = Consortium::successor(name, members, origin).expect("a sound change");
    let mut draft = Draft::succeeding(consortium, world.consortium.clone()).expect("its successor");
    draft.sign(&key).expect("a member");
    for member in 0..3 {
        draft.agree(&world.key(member)).expect("a member before");
    }
    draft.ratify().expect("signed by a quorum")
});

/// The kinds of rounds.
const ROUNDS: [(Strategy, TallyBy); 4] = [
    (Strategy::OneShot, TallyBy::EveryPeer),
    (Strategy::OneShot, TallyBy::Elected),
    (Strategy::Iterative, TallyBy::EveryPeer),
    (Strategy::Iterative, TallyBy::Elected),
];

/// The first body of each member at a height.
pub(crate) fn bodies(world: &World, height: Height) -> Vec<Vec<u8>> {
    (0..world.members()).map(|member| world.body(&format!("text of {member}"), height).to_vec()).collect()
}

/// What a member holds that has all of these.
pub(crate) fn holdings(world: &World, member: usize, height: Height, bodies: &[Vec<u8>]) -> SignatureChecked<Holdings> {
    let digests = bodies.iter().map(|body| Some(Digest::of(body))).collect();
    world.sign(member, Holdings::from_digests(digests), height)
}

/// The decision that all bodies count.
pub(crate) fn justified(world: &World, height: Height) -> Justified {
    let bodies = bodies(world, height);
    let statements: Vec<_> = (0..3).map(|member| holdings(world, member, height, &bodies)).collect();
    let root = (world.round.terms().tally == TallyBy::Elected).then(|| Digest::of(b"mask root"));
    Justified::from_holdings(&statements, height, root, &world.consortium, &world.round).expect("a sound decision")
}

/// Anything that travels between members. The worlds have one consortium, so what is of another round says so.
pub fn message(bytes: &[u8]) -> bool {
    fn statement<T: Statement>(bytes: &[u8]) -> bool {
        let Ok(received) = Received::<T>::decode(bytes) else { return false };
        for world in WORLDS.iter() {
            if let Ok(checked) = received.clone().check(&world.consortium, world.round.id()) {
                assert_eq!(checked.encode(), bytes, "a statement has one encoding");
                assert!(checked.member().as_usize() < world.members());
            }
        }
        true
    }
    let Ok(content) = content_of(bytes) else {
        assert!(claims(bytes).is_err());
        return false;
    };
    let _ = claims(bytes);
    match content {
        Some(Content::BallotHeader) => statement::<BallotHeader>(bytes),
        Some(Content::Holdings) => statement::<Holdings>(bytes),
        Some(Content::MaskResult) => statement::<MaskResult>(bytes),
        Some(Content::Proposal) => statement::<Proposal>(bytes),
        Some(Content::Prevote) => statement::<Prevote>(bytes),
        Some(Content::Precommit) => statement::<Precommit>(bytes),
        Some(Content::Proposed) => every_world(|world| {
            let proposed = ReceivedProposed::decode(bytes).ok()?.check(&world.consortium, &world.round);
            if let Ok(proposed) = proposed {
                assert_eq!(proposed.encode(), bytes, "a proposal has one encoding");
            }
            Some(())
        }),
        Some(Content::Settled) => every_world(|world| {
            let settled = ReceivedSettled::decode(bytes).ok()?.check(&world.consortium, &world.round);
            if let Ok(settled) = settled {
                assert_eq!(settled.encode(), bytes, "a settled decision has one encoding");
            }
            Some(())
        }),
        Some(Content::Certificate) => every_world(|world| {
            let certificate = ReceivedCertificate::decode(bytes).ok()?.check(&world.consortium, world.round.id());
            if let Ok(certificate) = certificate {
                assert_eq!(certificate.encode(), bytes, "a certificate has one encoding");
                assert!(certificate.members().count() >= world.quorum().q());
            }
            Some(())
        }),
        Some(Content::Evidence) => every_world(|world| {
            let evidence = ReceivedEvidence::decode(bytes).ok()?.verify(&world.consortium, world.round.id());
            if let Ok(evidence) = evidence {
                assert_eq!(evidence.encode(), bytes, "evidence has one encoding");
            }
            Some(())
        }),
        Some(Content::Question) => Question::decode(bytes).is_ok_and(|question| {
            assert_eq!(question.encode(), bytes, "a question has one encoding");
            true
        }),
        Some(Content::Answer) => decode_answer(bytes).is_ok_and(|messages| {
            assert_eq!(encode_answer(&messages), bytes, "an answer has one encoding");
            true
        }),
        _ => false,
    }
}

/// Reads something in every world; whether it could be read in one.
fn every_world(read: impl Fn(&World) -> Option<()>) -> bool {
    let mut any = false;
    for world in WORLDS.iter() {
        any |= read(world).is_some();
    }
    any
}

/// A document in canonical form, or an entry of a log.
pub fn canonical(bytes: &[u8]) -> bool {
    let known = WORLDS[0].consortium.consortium();
    match content_of(bytes) {
        Ok(Some(Content::Consortium | Content::Successor)) => Consortium::decode(bytes).is_ok_and(|consortium| {
            assert_eq!(consortium.encode(), bytes, "a consortium has one encoding");
            let text = consortium.to_toml().expect("it is plain text");
            assert_eq!(Consortium::parse(&text).map(|again| again.id()).ok(), Some(consortium.id()), "{text}");
            true
        }),
        Ok(Some(Content::ConsortiumSignatures)) => {
            let mut draft = Draft::new(known.clone());
            draft.add_encoded(bytes).is_ok_and(|added| {
                assert_eq!(draft.signed_by().count(), added);
                assert_eq!(draft.encode_signatures(), bytes, "signatures have one encoding");
                true
            })
        }
        Ok(Some(Content::Succession)) => {
            let mut draft = Draft::new(CHANGED.consortium().clone());
            draft.add_encoded(bytes).is_ok_and(|added| {
                assert_eq!(draft.signed_by().count() + draft.agreed_by().count(), added);
                // the chain is bound by its ids, and of the signatures before this change others may be there
                let mut again = Draft::new(draft.consortium().clone());
                assert_eq!(again.add_encoded(&draft.encode_signatures()).ok(), Some(added));
                assert_eq!(again.known_predecessor().map(Ratified::id), CHANGED.predecessor().map(Ratified::id));
                true
            })
        }
        Ok(Some(Content::Round)) => Round::decode(bytes, known).is_ok_and(|round| {
            assert_eq!(round.encode(), bytes, "a round has one encoding");
            // numbers above 2^63 − 1 have no place in TOML
            if let Ok(text) = round.to_toml(known) {
                assert_eq!(Round::parse(&text, known).map(|again| again.id()).ok(), Some(round.id()), "{text}");
            }
            true
        }),
        Ok(Some(Content::Decision)) => every_world(|world| {
            let decision = Decision::decode(bytes, &world.consortium, &world.round).ok()?;
            assert_eq!(decision.encode(), bytes, "a decision has one encoding");
            Some(())
        }),
        Ok(Some(Content::Record)) => Record::decode(bytes).is_ok_and(|record| {
            assert_eq!(record.encode(), bytes, "a record has one encoding");
            true
        }),
        _ => false,
    }
}

/// A document that people write; which, the first byte says.
pub fn document(bytes: &[u8]) -> bool {
    let Some((which, text)) = bytes.split_first() else { return false };
    let Ok(text) = std::str::from_utf8(text) else { return false };
    let known = WORLDS[0].consortium.consortium();
    match which % 4 {
        0 => Consortium::parse(text).is_ok_and(|consortium| {
            let again = Consortium::decode(&consortium.encode()).expect("what is written is read");
            assert_eq!(again, consortium);
            let text = consortium.to_toml().expect("it is plain text");
            assert_eq!(Consortium::parse(&text).map(|again| again.id()).ok(), Some(consortium.id()), "{text}");
            true
        }),
        1 => Round::parse(text, known).is_ok_and(|round| {
            let again = Round::decode(&round.encode(), known).expect("what is written is read");
            assert_eq!(again.id(), round.id());
            let text = round.to_toml(known).expect("it came from TOML");
            assert_eq!(Round::parse(&text, known).map(|again| again.id()).ok(), Some(round.id()), "{text}");
            true
        }),
        2 => SigningKey::from_pkcs8_pem(text).is_ok_and(|key| {
            let again = key.to_pkcs8_pem().expect("a key is written");
            let again = SigningKey::from_pkcs8_pem(&again).expect("what is written is read");
            assert_eq!(again.verifying_key(), key.verifying_key());
            true
        }),
        _ => VerifyingKey::from_public_key_pem(text).is_ok_and(|key| {
            let again = key.to_public_key_pem().expect("a key is written");
            assert_eq!(VerifyingKey::from_public_key_pem(&again).ok(), Some(key));
            true
        }),
    }
}
