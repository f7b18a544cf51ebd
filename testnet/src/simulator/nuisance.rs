//! More members that lie: those who flood, stall, poison, and vote for whatever anybody proposes.

use std::collections::BTreeSet;

use fedprune_federation::vote::MAX_VIEW;
use fedprune_federation::wire::Content;
use fedprune_federation::{
    BallotHeader, Height, Holdings, Justified, MaskResult, Precommit, Prevote, Proposal, Proposed, ReceivedProposed,
};
use fedprune_mask::Digest;

use super::byzantine::Byzantine;
use super::seat::{Seat, Sending, framed};
use super::world::Body;

/// Messages of a flood each time that a member would ask for news.
const FLOOD_MESSAGES: usize = 24;
/// Most bytes of a message that is nothing.
const NOISE_BYTES: u64 = 2_000;

/// Signs and sends whatever it can, again and again: more than anybody has use for.
#[derive(Default)]
pub struct Flood {
    sent: u32,
}

impl Flood {
    fn anything(&mut self, seat: &mut Seat<'_>) -> Vec<u8> {
        self.sent += 1;
        let number = self.sent;
        let height = Height(seat.random.below(u64::from(seat.world.heights()) + 1) as u32);
        let digest = Digest::of(&number.to_le_bytes());
        // near views and far ones
        let view = if seat.random.per_mille(500) { number } else { seat.random.below(u64::from(MAX_VIEW)) as u32 };
        match seat.random.below(9) {
            0 => noise(seat),
            1 => framed(Content::Proposed, &noise(seat)),
            2 => framed(Content::Answer, &noise(seat)),
            3 => seat.sign(Prevote { view, value: Some(digest) }, height),
            4 => seat.sign(Precommit { view, value: None }, height),
            5 => seat.sign(BallotHeader { body: digest, body_bytes: 100, claimed_unix_ms: 0 }, height),
            6 => seat.sign(Holdings::from_digests(vec![Some(digest); seat.world.members()]), height),
            7 => seat.sign(MaskResult { mask_root: digest }, height),
            _ => Self::proposal(seat, view),
        }
    }

    fn proposal(seat: &mut Seat<'_>, view: u32) -> Vec<u8> {
        let height = Height(seat.random.below(u64::from(seat.world.heights())) as u32);
        let abandoned = Justified::abandoned(height, &seat.world.consortium, &seat.world.round);
        let again = view > 0 && seat.random.per_mille(500);
        let valid_view = again.then(|| seat.random.below(u64::from(view)) as u32);
        let content = Proposal { view, value: abandoned.decision().value(), valid_view };
        let proposal = seat.world.sign(seat.me, content, height);
        Proposed::new(proposal, abandoned).map(|proposed| proposed.encode()).unwrap_or_default()
    }
}

fn noise(seat: &mut Seat<'_>) -> Vec<u8> {
    let bytes = seat.random.below(NOISE_BYTES);
    (0..bytes).map(|_| seat.random.number() as u8).collect()
}

impl Byzantine for Flood {
    fn regularly(&mut self, seat: &mut Seat<'_>) -> Vec<Sending> {
        (0..FLOOD_MESSAGES)
            .map(|_| {
                let bytes = self.anything(seat);
                seat.to_all(bytes)
            })
            .collect()
    }

    fn answer(&mut self, seat: &mut Seat<'_>, _to: usize, mut honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        honest.extend((0..FLOOD_MESSAGES).map(|_| self.anything(seat)));
        Some(honest)
    }
}

/// As aggregator, proposes as late as others wait, and at first to half of them.
#[derive(Default)]
pub struct LateAggregator {
    held_back: Vec<(u64, Vec<usize>, Vec<u8>)>,
}

impl Byzantine for LateAggregator {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        if seat.own_proposal(&bytes).is_none() {
            return vec![seat.to_all(bytes)];
        }
        let late_ms = seat.world.round.terms().timers.proposal_ms;
        let (soon_ms, later_ms) = (late_ms / 2 + seat.random.below(late_ms), late_ms * 2 + seat.random.below(late_ms));
        for (half, after_ms) in seat.to_halves(bytes.clone(), bytes).into_iter().zip([soon_ms, later_ms]) {
            self.held_back.push((seat.now_ms + after_ms, half.to, half.bytes));
        }
        Vec::new()
    }

    fn regularly(&mut self, seat: &mut Seat<'_>) -> Vec<Sending> {
        let due = self.held_back.extract_if(.., |(at_ms, ..)| *at_ms <= seat.now_ms);
        due.map(|(_, to, bytes)| Sending { to, bytes }).collect()
    }

    fn answer(&mut self, seat: &mut Seat<'_>, _to: usize, honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        Some(seat.without_own_proposals(honest))
    }
}

/// Signs a ballot that is made to ruin the model, and breaks no rule.
pub struct PoisonedBallot;

impl Byzantine for PoisonedBallot {
    fn body(&mut self, seat: &mut Seat<'_>, height: Height, _own: Body) -> Body {
        let channel = seat.random.index(64);
        seat.world.poisoned_body(channel, height)
    }
}

/// Prevotes and precommits every value that anybody proposes, in every view, before everybody: with it any proposal is
/// as close to a quorum as liars can bring it.
#[derive(Default)]
pub struct VotesForAll {
    voted: BTreeSet<(Height, u32, Digest)>,
}

impl VotesForAll {
    fn vote(&mut self, seat: &Seat<'_>, bytes: &[u8]) -> Vec<Sending> {
        let Ok(received) = ReceivedProposed::decode(bytes) else { return Vec::new() };
        let Ok(proposed) = received.check(&seat.world.consortium, &seat.world.round) else { return Vec::new() };
        let (height, Proposal { view, value, .. }) = (proposed.proposal().height(), *proposed.proposal().content());
        if !self.voted.insert((height, view, value)) {
            return Vec::new();
        }
        let prevote = seat.sign(Prevote { view, value: Some(value) }, height);
        let precommit = seat.sign(Precommit { view, value: Some(value) }, height);
        vec![seat.to_all(prevote), seat.to_all(precommit)]
    }
}

impl Byzantine for VotesForAll {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        if seat.own::<Prevote>(&bytes).is_some() || seat.own::<Precommit>(&bytes).is_some() {
            return Vec::new(); // it has voted already, or will
        }
        let mut sendings = Vec::new();
        if let Some(proposed) = seat.own_proposal(&bytes) {
            let height = proposed.proposal().height();
            let abandoned = Justified::abandoned(height, &seat.world.consortium, &seat.world.round);
            sendings.extend(self.vote(seat, &bytes));
            if let Some(other) = seat.propose_instead(&proposed, abandoned) {
                sendings.extend(self.vote(seat, &other));
                sendings.extend(seat.to_halves(bytes, other));
                return sendings;
            }
        }
        sendings.push(seat.to_all(bytes));
        sendings
    }

    fn hear(&mut self, seat: &mut Seat<'_>, bytes: &[u8]) -> Vec<Sending> {
        self.vote(seat, bytes)
    }
}
