//! Ballots from signature to validation: pinned, accepted, and refused for each reason.

use super::*;
use crate::consortium::Ratified;
use crate::ids::Height;
use crate::round::{Ballots, Round, Strategy, Terms};
use crate::signing::Kind;
use crate::statement::{SignatureChecked, Statement};
use crate::testing::{Weights, body, consortium_of, key, layout, terms, vote};
use crate::{Holdings, MemberIndex};
use fedprune_mask::ballot::{Encodings, MaskHeader, VoteHeader};
use fedprune_mask::{Ballot, Digest, Layout, encode_mask};

fn header_of(body: &[u8]) -> BallotHeader {
    BallotHeader { body: Digest::of(body), body_bytes: body.len() as u64, claimed_unix_ms: 1_700_000_000_000 }
}

/// A round with changed terms.
fn round_with(consortium: &Ratified, change: impl FnOnce(&mut Terms)) -> Round {
    let mut terms = terms(consortium.consortium());
    change(&mut terms);
    Round::new(terms, consortium.consortium()).unwrap()
}

/// Validates `body`, signed by member 1 as it is, at a height of the round.
fn judge(
    round: &Round,
    consortium: &Ratified,
    height: u32,
    layout_of_body: &Layout,
    body: &[u8],
) -> Result<Validated, InvalidBallot> {
    let header = SignatureChecked::sign(header_of(body), Height(height), &key(1), consortium, round.id()).unwrap();
    let ballot = Ballot::parse(body, layout_of_body).unwrap();
    validate(header, &ballot, round, &layout(), &Weights::of(layout_of_body))
}

#[test]
fn bytes_are_pinned() {
    let consortium = consortium_of(4);
    let header = BallotHeader { body: Digest::of(b"body"), body_bytes: 4, claimed_unix_ms: 0x0102_0304_0506_0708 };
    let round = crate::RoundId(Digest([3; 32]));
    let signed = SignatureChecked::sign(header, Height(7), &key(1), &consortium, round).unwrap();
    assert_eq!(header.fields().len(), 48);
    assert_eq!(header.fields()[40..], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(signed.encode().len(), 11 + 2 + 4 + 48 + 64);
    assert_eq!(signed.preimage()[..32], *Kind::Ballot.domain().as_bytes());
    assert_eq!(
        Digest::of(&signed.preimage()).to_string(),
        "98c3ab41d3841e53e20b007422c78b29186578f587b5141bb3c3b71bb876f046"
    );
    assert_eq!(
        Digest::of(&signed.encode()).to_string(),
        "b4071f23240ef1b629e8d331936fa7c3f34eac398242c8b1511e2078c691a05e"
    );
}

#[test]
fn impossible_sizes_are_refused() {
    let consortium = consortium_of(4);
    for body_bytes in [0, MAX_BODY_BYTES + 1, u64::MAX] {
        let header = BallotHeader { body_bytes, ..header_of(b"body") };
        let round = crate::RoundId(Digest([3; 32]));
        assert!(SignatureChecked::sign(header, Height(0), &key(1), &consortium, round).is_err());
    }
}

#[test]
fn every_encoding_of_an_honest_ballot_validates() {
    let consortium = consortium_of(4);
    for local in ["row", "layer", "column", "2:4"] {
        let round = round_with(&consortium, |terms| {
            terms.local_group = local.parse().unwrap();
            terms.global_group = if local == "2:4" { "2:4" } else { "layer" }.parse().unwrap();
        });
        for encodings in [Encodings::Auto, Encodings::MaskOnly] {
            let body = body(&vote(&round, &layout()), &layout(), "a", encodings);
            assert!(body.len() as u64 <= largest_body_bytes(&layout()));
            let valid = judge(&round, &consortium, 0, &layout(), &body).unwrap();
            assert_eq!((valid.member(), valid.height(), valid.body()), (MemberIndex(1), Height(0), Digest::of(&body)));
        }
    }
}

#[test]
fn iterative_ballots_are_of_one_block() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |terms| terms.strategy = Strategy::Iterative);
    assert_eq!(round.heights(&layout()), Ok(2));
    let second = round.layout_at(&layout(), Height(1)).unwrap();
    let bytes = body(&vote(&round, &second), &second, "a", Encodings::Auto);
    assert!(judge(&round, &consortium, 1, &second, &bytes).is_ok());
    let error = judge(&round, &consortium, 0, &second, &bytes).unwrap_err();
    assert!(matches!(error, InvalidBallot::OtherHeight { height: Height(0), .. }), "{error}");
    let error = judge(&round, &consortium, 2, &second, &bytes).unwrap_err().to_string();
    assert_eq!(error, "the round has 2 heights, and 2 is not among them, counted from 0");
}

#[test]
fn another_recipe_is_named() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |_| ());
    let refused = |change: &dyn Fn(&mut VoteHeader), says: &str| {
        let mut vote = vote(&round, &layout());
        change(&mut vote);
        let body = body(&vote, &layout(), "a", Encodings::Auto);
        let error = judge(&round, &consortium, 0, &layout(), &body).unwrap_err();
        assert!(matches!(error, InvalidBallot::Recipe { .. }) && error.to_string().contains(says), "{error}");
    };
    refused(&|vote| vote.model = Digest::of(b"other"), "its model is");
    refused(&|vote| vote.pruner = fedprune_mask::Pruner::RIA, "its pruner is ria, and the round says wanda");
    refused(&|vote| vote.group = "layer".parse().unwrap(), "its group is layer, and the round says row");
    refused(&|vote| vote.sparsity = "0.25".parse().unwrap(), "its sparsity is 0.25, and the round says 0.5");
    for (samples, tokens) in [(5, 64), (1, 64), (0, 64), (4, 63), (u32::MAX, u32::MAX)] {
        let change = |vote: &mut VoteHeader| (vote.samples, vote.sequence_tokens) = (samples, tokens);
        refused(&change, "1 to 4 windows of 64 tokens, 128 tokens at least");
    }
    // as few tokens as the round allows
    let mut few = vote(&round, &layout());
    few.samples = 2;
    assert!(judge(&round, &consortium, 0, &layout(), &body(&few, &layout(), "a", Encodings::Auto)).is_ok());
}

#[test]
fn a_data_free_round_wants_no_calibration() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |terms| {
        terms.pruner = fedprune_mask::Pruner::MAGNITUDE;
        terms.calibration = None;
        terms.ballots = Ballots::MaskOnly;
    });
    for encodings in [Encodings::Auto, Encodings::MaskOnly] {
        let bytes = body(&vote(&round, &layout()), &layout(), "a", encodings);
        assert!(judge(&round, &consortium, 0, &layout(), &bytes).is_ok(), "no norms are revealed by magnitude");
    }
    let mut vote = vote(&round, &layout());
    vote.samples = 1;
    let error = judge(&round, &consortium, 0, &layout(), &body(&vote, &layout(), "a", Encodings::Auto)).unwrap_err();
    assert!(error.to_string().contains("the round says none"), "{error}");
}

#[test]
fn norms_are_refused_where_only_masks_are_allowed() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |terms| terms.ballots = Ballots::MaskOnly);
    let bytes = |encodings| body(&vote(&round, &layout()), &layout(), "a", encodings);
    assert!(judge(&round, &consortium, 0, &layout(), &bytes(Encodings::MaskOnly)).is_ok());
    let ballot = bytes(Encodings::Auto);
    let reveals = Ballot::parse(&ballot, &layout()).unwrap().norms(0).is_some();
    assert!(reveals, "this layout is large enough for norms");
    let error = judge(&round, &consortium, 0, &layout(), &ballot).unwrap_err();
    assert!(matches!(&error, InvalidBallot::RevealsNorms(name) if name == "0.q"), "{error}");
}

#[test]
fn data_free_matrices_are_pruned_by_magnitude() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |terms| terms.data_free = vec!["block0.qkv".parse().unwrap()]);
    for encodings in [Encodings::Auto, Encodings::MaskOnly] {
        // equal norms order weights by magnitude
        let bytes = body(&vote(&round, &layout()), &layout(), "", encodings);
        assert!(judge(&round, &consortium, 0, &layout(), &bytes).is_ok());
        let bytes = body(&vote(&round, &layout()), &layout(), "a", encodings);
        let error = judge(&round, &consortium, 0, &layout(), &bytes).unwrap_err();
        let expected = "`0.q` is not pruned by magnitude, and the round says data_free = [\"block0.qkv\"]";
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_bitmap_off_its_budget_is_refused() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |_| ());
    let mut bytes = body(&vote(&round, &layout()), &layout(), "a", Encodings::MaskOnly);
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let error = judge(&round, &consortium, 0, &layout(), &bytes).unwrap_err();
    assert!(matches!(error, InvalidBallot::Mask(_)), "{error}");
}

#[test]
fn the_body_must_be_the_one_signed_for_this_round() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |_| ());
    let (one, other) = (
        body(&vote(&round, &layout()), &layout(), "a", Encodings::Auto),
        body(&vote(&round, &layout()), &layout(), "b", Encodings::Auto),
    );
    let layout = layout();
    let ballot = Ballot::parse(&other, &layout).unwrap();
    let sign =
        |header, round: &Round| SignatureChecked::sign(header, Height(0), &key(1), &consortium, round.id()).unwrap();
    let weights = Weights::of(&layout);
    let error = validate(sign(header_of(&one), &round), &ballot, &round, &layout, &weights).unwrap_err();
    assert!(matches!(error, InvalidBallot::Body { .. }), "{error}");
    let longer = BallotHeader { body_bytes: other.len() as u64 + 1, ..header_of(&other) };
    let error = validate(sign(longer, &round), &ballot, &round, &layout, &weights).unwrap_err();
    assert!(matches!(error, InvalidBallot::Body { .. }), "{error}");
    let elsewhere = round_with(&consortium, |terms| terms.timers.vote_ms += 1);
    let error = validate(sign(header_of(&other), &elsewhere), &ballot, &round, &layout, &weights).unwrap_err();
    assert!(matches!(error, InvalidBallot::OtherRound), "{error}");
}

#[test]
fn an_explicit_mask_is_no_vote() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |_| ());
    let layout = layout();
    let bytes = body(&vote(&round, &layout), &layout, "a", Encodings::MaskOnly);
    let ballot = Ballot::parse(&bytes, &layout).unwrap();
    let weights = Weights::of(&layout);
    let header = MaskHeader {
        model: round.terms().base_model,
        layout: layout.digest(),
        group: round.terms().local_group,
        sparsity: round.terms().sparsity,
        votes: 1,
    };
    let mut mask = Vec::new();
    let mut masks = |index| {
        use fedprune_mask::weights::MatrixSource;
        Ok::<_, std::convert::Infallible>(ballot.mask(index, weights.matrix(index)).unwrap())
    };
    encode_mask(&header, &layout, &mut masks, &mut |part| {
        mask.extend_from_slice(part);
        Ok(())
    })
    .unwrap();
    let error = judge(&round, &consortium, 0, &layout, &mask).unwrap_err();
    assert!(matches!(error, InvalidBallot::NotAVote), "{error}");
}

#[test]
fn a_member_holds_the_first_ballot_of_each() {
    let consortium = consortium_of(4);
    let round = round_with(&consortium, |_| ());
    let ballot = |seed| {
        let bytes = body(&vote(&round, &layout()), &layout(), seed, Encodings::Auto);
        judge(&round, &consortium, 0, &layout(), &bytes).unwrap()
    };
    let mut holdings = Holdings::none(4);
    holdings.add(&ballot("a")).unwrap();
    holdings.add(&ballot("a")).unwrap();
    assert!(holdings.add(&ballot("b")).unwrap_err().to_string().contains("another ballot of member 1"));
    assert_eq!((holdings.count(), holdings.of(MemberIndex(1))), (1, Some(ballot("a").body())));
    assert!(Holdings::none(1).add(&ballot("a")).is_err());
}
