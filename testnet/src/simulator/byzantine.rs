//! Members that lie, as code of their own.
//!
//! A liar has a machine like everybody, so that it is plausible: it joins, holds, votes and keeps up. What leaves it
//! passes through a [`Byzantine`], which may say something else, to some and not to others, with the member's own key,
//! or keep silent. What it says is made with the same public types as what honest members say, or written byte by byte
//! where those types refuse to.

use std::fmt;

use fedprune_federation::round::TallyBy;
use fedprune_federation::wire::{self, Content};
use fedprune_federation::{
    BallotHeader, Decision, Height, Holdings, Justified, MaskResult, MemberIndex, Precommit, Prevote, Proposal,
    Signature, SignatureChecked,
};
use fedprune_mask::Digest;
use fedprune_mask::codec;
use serde::{Deserialize, Serialize};

use super::nuisance::{Flood, LateAggregator, PoisonedBallot, VotesForAll};
use super::seat::{Seat, Sending, framed};
use super::world::Body;

/// A member that lies. Whatever a method does not change is as an honest member does it.
pub trait Byzantine {
    /// What it sends once, when it starts.
    fn begin(&mut self, _seat: &mut Seat<'_>) -> Vec<Sending> {
        Vec::new()
    }

    /// The body that it signs, instead of its own.
    fn body(&mut self, _seat: &mut Seat<'_>, _height: Height, own: Body) -> Body {
        own
    }

    /// What leaves instead of a message of its machine.
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        vec![seat.to_all(bytes)]
    }

    /// What it sends on hearing something new.
    fn hear(&mut self, _seat: &mut Seat<'_>, _bytes: &[u8]) -> Vec<Sending> {
        Vec::new()
    }

    /// What it sends when it would ask others for news, which it does regularly.
    fn regularly(&mut self, _seat: &mut Seat<'_>) -> Vec<Sending> {
        Vec::new()
    }

    /// What it answers, instead of `honest`.
    fn answer(&mut self, _seat: &mut Seat<'_>, _to: usize, honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        Some(honest)
    }

    /// Whether it gives a body that it has.
    fn serves(&mut self, _seat: &mut Seat<'_>, _to: usize, _body: Digest) -> bool {
        true
    }
}

/// The ways to lie that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    /// Signs two valid ballots, and sends one header to half of the members and the other to the others.
    TwoBallots,
    /// Signs three valid ballots: two are seen first by one member, and the third by all others.
    ThreeBallots,
    /// Says that it holds one thing to some and another to others.
    TwoHoldings,
    /// Votes for a value before some, and for nothing before others.
    TwoVotes,
    /// Signs two masks.
    TwoResults,
    /// As aggregator, proposes the right ballots and a wrong mask.
    WrongMask,
    /// As aggregator, proposes a manifest that leaves out a ballot, against the statements beside it.
    Censor,
    /// Says that it holds nothing, and as aggregator proposes from the statements that hold least.
    LeastStatements,
    /// As aggregator, proposes the manifest to some, and to abandon the height to others.
    TwoProposals,
    /// As aggregator, proposes nothing.
    SilentAggregator,
    /// Signs the body of another member.
    CopiedBallot,
    /// Signs a body that it gives to nobody.
    WithheldBody,
    /// Signs a body that it gives to some.
    HalfServedBody,
    /// Signs a body that is no ballot.
    GarbageBody,
    /// Sends what members said in an earlier round.
    Replay,
    /// Passes on proposals of others with other grounds, and damaged signatures.
    Forger,
    /// Signs a valid ballot that is made to ruin the model.
    PoisonedBallot,
    /// Votes for every value that anybody proposes, and proposes two.
    VotesForAll,
    /// As aggregator, proposes late, and to some later than to others.
    LateAggregator,
    /// Sends whatever it can sign, and noise, all the time.
    Flood,
    /// Says nothing at all, and answers nobody.
    Mute,
    /// Another lie at every turn.
    Anything,
}

impl Lie {
    /// All of them.
    pub const ALL: [Lie; 22] = [
        Lie::TwoBallots,
        Lie::ThreeBallots,
        Lie::TwoHoldings,
        Lie::TwoVotes,
        Lie::TwoResults,
        Lie::WrongMask,
        Lie::Censor,
        Lie::LeastStatements,
        Lie::TwoProposals,
        Lie::SilentAggregator,
        Lie::CopiedBallot,
        Lie::WithheldBody,
        Lie::HalfServedBody,
        Lie::GarbageBody,
        Lie::Replay,
        Lie::Forger,
        Lie::PoisonedBallot,
        Lie::VotesForAll,
        Lie::LateAggregator,
        Lie::Flood,
        Lie::Mute,
        Lie::Anything,
    ];

    /// A member that lies so.
    pub fn liar(self) -> Box<dyn Byzantine> {
        match self {
            Lie::TwoBallots => Box::new(TwoBallots),
            Lie::ThreeBallots => Box::new(ThreeBallots),
            Lie::TwoHoldings => Box::new(TwoHoldings),
            Lie::TwoVotes => Box::new(TwoVotes),
            Lie::TwoResults => Box::new(TwoResults),
            Lie::WrongMask => Box::new(WrongMask),
            Lie::Censor => Box::new(Censor),
            Lie::LeastStatements => Box::new(LeastStatements),
            Lie::TwoProposals => Box::new(TwoProposals),
            Lie::SilentAggregator => Box::new(SilentAggregator),
            Lie::CopiedBallot => Box::new(CopiedBallot),
            Lie::WithheldBody => Box::new(Serving { share: 0 }),
            Lie::HalfServedBody => Box::new(Serving { share: 2 }),
            Lie::GarbageBody => Box::new(GarbageBody),
            Lie::Replay => Box::new(Replay),
            Lie::Forger => Box::new(Forger),
            Lie::PoisonedBallot => Box::new(PoisonedBallot),
            Lie::VotesForAll => Box::new(VotesForAll::default()),
            Lie::LateAggregator => Box::new(LateAggregator::default()),
            Lie::Flood => Box::new(Flood::default()),
            Lie::Mute => Box::new(Mute),
            Lie::Anything => Box::new(Anything),
        }
    }
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Signs another valid ballot, and serves it.
fn another_ballot(seat: &mut Seat<'_>, which: &str, height: Height) -> Vec<u8> {
    let body = seat.world.body(&format!("the {which} of {}", seat.me), height);
    let header = BallotHeader { body: Digest::of(&body), body_bytes: body.len() as u64, claimed_unix_ms: 0 };
    seat.bodies.insert(header.body, body);
    seat.sign(header, height)
}

struct TwoBallots;

impl Byzantine for TwoBallots {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        let Some(header) = seat.own::<BallotHeader>(&bytes) else { return vec![seat.to_all(bytes)] };
        let other = another_ballot(seat, "second", header.height());
        seat.to_halves(bytes, other)
    }
}

struct ThreeBallots;

impl Byzantine for ThreeBallots {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        let Some(header) = seat.own::<BallotHeader>(&bytes) else { return vec![seat.to_all(bytes)] };
        let second = another_ballot(seat, "second", header.height());
        let third = another_ballot(seat, "third", header.height());
        let mut others = seat.others();
        let one = others.split_off(others.len() - 1);
        vec![
            Sending { to: one.clone(), bytes },
            Sending { to: one, bytes: second },
            Sending { to: others, bytes: third },
        ]
    }
}

struct TwoHoldings;

impl Byzantine for TwoHoldings {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        let Some(held) = seat.own::<Holdings>(&bytes) else { return vec![seat.to_all(bytes)] };
        let mut other = held.content().ballots().to_vec();
        let at = seat.random.index(other.len());
        other[at] = match other[at] {
            // a ballot that nobody has
            Some(_) if seat.random.per_mille(500) => Some(Digest::of(b"no such ballot")),
            Some(_) => None,
            None => Some(Digest::of(b"no such ballot")),
        };
        let next = (at + 1) % other.len();
        other[next] = Some(Digest::of(b"nor such a one"));
        let other = seat.sign(Holdings::from_digests(other), held.height());
        seat.to_halves(bytes, other)
    }
}

struct TwoVotes;

impl Byzantine for TwoVotes {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        let other = if let Some(vote) = seat.own::<Prevote>(&bytes) {
            let value = if vote.content().value.is_some() { None } else { Some(Digest::of(b"no such value")) };
            seat.sign(Prevote { value, ..*vote.content() }, vote.height())
        } else if let Some(vote) = seat.own::<Precommit>(&bytes) {
            let value = if vote.content().value.is_some() { None } else { Some(Digest::of(b"no such value")) };
            seat.sign(Precommit { value, ..*vote.content() }, vote.height())
        } else {
            return vec![seat.to_all(bytes)];
        };
        if seat.random.per_mille(500) { seat.to_halves(bytes, other) } else { seat.to_halves(other, bytes) }
    }
}

struct TwoResults;

impl Byzantine for TwoResults {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        let Some(result) = seat.own::<MaskResult>(&bytes) else { return vec![seat.to_all(bytes)] };
        let other = seat.sign(MaskResult { mask_root: Digest::of(b"a wrong mask") }, result.height());
        seat.to_halves(other, bytes)
    }
}

struct WrongMask;

impl Byzantine for WrongMask {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        let Some(proposed) = seat.own_proposal(&bytes) else { return vec![seat.to_all(bytes)] };
        let (height, wrong) = (proposed.proposal().height(), Some(Digest::of(b"a wrong mask")));
        let world = seat.world;
        let lie = match (world.round.terms().tally, proposed.justified().decision().ballots()) {
            (_, None) => None,
            (TallyBy::Elected, Some(_)) => {
                let statements = proposed.justified().statements();
                let justified = Justified::from_holdings(statements, height, wrong, &world.consortium, &world.round);
                justified.ok().and_then(|justified| seat.propose_instead(&proposed, justified))
            }
            // where no mask is in the agreement, one that is can only be written by hand
            (TallyBy::EveryPeer, Some(manifest)) => {
                let decision = seat.decision(height, manifest.ballots().to_vec(), wrong);
                Some(seat.propose_bytes(&proposed, decision))
            }
        };
        vec![seat.to_all(lie.unwrap_or(bytes))]
    }

    fn answer(&mut self, seat: &mut Seat<'_>, _to: usize, honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        Some(seat.without_own_proposals(honest))
    }
}

struct Censor;

impl Byzantine for Censor {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        let Some(proposed) = seat.own_proposal(&bytes) else { return vec![seat.to_all(bytes)] };
        let decision = proposed.justified().decision();
        let Some(manifest) = decision.ballots() else { return vec![seat.to_all(bytes)] };
        let mut ballots = manifest.ballots().to_vec();
        let counted: Vec<usize> = manifest.contributors().map(|(member, _)| member.as_usize()).collect();
        ballots[counted[seat.random.index(counted.len())]] = None;
        let decision = seat.decision(decision.height(), ballots, decision.mask_root());
        let lie = seat.propose_bytes(&proposed, decision);
        vec![seat.to_all(lie)]
    }

    fn answer(&mut self, seat: &mut Seat<'_>, _to: usize, honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        Some(seat.without_own_proposals(honest))
    }
}

struct LeastStatements;

impl Byzantine for LeastStatements {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        let world = seat.world;
        if let Some(held) = seat.own::<Holdings>(&bytes) {
            return vec![seat.to_all(seat.sign(Holdings::none(world.members()), held.height()))];
        }
        let Some(proposed) = seat.own_proposal(&bytes) else { return vec![seat.to_all(bytes)] };
        let height = proposed.proposal().height();
        let mut statements = vec![world.sign(seat.me, Holdings::none(world.members()), height)];
        if let Some(known) = seat.machine.and_then(|machine| machine.known(height)) {
            let mut others: Vec<_> = known.holdings().filter(|held| held.member().as_usize() != seat.me).collect();
            others.sort_by_key(|held| held.content().count());
            statements.extend(others.into_iter().take(world.quorum().q() - 1).cloned());
        }
        // in an elected round it cannot know the right mask of other ballots before it asks for it
        let root = proposed.justified().decision().mask_root();
        let justified = Justified::from_holdings(&statements, height, root, &world.consortium, &world.round);
        let lie = justified.ok().and_then(|justified| seat.propose_instead(&proposed, justified));
        vec![seat.to_all(lie.unwrap_or(bytes))]
    }
}

struct TwoProposals;

impl Byzantine for TwoProposals {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        let Some(proposed) = seat.own_proposal(&bytes) else { return vec![seat.to_all(bytes)] };
        let height = proposed.proposal().height();
        let abandoned = Justified::abandoned(height, &seat.world.consortium, &seat.world.round);
        match seat.propose_instead(&proposed, abandoned) {
            Some(other) if seat.random.per_mille(500) => seat.to_halves(bytes, other),
            Some(other) => seat.to_halves(other, bytes),
            None => vec![seat.to_all(bytes)],
        }
    }
}

struct SilentAggregator;

impl Byzantine for SilentAggregator {
    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        if seat.own_proposal(&bytes).is_some() { Vec::new() } else { vec![seat.to_all(bytes)] }
    }

    fn answer(&mut self, seat: &mut Seat<'_>, _to: usize, honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        Some(seat.without_own_proposals(honest))
    }
}

struct CopiedBallot;

impl Byzantine for CopiedBallot {
    fn body(&mut self, seat: &mut Seat<'_>, height: Height, own: Body) -> Body {
        let known = seat.machine.and_then(|machine| machine.known(height));
        let copied = known.and_then(|known| {
            let mut bodies = known.headers().map(|header| header.content().body);
            bodies.find_map(|body| seat.bodies.get(&body).cloned())
        });
        copied.unwrap_or(own)
    }
}

/// Gives its own body to the members below a share of them: 0 to nobody, 2 to a half.
struct Serving {
    share: usize,
}

impl Byzantine for Serving {
    fn serves(&mut self, seat: &mut Seat<'_>, to: usize, body: Digest) -> bool {
        let Some(machine) = seat.machine else { return false };
        let heights = (0..machine.heights()).filter_map(|height| machine.known(Height(height)));
        let mine = heights.flat_map(|known| known.headers().cloned().collect::<Vec<_>>());
        let mut mine = mine.filter(|header| header.member().as_usize() == seat.me);
        let own = mine.any(|header| header.content().body == body);
        !own || (self.share > 0 && to < seat.world.members() / self.share)
    }
}

struct GarbageBody;

impl Byzantine for GarbageBody {
    fn body(&mut self, seat: &mut Seat<'_>, height: Height, own: Body) -> Body {
        let mut garbage = own.to_vec();
        match seat.random.below(3) {
            0 => garbage.truncate(own.len() / 2),
            1 => garbage = format!("nothing, at height {height}").into_bytes(),
            _ => {
                let at = seat.random.index(garbage.len().min(64));
                garbage[at] ^= 0x55;
            }
        }
        garbage.into()
    }
}

struct Replay;

impl Replay {
    /// What somebody said in the earlier round.
    fn old(seat: &mut Seat<'_>) -> Vec<u8> {
        let (world, height) = (seat.world, Height(seat.random.below(u64::from(seat.world.heights())) as u32));
        let member = seat.random.index(world.members());
        let (key, round) = (world.key(member), &world.earlier);
        let body = BallotHeader { body: Digest::of(b"old"), body_bytes: 3, claimed_unix_ms: 1 };
        let held = Holdings::from_digests(vec![Some(Digest::of(b"old")); world.members()]);
        let value = Decision::abandoned(height, &world.consortium, round).value();
        let proposal = Proposal { view: 0, value, valid_view: None };
        let sign = (height, &key, &world.consortium, round.id());
        let bytes = match seat.random.below(6) {
            0 => SignatureChecked::sign(body, sign.0, sign.1, sign.2, sign.3).map(|said| said.encode()),
            1 => SignatureChecked::sign(held, sign.0, sign.1, sign.2, sign.3).map(|said| said.encode()),
            2 => SignatureChecked::sign(Prevote { view: 0, value: Some(value) }, sign.0, sign.1, sign.2, sign.3)
                .map(|said| said.encode()),
            3 => SignatureChecked::sign(Precommit { view: 0, value: Some(value) }, sign.0, sign.1, sign.2, sign.3)
                .map(|said| said.encode()),
            4 => SignatureChecked::sign(MaskResult { mask_root: value }, sign.0, sign.1, sign.2, sign.3)
                .map(|said| said.encode()),
            _ => SignatureChecked::sign(proposal, sign.0, sign.1, sign.2, sign.3).map(|said| {
                let decision = Decision::abandoned(height, &world.consortium, round).encode();
                let nothing: (Vec<Holdings>, Vec<(MemberIndex, u16, Signature)>) = Default::default();
                let signed = (said.member(), height, proposal, said.signature());
                framed(Content::Proposed, &(signed, (decision, nothing.0, nothing.1)))
            }),
        };
        bytes.unwrap_or_default()
    }
}

impl Byzantine for Replay {
    fn begin(&mut self, seat: &mut Seat<'_>) -> Vec<Sending> {
        (0..8).map(|_| Sending { to: seat.others(), bytes: Self::old(seat) }).collect()
    }

    fn hear(&mut self, seat: &mut Seat<'_>, bytes: &[u8]) -> Vec<Sending> {
        match seat.random.below(10) {
            0 => vec![Sending { to: seat.others(), bytes: Self::old(seat) }],
            1 => vec![seat.to_all(bytes.to_vec())],
            _ => Vec::new(),
        }
    }

    fn answer(&mut self, seat: &mut Seat<'_>, _to: usize, mut honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        honest.extend((0..4).map(|_| Self::old(seat)));
        Some(honest)
    }
}

/// Signed proposal, then decision, lists and statements.
type ProposedParts =
    ((MemberIndex, Height, Proposal, Signature), (Vec<u8>, Vec<Holdings>, Vec<(MemberIndex, u16, Signature)>));

struct Forger;

impl Forger {
    fn forge(seat: &mut Seat<'_>, bytes: &[u8]) -> Vec<u8> {
        let parts = bytes.get(wire::PREFIX_BYTES..).unwrap_or_default();
        let proposed = matches!(wire::content_of(bytes), Ok(Some(Content::Proposed)));
        if proposed && let Ok((proposal, mut grounds)) = codec::decode::<ProposedParts, { 1 << 20 }>(parts) {
            let height = proposal.1;
            match seat.random.below(4) {
                0 => grounds.0 = Decision::abandoned(height, &seat.world.consortium, &seat.world.round).encode(),
                1 => grounds.0.reverse(),
                2 => drop(grounds.2.pop()),
                _ => grounds.1.push(Holdings::none(seat.world.members())),
            }
            return framed(Content::Proposed, &(proposal, grounds));
        }
        let mut forged = bytes.to_vec();
        let at = seat.random.index(forged.len());
        forged[at] ^= 1 << seat.random.below(8);
        forged
    }
}

impl Byzantine for Forger {
    fn hear(&mut self, seat: &mut Seat<'_>, bytes: &[u8]) -> Vec<Sending> {
        let forged = Self::forge(seat, bytes);
        vec![seat.to_all(forged)]
    }

    fn answer(&mut self, seat: &mut Seat<'_>, _to: usize, honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        Some(honest.iter().map(|bytes| Self::forge(seat, bytes)).collect())
    }
}

struct Mute;

impl Byzantine for Mute {
    fn publish(&mut self, _seat: &mut Seat<'_>, _bytes: Vec<u8>) -> Vec<Sending> {
        Vec::new()
    }

    fn answer(&mut self, _seat: &mut Seat<'_>, _to: usize, _honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        None
    }

    fn serves(&mut self, _seat: &mut Seat<'_>, _to: usize, _body: Digest) -> bool {
        false
    }
}

struct Anything;

impl Anything {
    fn any(seat: &mut Seat<'_>) -> Box<dyn Byzantine> {
        let lies: Vec<Lie> = Lie::ALL.into_iter().filter(|lie| *lie != Lie::Anything).collect();
        lies[seat.random.index(lies.len())].liar()
    }
}

impl Byzantine for Anything {
    fn begin(&mut self, seat: &mut Seat<'_>) -> Vec<Sending> {
        Self::any(seat).begin(seat)
    }

    fn body(&mut self, seat: &mut Seat<'_>, height: Height, own: Body) -> Body {
        Self::any(seat).body(seat, height, own)
    }

    fn publish(&mut self, seat: &mut Seat<'_>, bytes: Vec<u8>) -> Vec<Sending> {
        Self::any(seat).publish(seat, bytes)
    }

    fn hear(&mut self, seat: &mut Seat<'_>, bytes: &[u8]) -> Vec<Sending> {
        Self::any(seat).hear(seat, bytes)
    }

    fn answer(&mut self, seat: &mut Seat<'_>, to: usize, honest: Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>> {
        Self::any(seat).answer(seat, to, honest)
    }

    fn serves(&mut self, seat: &mut Seat<'_>, to: usize, body: Digest) -> bool {
        Self::any(seat).serves(seat, to, body)
    }
}
