//! Proofs of inclusion and attestations: small files that strangers pass on.

use std::sync::LazyLock;

use fedprune_attest::{AttestationKey, Envelope, FolderFiles, ModelSignature, Statement, statement::BallotPredicate};
use fedprune_federation::inclusion::IncludedBallot;
use fedprune_federation::round::TallyBy;
use fedprune_federation::{BallotHeader, Certificate, Height, Inclusion, MaskResult, Precommit, ReceivedInclusion};
use fedprune_mask::Digest;
use fedprune_testnet::simulator::World;

use super::federation::{WORLDS, bodies, justified};

/// Proof that the ballot of one member counts at a height.
pub(crate) fn inclusion(world: &World, member: usize) -> Inclusion {
    let height = Height(0);
    let bodies = bodies(world, height);
    let body = &bodies[member];
    let header =
        BallotHeader { body: Digest::of(body), body_bytes: body.len() as u64, claimed_unix_ms: 1_700_000_000_000 };
    let decision = justified(world, height).decision().clone();
    let vote = Precommit { view: 0, value: Some(decision.value()) };
    let votes: Vec<_> = (0..3).map(|member| world.sign(member, vote, height)).collect();
    let certificate = Certificate::from_precommits(&votes, &world.consortium).expect("a quorum");
    let results = match world.round.terms().tally {
        TallyBy::Elected => Vec::new(),
        TallyBy::EveryPeer => {
            let result = MaskResult { mask_root: Digest::of(b"mask root") };
            (0..3).map(|member| world.sign(member, result, height)).collect()
        }
    };
    let header = world.sign(member, header, height);
    let (consortium, round) = (&world.consortium, &world.round);
    let included = IncludedBallot::new(header, decision, certificate, &results, consortium, round).expect("it counts");
    Inclusion::new(consortium, round, vec![included]).expect("one height")
}

/// A proof that a ballot counts. Taken is what proves something of the consortium that is meant.
pub fn proof(bytes: &[u8]) -> bool {
    let Ok(received) = ReceivedInclusion::decode(bytes) else { return false };
    let world = &WORLDS[0];
    // the worlds share a consortium, so that a proof is of one of their rounds
    let Ok(proof) = received.check(world.consortium.id(), None) else { return false };
    assert_eq!(proof.encode(), bytes, "a proof has one encoding");
    let round = proof.round().id();
    assert!(WORLDS.iter().any(|world| world.round.id() == round), "nobody signed anything in {round}");
    for height in proof.heights() {
        assert!(height.committed().count() >= world.quorum().q());
    }
    true
}

/// The folder whose signature is looked at.
static FOLDER: LazyLock<FolderFiles> = LazyLock::new(|| {
    let folder = super::scratch();
    std::fs::write(folder.path().join("config.json"), "1").expect("a file");
    FolderFiles { name: "pruned".to_owned(), ..FolderFiles::read(folder.path(), &|_| ()).expect("a folder") }
});

fn model_key() -> AttestationKey {
    AttestationKey::from_seed(&[7; 32]).expect("a key")
}

/// What members of the worlds attest.
pub(crate) fn statements() -> Vec<Statement> {
    let world = &WORLDS[0];
    let predicate = BallotPredicate {
        consortium: world.consortium.id(),
        round: world.round.id(),
        height: Height(0),
        member: world.name(1),
        ballot_bytes: 7,
    };
    let body = Digest::of(b"ballot");
    let ballots = [(Height(0), world.name(0), body), (Height(0), world.name(1), body)];
    let consortium = world.consortium.consortium();
    vec![
        Statement::ballot(&predicate, body, &"ab".repeat(32)).expect("a statement"),
        Statement::result(consortium, &world.round, &ballots, body, &FOLDER.files).expect("a statement"),
    ]
}

/// Envelopes and a signature of a folder.
pub(crate) fn attestations() -> Vec<(String, Vec<u8>)> {
    let world = &WORLDS[0];
    let mut seeds = Vec::new();
    for (number, statement) in statements().iter().enumerate() {
        let payload = statement.to_bytes().expect("a statement");
        let mut envelope = Envelope::sign(payload.clone(), &world.key(1));
        seeds.push((format!("envelope-{number}"), envelope.to_json().expect("an envelope")));
        envelope.merge(Envelope::sign(payload, &world.key(2))).expect("of one statement");
        seeds.push((format!("envelope-{number}-of-two"), envelope.to_json().expect("an envelope")));
    }
    seeds.push(("model".to_owned(), ModelSignature::sign(&FOLDER, &model_key()).expect("a signature")));
    seeds
}

/// An envelope, or a signature of a folder. Taken is what verifies.
pub fn attestation(bytes: &[u8]) -> bool {
    if let Ok(signature) = ModelSignature::parse(bytes) {
        return signature.verify(&model_key().public(), &FOLDER).is_ok();
    }
    let Ok(envelope) = Envelope::parse(bytes) else { return false };
    let again = Envelope::parse(&envelope.to_json().expect("an envelope is written")).expect("what is written is read");
    assert_eq!(again, envelope);
    if let Ok(statement) = Statement::parse(envelope.payload()) {
        let _ = (statement.as_ballot(), statement.as_result(), statement.differs_from(&FOLDER.files));
    }
    let Ok(signers) = envelope.signers(WORLDS[0].consortium.consortium()) else { return false };
    assert!(!signers.is_empty());
    let known = statements().iter().any(|known| known.to_bytes().expect("a statement") == envelope.payload());
    assert!(known, "nobody signed this statement");
    true
}
