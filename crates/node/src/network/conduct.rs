//! What members cost, and what becomes of one that costs too much.
//!
//! Each member has allowances: so many messages, questions and requests for chunks, and so many bytes that nobody asked
//! for, at once and in a second from then on. They are far beyond what honest members use, and what goes beyond them
//! is dropped before it is looked at. Whoever goes far beyond them, or sends what no honest member sends, gathers
//! *faults*; they are forgiven with time. Too many, and the member is *shut out*: its connections are closed, and it
//! is refused for a while, twice as long each time. What it signed still reaches this node through others.
//!
//! Time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use fedprune_federation::MemberIndex;
use tokio::time::Instant;

use crate::limits::{
    CHUNK_REQUESTS_AT_ONCE, CHUNK_REQUESTS_PER_SECOND, FAULTS_FORGIVEN_PER_SECOND, GOSSIP_MESSAGES_AT_ONCE,
    GOSSIP_MESSAGES_PER_SECOND, MOST_FAULTS, QUESTIONS_AT_ONCE, QUESTIONS_PER_SECOND, SHUT_OUT_FIRST, SHUT_OUT_LONGEST,
    UNASKED_BYTES_AT_ONCE, UNASKED_BYTES_PER_SECOND,
};

/// What one thing beyond an allowance counts of a fault.
const OF_EXCESS: f64 = 1.0 / 64.0;

/// So much at once, and so much in a second from then on.
#[derive(Debug)]
struct Allowance {
    left: f64,
    at_once: f64,
    per_second: f64,
    at: Instant,
}

impl Allowance {
    fn new(at_once: u64, per_second: u64, now: Instant) -> Self {
        let at_once = at_once as f64;
        Self { left: at_once, at_once, per_second: per_second as f64, at: now }
    }

    /// Takes so much of it; whether it was there.
    fn take(&mut self, amount: u64, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * self.per_second).min(self.at_once);
        self.at = now;
        let amount = amount as f64;
        let there = self.left >= amount;
        // what is used up does not become a debt of hours
        self.left = (self.left - amount).max(-self.at_once);
        there
    }
}

/// What a member did that no honest one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// Passed on a message that no honest member passes on.
    Message,
    /// Asked what is no question.
    Question,
    /// More messages than it may.
    Messages,
    /// More questions than it may.
    Questions,
    /// More requests for chunks than it may.
    Chunks,
    /// More bytes than it may, that nobody asked for.
    Bytes,
}

impl Fault {
    fn in_words(self) -> &'static str {
        match self {
            Self::Message => "messages that no honest member passes on",
            Self::Question => "questions that are none",
            Self::Messages => "more messages than a member may send",
            Self::Questions => "more questions than a member may ask",
            Self::Chunks => "more requests for ballots than a member may send",
            Self::Bytes => "more bytes that nobody asked for than a member may send",
        }
    }
}

/// A member is not heard for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShutOut {
    pub(super) why: String,
    pub(super) lasts: Duration,
}

struct Of {
    messages: Allowance,
    questions: Allowance,
    chunks: Allowance,
    unasked: Allowance,
    /// Bytes that nobody asked for, as they were counted last.
    counted: u64,
    faults: f64,
    forgiven_at: Instant,
    /// How often it was shut out.
    times: u32,
    until: Option<Instant>,
}

/// How members behave.
pub(super) struct Conduct {
    members: BTreeMap<MemberIndex, Of>,
}

impl Conduct {
    pub(super) fn new(members: impl IntoIterator<Item = MemberIndex>, now: Instant) -> Self {
        let of = || Of {
            messages: Allowance::new(GOSSIP_MESSAGES_AT_ONCE, GOSSIP_MESSAGES_PER_SECOND, now),
            questions: Allowance::new(QUESTIONS_AT_ONCE, QUESTIONS_PER_SECOND, now),
            chunks: Allowance::new(CHUNK_REQUESTS_AT_ONCE, CHUNK_REQUESTS_PER_SECOND, now),
            unasked: Allowance::new(UNASKED_BYTES_AT_ONCE, UNASKED_BYTES_PER_SECOND, now),
            counted: 0,
            faults: 0.0,
            forgiven_at: now,
            times: 0,
            until: None,
        };
        Self { members: members.into_iter().map(|member| (member, of())).collect() }
    }

    /// Whether a message of this member may be looked at; if not, whether the member is shut out for it.
    pub(super) fn message(&mut self, member: MemberIndex, now: Instant) -> Result<(), Option<ShutOut>> {
        self.use_up(member, |of| &mut of.messages, Fault::Messages, now)
    }

    /// As [`message`](Self::message), for a question.
    pub(super) fn question(&mut self, member: MemberIndex, now: Instant) -> Result<(), Option<ShutOut>> {
        self.use_up(member, |of| &mut of.questions, Fault::Questions, now)
    }

    /// As [`message`](Self::message), for a request for a chunk.
    pub(super) fn chunk(&mut self, member: MemberIndex, now: Instant) -> Result<(), Option<ShutOut>> {
        self.use_up(member, |of| &mut of.chunks, Fault::Chunks, now)
    }

    /// Takes note of all bytes of a member that nobody asked for; whether it is shut out for them.
    pub(super) fn unasked(&mut self, member: MemberIndex, in_all: u64, now: Instant) -> Option<ShutOut> {
        let of = self.members.get_mut(&member)?;
        let more = in_all.saturating_sub(of.counted);
        of.counted = in_all;
        if of.unasked.take(more, now) {
            return None;
        }
        of.faults = MOST_FAULTS as f64;
        self.fault(member, Fault::Bytes, now)
    }

    /// Takes note of what no honest member does; whether the member is shut out for it.
    pub(super) fn fault(&mut self, member: MemberIndex, fault: Fault, now: Instant) -> Option<ShutOut> {
        self.count(member, fault, 1.0, now)
    }

    fn use_up(
        &mut self,
        member: MemberIndex,
        of_what: fn(&mut Of) -> &mut Allowance,
        fault: Fault,
        now: Instant,
    ) -> Result<(), Option<ShutOut>> {
        let Some(of) = self.members.get_mut(&member) else { return Err(None) };
        if of_what(of).take(1, now) { Ok(()) } else { Err(self.count(member, fault, OF_EXCESS, now)) }
    }

    fn count(&mut self, member: MemberIndex, fault: Fault, weight: f64, now: Instant) -> Option<ShutOut> {
        let of = self.members.get_mut(&member)?;
        if of.until.is_some() {
            return None; // what was under way when it was shut out
        }
        let forgiven = now.saturating_duration_since(of.forgiven_at).as_secs_f64() * FAULTS_FORGIVEN_PER_SECOND;
        of.faults = (of.faults - forgiven).max(0.0) + weight;
        of.forgiven_at = now;
        if of.faults < MOST_FAULTS as f64 {
            return None;
        }
        let doubled = 1u32.checked_shl(of.times).unwrap_or(u32::MAX);
        let lasts = SHUT_OUT_FIRST.saturating_mul(doubled).min(SHUT_OUT_LONGEST);
        of.times = of.times.saturating_add(1);
        of.until = Some(now + lasts);
        of.faults = 0.0;
        Some(ShutOut { why: fault.in_words().to_owned(), lasts })
    }

    /// Whether a member is shut out.
    pub(super) fn is_out(&self, member: MemberIndex) -> bool {
        self.members.get(&member).is_some_and(|of| of.until.is_some())
    }

    /// When [`forgiven`](Self::forgiven) has somebody.
    pub(super) fn next(&self) -> Option<Instant> {
        self.members.values().filter_map(|of| of.until).min()
    }

    /// Takes those who may come back.
    pub(super) fn forgiven(&mut self, now: Instant) -> Vec<MemberIndex> {
        let mut back = Vec::new();
        for (member, of) in &mut self.members {
            if of.until.take_if(|until| *until <= now).is_some() {
                back.push(*member);
            }
        }
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: MemberIndex = MemberIndex(1);
    const OTHER: MemberIndex = MemberIndex(2);

    fn conduct() -> (Conduct, Instant) {
        let now = Instant::now();
        (Conduct::new([ONE, OTHER], now), now)
    }

    #[test]
    fn an_allowance_is_used_up_and_comes_back() {
        let (mut conduct, now) = conduct();
        for _ in 0..QUESTIONS_AT_ONCE {
            assert_eq!(conduct.question(ONE, now), Ok(()));
        }
        assert_eq!(conduct.question(ONE, now), Err(None), "dropped, and no reason yet to shut it out");
        assert_eq!(conduct.question(OTHER, now), Ok(()), "everybody has its own");
        let later = now + Duration::from_secs(2);
        for _ in 0..QUESTIONS_PER_SECOND {
            assert_eq!(conduct.question(ONE, later), Ok(()));
        }
        assert_eq!(conduct.question(MemberIndex(9), now), Err(None), "no member");
    }

    #[test]
    fn far_beyond_its_allowance_a_member_is_shut_out_and_comes_back() {
        let (mut conduct, now) = conduct();
        let mut out = None;
        let mut sent = 0;
        while out.is_none() {
            sent += 1;
            out = conduct.message(ONE, now).err().flatten();
        }
        let beyond = sent - GOSSIP_MESSAGES_AT_ONCE;
        assert_eq!(beyond, (MOST_FAULTS as f64 / OF_EXCESS) as u64);
        assert_eq!(out.unwrap().lasts, SHUT_OUT_FIRST);
        assert!(conduct.is_out(ONE) && !conduct.is_out(OTHER));
        assert_eq!(conduct.fault(ONE, Fault::Message, now), None, "once is enough");
        assert_eq!(conduct.next(), Some(now + SHUT_OUT_FIRST));
        assert_eq!(conduct.forgiven(now), []);
        let later = now + SHUT_OUT_FIRST;
        assert_eq!(conduct.forgiven(later), [ONE]);
        assert!(!conduct.is_out(ONE));
        // the next time is longer
        let mut faults = (0..MOST_FAULTS).filter_map(|_| conduct.fault(ONE, Fault::Message, later));
        assert_eq!(faults.next().unwrap().lasts, SHUT_OUT_FIRST * 2);
    }

    #[test]
    fn few_faults_in_a_long_time_are_forgiven() {
        let (mut conduct, mut now) = conduct();
        for _ in 0..10 * MOST_FAULTS {
            assert_eq!(conduct.fault(ONE, Fault::Question, now), None);
            now += Duration::from_secs_f64(1.0 / FAULTS_FORGIVEN_PER_SECOND);
        }
    }

    #[test]
    fn bytes_that_nobody_asked_for_shut_out_at_once() {
        let (mut conduct, now) = conduct();
        assert_eq!(conduct.unasked(ONE, UNASKED_BYTES_AT_ONCE, now), None);
        let later = now + Duration::from_secs(1);
        let in_all = UNASKED_BYTES_AT_ONCE + UNASKED_BYTES_PER_SECOND;
        assert_eq!(conduct.unasked(ONE, in_all, later), None, "counted from the last time");
        let out = conduct.unasked(ONE, in_all + UNASKED_BYTES_AT_ONCE, later).unwrap();
        assert!(out.why.contains("nobody asked for"));
    }
}
