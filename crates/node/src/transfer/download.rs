//! Which member is asked for which chunk next.
//!
//! A [`Downloads`] is told which bodies are wanted and who may have them, says whom to ask ([`Downloads::next`]),
//! and hears what came of it ([`Downloads::answered`]). The same calls in the same order give the same requests.
//!
//! * The last chunk of a body is asked for first and alone: it proves the size, so a false one costs one chunk.
//! * Then chunks in order, from a place that differs from member to member, so that members who fetch the same body
//!   at the same time soon have different parts of it to give to each other.
//! * Of those without a failure, whoever has the fewest requests is asked. A member that fails or is busy is left
//!   alone for a time that doubles, and then asked for one chunk at a time, when the others have enough to do,
//!   until it delivers.
//! * A member that does not hold a body may get it: it is asked again later, or as soon as it is named as a source
//!   again.
//! * A corrupt chunk is no accident (connections are authenticated): that member is not asked for that body again.
//! * **Endgame**, the only case of two requests for one chunk at a time: when no chunk of a body is left to ask for
//!   and a request is [`ENDGAME_MS`] old, one other member is asked for the same chunk. Otherwise a member that is
//!   silent from spite would delay the end by [`NO_PROGRESS_MS`].

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use fedprune_federation::MemberIndex;
use fedprune_mask::Digest;

use super::limits::{
    ENDGAME_MS, FIRST_BACKOFF_MS, FIRST_NOT_HELD_MS, MAX_BACKOFF_MS, MAX_NOT_HELD_MS, MAX_REQUESTS,
    MAX_REQUESTS_PER_BODY, MAX_REQUESTS_PER_MEMBER, MAX_WANTED_BODIES, NO_PROGRESS_MS,
};
use crate::storage::blobs::chunk_count;

/// A body as it was announced. Two announcements of one root under different sizes are two bodies, of which one
/// does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Body {
    /// Its root.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// Ask this member for this chunk, and say what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request {
    /// Tells it from every other request.
    pub number: u64,
    /// Whom.
    pub member: MemberIndex,
    /// Of what.
    pub body: Body,
    /// Which chunk, from 0.
    pub chunk: u32,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The chunk came, is right and is stored.
    Verified,
    /// The member does not have it.
    NotHeld,
    /// The member has too much to do.
    Busy,
    /// No connection, or it broke.
    Failed,
    /// Something came, and it is not that chunk.
    Corrupt,
}

/// What the caller should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// All chunks are there; the body is no longer wanted.
    Completed(Body),
    /// A member gave a corrupt chunk and is not asked for this body again.
    Banned {
        /// Who.
        member: MemberIndex,
        /// Of what.
        body: Body,
        /// Whether the size of the body is proven. If not, the one to blame may be whoever announced the size.
        size_proven: bool,
    },
}

/// See [`Downloads::next`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct Next {
    /// To be sent.
    pub ask: Vec<Request>,
    /// No longer waited for, because nothing of their answer came for [`NO_PROGRESS_MS`]; they can be cancelled. A
    /// right chunk that comes after all is still welcome.
    pub timed_out: Vec<Request>,
}

/// How far a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Chunks of it.
    pub chunks: u32,
    /// Chunks that are missing.
    pub missing: usize,
    /// Requests under way.
    pub asked: usize,
    /// Members that may still be asked, now or later.
    pub sources: usize,
}

/// Why a body cannot be wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WantError {
    /// Too many already.
    #[error("{MAX_WANTED_BODIES} bodies are being fetched already; wait until some are complete")]
    TooMany,
    /// Larger than any body.
    #[error("no body has {0} bytes")]
    Size(u64),
}

/// The bodies that are being fetched.
#[derive(Debug)]
pub struct Downloads {
    /// Where in a body this member begins.
    begin: u64,
    wanted: BTreeMap<Body, Wanted>,
    members: BTreeMap<MemberIndex, Member>,
    /// By number; at most [`MAX_REQUESTS`].
    requests: BTreeMap<u64, Asked>,
    next_number: u64,
}

#[derive(Debug)]
struct Wanted {
    priority: u32,
    chunks: u32,
    missing: BTreeSet<u32>,
    sources: BTreeMap<MemberIndex, Source>,
}

#[derive(Debug, Default)]
struct Source {
    banned: bool,
    /// How often in a row it did not hold the body.
    not_held_times: u32,
    not_before_ms: u64,
}

#[derive(Debug, Default)]
struct Member {
    /// In a row.
    failures: u32,
    not_before_ms: u64,
    /// When the last failure was counted: requests sent up to then failed of the same cause.
    failed_ms: Option<u64>,
    /// Requests under way.
    asked: usize,
    /// Number of the last request to it.
    last_asked: u64,
}

#[derive(Debug)]
struct Asked {
    request: Request,
    sent_ms: u64,
    progress_ms: u64,
}

impl Wanted {
    fn size_proven(&self) -> bool {
        !self.missing.contains(&self.chunks.saturating_sub(1))
    }
}

impl Downloads {
    /// Nothing is wanted yet. `me` decides where in bodies to begin.
    pub fn new(me: MemberIndex) -> Self {
        // steps of the golden ratio spread any number of members evenly
        let begin = u64::from(me.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let (wanted, members, requests) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { begin, wanted, members, requests, next_number: 1 }
    }

    /// Fetch a body of which these chunks are held; those of higher priority first, then smaller digests. A body
    /// that is wanted already gets this priority, and `held` is added to what it has. Returns whether it is complete,
    /// in which case it is not wanted.
    ///
    /// # Errors
    /// [`WantError`].
    pub fn want(&mut self, body: Body, priority: u32, held: impl IntoIterator<Item = u32>) -> Result<bool, WantError> {
        let chunks = chunk_count(body.size_bytes).ok_or(WantError::Size(body.size_bytes))?;
        if !self.wanted.contains_key(&body) && self.wanted.len() >= MAX_WANTED_BODIES {
            return Err(WantError::TooMany);
        }
        let missing = (0..chunks).collect();
        let wanted = self.wanted.entry(body).or_insert(Wanted { priority, chunks, missing, sources: BTreeMap::new() });
        wanted.priority = priority;
        for chunk in held {
            wanted.missing.remove(&chunk);
        }
        let complete = wanted.missing.is_empty();
        if complete {
            self.wanted.remove(&body);
        }
        Ok(complete)
    }

    /// These members may have the body, others too. Those that did not hold it are asked anew. Returns whether the
    /// body is wanted.
    pub fn sources(&mut self, body: Body, members: &[MemberIndex]) -> bool {
        let Some(wanted) = self.wanted.get_mut(&body) else { return false };
        for member in members {
            let source = wanted.sources.entry(*member).or_default();
            (source.not_held_times, source.not_before_ms) = (0, 0);
        }
        true
    }

    /// A body is no longer wanted. Requests for it are still counted until they are answered.
    pub fn forget(&mut self, body: Body) {
        self.wanted.remove(&body);
    }

    /// A member has connected anew: what went wrong before no longer counts.
    pub fn connected(&mut self, member: MemberIndex) {
        if let Some(member) = self.members.get_mut(&member) {
            (member.failures, member.not_before_ms, member.failed_ms) = (0, 0, None);
        }
    }

    /// Something of the answer to a request came; for codecs that can tell.
    pub fn progressed(&mut self, request: &Request, now_ms: u64) {
        if let Some(asked) = self.requests.get_mut(&request.number) {
            asked.progress_ms = asked.progress_ms.max(now_ms);
        }
    }

    /// Whom to ask for what now. To be called after every other call that changes something, and at
    /// [`Downloads::wake_at_ms`].
    pub fn next(&mut self, now_ms: u64) -> Next {
        let old = |asked: &Asked| now_ms.saturating_sub(asked.progress_ms) >= NO_PROGRESS_MS;
        let expired: Vec<u64> =
            self.requests.iter().filter(|(_, asked)| old(asked)).map(|(number, _)| *number).collect();
        let mut next = Next::default();
        for number in expired {
            let Some(asked) = self.take(number) else { continue };
            self.failed(asked.request.member, asked.sent_ms, now_ms);
            next.timed_out.push(asked.request);
        }
        let mut order: Vec<(u32, Body)> = self.wanted.iter().map(|(body, wanted)| (wanted.priority, *body)).collect();
        order.sort_unstable_by_key(|(priority, body)| (std::cmp::Reverse(*priority), *body));
        for (_, body) in order {
            if self.requests.len() >= MAX_REQUESTS {
                break;
            }
            while self.requests.len() < MAX_REQUESTS {
                let Some((member, chunk)) = self.pick(&body, now_ms) else { break };
                let request = Request { number: self.next_number, member, body, chunk };
                self.next_number = self.next_number.saturating_add(1);
                let state = self.members.entry(member).or_default();
                state.last_asked = request.number;
                state.asked = state.asked.saturating_add(1);
                self.requests.insert(request.number, Asked { request, sent_ms: now_ms, progress_ms: now_ms });
                next.ask.push(request);
            }
        }
        next
    }

    /// A request is no longer under way.
    fn take(&mut self, number: u64) -> Option<Asked> {
        let asked = self.requests.remove(&number)?;
        if let Some(member) = self.members.get_mut(&asked.request.member) {
            member.asked = member.asked.saturating_sub(1);
        }
        Some(asked)
    }

    /// The next request for a body, if one can be made now.
    fn pick(&self, body: &Body, now_ms: u64) -> Option<(MemberIndex, u32)> {
        let wanted = self.wanted.get(body)?;
        let asked: Vec<&Asked> = self.requests.values().filter(|asked| asked.request.body == *body).collect();
        if asked.len() >= MAX_REQUESTS_PER_BODY {
            return None;
        }
        let is_asked = |chunk: u32| asked.iter().any(|asked| asked.request.chunk == chunk);
        let fresh = if wanted.size_proven() {
            let begin = u32::try_from(self.begin % u64::from(wanted.chunks)).unwrap_or(0);
            wanted.missing.range(begin..).chain(wanted.missing.range(..begin)).copied().find(|chunk| !is_asked(*chunk))
        } else {
            Some(wanted.chunks.saturating_sub(1)).filter(|chunk| !is_asked(*chunk))
        };
        if let Some(chunk) = fresh {
            return Some((self.choose(wanted, now_ms, None)?, chunk));
        }
        // endgame
        asked.iter().find_map(|first| {
            let chunk = first.request.chunk;
            let alone = asked.iter().filter(|asked| asked.request.chunk == chunk).count() == 1;
            let late = now_ms.saturating_sub(first.sent_ms) >= ENDGAME_MS;
            if !(alone && late && wanted.missing.contains(&chunk)) {
                return None;
            }
            Some((self.choose(wanted, now_ms, Some(first.request.member))?, chunk))
        })
    }

    /// The best source that can be asked now.
    fn choose(&self, wanted: &Wanted, now_ms: u64, except: Option<MemberIndex>) -> Option<MemberIndex> {
        let usable = wanted.sources.iter().filter_map(|(member, source)| {
            if source.banned || source.not_before_ms > now_ms || except == Some(*member) {
                return None;
            }
            let fresh = Member::default();
            let state = self.members.get(member).unwrap_or(&fresh);
            let most = if state.failures == 0 { MAX_REQUESTS_PER_MEMBER } else { 1 };
            (state.not_before_ms <= now_ms && state.asked < most).then_some((
                state.failures,
                state.asked,
                state.last_asked,
                *member,
            ))
        });
        usable.min().map(|(.., member)| member)
    }

    /// What came of a request. An answer to one that timed out counts if it is right or corrupt.
    pub fn answered(&mut self, request: &Request, outcome: Outcome, now_ms: u64) -> Option<Event> {
        let Request { number, member, body, chunk } = *request;
        let asked = self.requests.get(&number).filter(|asked| asked.request == *request).map(|asked| asked.sent_ms);
        if asked.is_some() {
            self.take(number);
        }
        match (outcome, asked) {
            (Outcome::Busy | Outcome::Failed, Some(sent_ms)) => {
                self.failed(member, sent_ms, now_ms);
                return None;
            }
            (Outcome::Busy | Outcome::Failed | Outcome::NotHeld, None) => return None,
            (Outcome::Verified | Outcome::NotHeld, Some(_)) => self.connected(member),
            (Outcome::Verified, None) | (Outcome::Corrupt, _) => {}
        }
        let wanted = self.wanted.get_mut(&body)?;
        let source = wanted.sources.get_mut(&member);
        match (outcome, source) {
            (Outcome::Verified, source) => {
                if let Some(source) = source {
                    (source.not_held_times, source.not_before_ms) = (0, 0);
                }
                wanted.missing.remove(&chunk);
                if wanted.missing.is_empty() {
                    self.wanted.remove(&body);
                    return Some(Event::Completed(body));
                }
                None
            }
            (Outcome::NotHeld, Some(source)) => {
                // of several requests at once, one counts
                if source.not_before_ms <= now_ms {
                    source.not_before_ms =
                        now_ms.saturating_add(doubled(FIRST_NOT_HELD_MS, source.not_held_times, MAX_NOT_HELD_MS));
                    source.not_held_times = source.not_held_times.saturating_add(1);
                }
                None
            }
            (Outcome::Corrupt, Some(source)) if !source.banned => {
                source.banned = true;
                Some(Event::Banned { member, body, size_proven: wanted.size_proven() })
            }
            _ => None,
        }
    }

    fn failed(&mut self, member: MemberIndex, sent_ms: u64, now_ms: u64) {
        let member = self.members.entry(member).or_default();
        if member.failed_ms.is_some_and(|failed_ms| sent_ms <= failed_ms) {
            return;
        }
        member.failed_ms = Some(now_ms);
        member.not_before_ms = now_ms.saturating_add(doubled(FIRST_BACKOFF_MS, member.failures, MAX_BACKOFF_MS));
        member.failures = member.failures.saturating_add(1);
    }

    /// When [`Downloads::next`] may have something to say without anything else happening; `None` for never.
    pub fn wake_at_ms(&self, now_ms: u64) -> Option<u64> {
        let of_requests = self.requests.values().flat_map(|asked| {
            [asked.progress_ms.saturating_add(NO_PROGRESS_MS), asked.sent_ms.saturating_add(ENDGAME_MS)]
        });
        let of_sources = self.wanted.values().flat_map(|wanted| {
            wanted.sources.iter().filter(|(_, source)| !source.banned).map(|(member, source)| {
                let of_member = self.members.get(member).map_or(0, |member| member.not_before_ms);
                source.not_before_ms.max(of_member)
            })
        });
        of_requests.chain(of_sources).filter(|at_ms| *at_ms > now_ms).min()
    }

    /// How far a body is; `None` when it is not wanted.
    pub fn progress(&self, body: &Body) -> Option<Progress> {
        let wanted = self.wanted.get(body)?;
        Some(Progress {
            chunks: wanted.chunks,
            missing: wanted.missing.len(),
            asked: self.requests.values().filter(|asked| asked.request.body == *body).count(),
            sources: wanted.sources.values().filter(|source| !source.banned).count(),
        })
    }

    /// Bodies that are wanted.
    pub fn wanted(&self) -> impl Iterator<Item = &Body> {
        self.wanted.keys()
    }
}

/// `first` doubled `times` times, at most `most`.
fn doubled(first: u64, times: u32, most: u64) -> u64 {
    1u64.checked_shl(times).and_then(|factor| first.checked_mul(factor)).map_or(most, |value| value.min(most))
}
