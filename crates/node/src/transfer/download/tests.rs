//! The rules one by one, then any pattern of failures against them all.

use super::*;
use crate::storage::limits::CHUNK_BYTES;
use proptest::prelude::*;

fn body(name: &str, chunks: u64) -> Body {
    Body { digest: Digest::of(name.as_bytes()), size_bytes: chunks * CHUNK_BYTES }
}

fn members(count: u16) -> Vec<MemberIndex> {
    (0..count).map(MemberIndex).collect()
}

/// A body is wanted from these members, and its size is proven.
fn started(chunks: u64, sources: u16) -> (Downloads, Body) {
    let mut downloads = Downloads::new(MemberIndex(0));
    let body = body("body", chunks);
    assert!(!downloads.want(body, 0, [chunks as u32 - 1]).unwrap());
    assert!(downloads.sources(body, &members(sources)));
    (downloads, body)
}

fn chunks(requests: &[Request]) -> Vec<u32> {
    requests.iter().map(|request| request.chunk).collect()
}

#[test]
fn the_last_chunk_proves_the_size_before_anything_else_is_asked_for() {
    let mut downloads = Downloads::new(MemberIndex(3));
    let body = body("body", 100);
    downloads.want(body, 0, [5, 6]).unwrap();
    assert_eq!(downloads.next(0), Next::default(), "no sources yet");
    downloads.sources(body, &members(5));
    let first = downloads.next(0);
    assert_eq!((chunks(&first.ask), downloads.next(0).ask.len()), (vec![99], 0));
    let banned = downloads.answered(&first.ask[0], Outcome::Corrupt, 1).unwrap();
    assert_eq!(banned, Event::Banned { member: first.ask[0].member, body, size_proven: false });
    let second = downloads.next(1);
    assert_eq!(chunks(&second.ask), [99]);
    assert_ne!(second.ask[0].member, first.ask[0].member);
    assert_eq!(downloads.answered(&second.ask[0], Outcome::Verified, 2), None);
    let third = downloads.next(2);
    assert_eq!(third.ask.len(), MAX_REQUESTS_PER_BODY);
    let banned = downloads.answered(&third.ask[0], Outcome::Corrupt, 3).unwrap();
    assert!(matches!(banned, Event::Banned { size_proven: true, .. }));
    assert_eq!(downloads.progress(&body), Some(Progress { chunks: 100, missing: 97, asked: 7, sources: 3 }));
}

#[test]
fn requests_are_spread_over_sources_and_limited() {
    let (mut downloads, _) = started(100, 1);
    assert_eq!(downloads.next(0).ask.len(), MAX_REQUESTS_PER_MEMBER);
    let (mut downloads, wanted) = started(100, 4);
    let ask = downloads.next(0).ask;
    assert_eq!(chunks(&ask), (0..8).collect::<Vec<_>>());
    for member in members(4) {
        assert_eq!(ask.iter().filter(|request| request.member == member).count(), 2);
    }
    assert!(ask.iter().all(|request| request.body == wanted));
    assert_eq!(downloads.next(0), Next::default());
    assert_eq!(downloads.answered(&ask[3], Outcome::Verified, 9), None);
    let more = downloads.next(9).ask;
    assert_eq!((chunks(&more), more[0].member), (vec![8], ask[3].member), "whoever has least to do");
    // all bodies together
    let mut downloads = Downloads::new(MemberIndex(0));
    for number in 0..10 {
        let body = body(&number.to_string(), 50);
        downloads.want(body, number, [49]).unwrap();
        downloads.sources(body, &members(40));
    }
    let ask = downloads.next(0).ask;
    assert_eq!(ask.len(), MAX_REQUESTS);
    assert_eq!(ask[0].body, body("9", 50), "the highest priority comes first");
    assert!(ask[..8].iter().all(|request| request.body == ask[0].body));
}

#[test]
fn members_begin_at_different_places() {
    let begins: BTreeSet<u32> = members(8)
        .into_iter()
        .map(|me| {
            let mut downloads = Downloads::new(me);
            let body = body("body", 100);
            downloads.want(body, 0, [99]).unwrap();
            downloads.sources(body, &members(1));
            let ask = chunks(&downloads.next(0).ask);
            assert!(ask.iter().zip(&ask[1..]).all(|(a, b)| b % 99 == (a + 1) % 99), "{ask:?}");
            ask[0]
        })
        .collect();
    assert!(begins.len() >= 7, "{begins:?}");
}

#[test]
fn a_failing_member_is_left_alone_for_longer_and_longer() {
    let (mut downloads, _) = started(100, 1);
    let ask = downloads.next(0).ask;
    for request in &ask {
        assert_eq!(downloads.answered(request, Outcome::Busy, 10), None);
    }
    let mut now_ms = 10;
    for wait_ms in [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
        assert_eq!(downloads.next(now_ms + wait_ms - 1), Next::default(), "four at once are one failure");
        assert_eq!(downloads.wake_at_ms(now_ms), Some(now_ms + wait_ms));
        now_ms += wait_ms;
        let ask = downloads.next(now_ms).ask;
        assert_eq!(ask.len(), 1, "one at a time until it delivers");
        assert_eq!(downloads.answered(&ask[0], Outcome::Failed, now_ms), None);
    }
    now_ms += 30_000;
    let ask = downloads.next(now_ms).ask;
    downloads.answered(&ask[0], Outcome::Verified, now_ms);
    assert_eq!(downloads.next(now_ms).ask.len(), MAX_REQUESTS_PER_MEMBER);
    // connecting anew is a fresh start too
    let (mut downloads, _) = started(100, 1);
    let ask = downloads.next(0).ask;
    downloads.answered(&ask[0], Outcome::Failed, 0);
    assert_eq!(downloads.next(0), Next::default());
    downloads.connected(MemberIndex(0));
    assert_eq!(downloads.next(0).ask.len(), 1, "the fourth slot");
}

#[test]
fn a_member_without_the_body_is_asked_again_later_or_when_named_again() {
    let (mut downloads, body) = started(100, 1);
    for request in downloads.next(0).ask {
        downloads.answered(&request, Outcome::NotHeld, 0);
    }
    assert_eq!((downloads.next(499), downloads.wake_at_ms(0)), (Next::default(), Some(500)));
    for request in downloads.next(500).ask {
        downloads.answered(&request, Outcome::NotHeld, 500);
    }
    assert_eq!(downloads.wake_at_ms(500), Some(1500));
    downloads.sources(body, &members(1));
    assert_eq!(downloads.next(501).ask.len(), MAX_REQUESTS_PER_MEMBER);
}

#[test]
fn a_silent_request_times_out_but_a_late_answer_is_welcome() {
    let (mut downloads, body) = started(3, 1);
    let ask = downloads.next(0).ask;
    downloads.progressed(&ask[1], 20_000);
    assert_eq!(downloads.next(NO_PROGRESS_MS - 1), Next::default());
    assert_eq!(downloads.next(NO_PROGRESS_MS).timed_out, ask[..1]);
    assert_eq!(downloads.answered(&ask[0], Outcome::Failed, NO_PROGRESS_MS), None);
    assert_eq!(downloads.answered(&ask[0], Outcome::Verified, NO_PROGRESS_MS), None);
    assert_eq!(downloads.progress(&body).unwrap().missing, 1);
    assert_eq!(downloads.answered(&ask[1], Outcome::Verified, NO_PROGRESS_MS), Some(Event::Completed(body)));
    assert_eq!(downloads.answered(&ask[1], Outcome::Verified, NO_PROGRESS_MS), None);
    assert_eq!((downloads.wanted().count(), downloads.wake_at_ms(0)), (0, None));
}

#[test]
fn the_end_is_not_held_up_by_one_silent_member() {
    let (mut downloads, body) = started(3, 2);
    let ask = downloads.next(0).ask;
    assert_eq!(chunks(&ask), [0, 1]);
    downloads.answered(&ask[0], Outcome::Verified, 10);
    assert_eq!((downloads.next(ENDGAME_MS - 1), downloads.wake_at_ms(10)), (Next::default(), Some(ENDGAME_MS)));
    let again = downloads.next(ENDGAME_MS).ask;
    assert_eq!((chunks(&again), again[0].member), (vec![1], ask[0].member));
    assert_eq!(downloads.next(2 * ENDGAME_MS), Next::default(), "not a third time");
    assert_eq!(downloads.answered(&again[0], Outcome::Verified, 2 * ENDGAME_MS), Some(Event::Completed(body)));
}

#[test]
fn what_is_held_is_not_asked_for() {
    let mut downloads = Downloads::new(MemberIndex(0));
    let small = body("small", 2);
    assert!(downloads.want(small, 0, [0, 1]).unwrap());
    assert_eq!(downloads.progress(&small), None);
    let empty = Body { digest: Digest::of(b""), size_bytes: 0 };
    assert!(!downloads.want(empty, 0, []).unwrap());
    downloads.sources(empty, &members(1));
    let ask = downloads.next(0).ask;
    assert_eq!(chunks(&ask), [0]);
    assert_eq!(downloads.answered(&ask[0], Outcome::Verified, 0), Some(Event::Completed(empty)));
    assert!(!downloads.sources(empty, &members(1)));
    let resumed = body("resumed", 5);
    downloads.want(resumed, 0, [0, 2, 4, 77]).unwrap();
    downloads.sources(resumed, &members(1));
    assert_eq!(chunks(&downloads.next(0).ask), [1, 3]);
    downloads.forget(resumed);
    assert_eq!(downloads.next(NO_PROGRESS_MS).timed_out.len(), 2, "what was forgotten is still waited for");
    assert_eq!(downloads.want(Body { size_bytes: u64::MAX, ..small }, 0, []), Err(WantError::Size(u64::MAX)));
    for number in 0..MAX_WANTED_BODIES {
        downloads.want(body(&number.to_string(), 1), 0, []).unwrap();
    }
    assert_eq!(downloads.want(small, 0, []), Err(WantError::TooMany));
    downloads.want(body("7", 1), 9, []).unwrap();
}

#[test]
fn an_unknown_answer_changes_nothing() {
    let (mut downloads, body) = started(3, 1);
    let ask = downloads.next(0).ask;
    let other = Request { number: ask[0].number, member: MemberIndex(7), body, chunk: 0 };
    for outcome in [Outcome::NotHeld, Outcome::Busy, Outcome::Failed, Outcome::Corrupt] {
        assert_eq!(downloads.answered(&other, outcome, 0), None);
    }
    assert_eq!(downloads.progress(&body).unwrap().asked, 2);
}

/// How a member of the simulation behaves.
#[derive(Debug, Clone)]
enum Behaviour {
    Good {
        delay_ms: u64,
    },
    /// Comes to hold bodies only at this time.
    Later {
        holds_at_ms: u64,
    },
    /// One outcome after another, over and over; `None` is silence.
    Flaky(Vec<Option<Outcome>>),
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    let outcome = prop_oneof![
        Just(Some(Outcome::Verified)),
        Just(Some(Outcome::NotHeld)),
        Just(Some(Outcome::Busy)),
        Just(Some(Outcome::Failed)),
        Just(Some(Outcome::Corrupt)),
        Just(None),
    ];
    prop_oneof![
        (1..3_000u64).prop_map(|delay_ms| Behaviour::Good { delay_ms }),
        (0..60_000u64).prop_map(|holds_at_ms| Behaviour::Later { holds_at_ms }),
        prop::collection::vec(outcome, 1..6).prop_map(Behaviour::Flaky),
    ]
}

/// What a run of the simulation came to.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    ended_ms: u64,
    requests: Vec<Request>,
    completed: Vec<Body>,
}

/// Runs to the end, checking the rules at every step.
fn run(wanted: &[(Body, u32, Vec<u32>)], behaviours: &[Behaviour]) -> Ran {
    const FOREVER_MS: u64 = 24 * 3600 * 1000;
    let mut downloads = Downloads::new(MemberIndex(1));
    for (body, priority, held) in wanted {
        downloads.want(*body, *priority, held.iter().copied()).unwrap();
        downloads.sources(*body, &members(behaviours.len() as u16));
    }
    let mut held: BTreeMap<Body, BTreeSet<u32>> =
        wanted.iter().map(|(body, _, held)| (*body, held.iter().copied().collect())).collect();
    let mut banned = BTreeSet::new();
    let mut under_way: BTreeMap<u64, (Request, u64)> = BTreeMap::new();
    let mut answers: BTreeSet<(u64, Request, u8)> = BTreeSet::new();
    let outcomes = [Outcome::Verified, Outcome::NotHeld, Outcome::Busy, Outcome::Failed, Outcome::Corrupt];
    let mut turns = vec![0; behaviours.len()];
    let mut ran = Ran { ended_ms: 0, requests: Vec::new(), completed: Vec::new() };
    let mut now_ms = 0;
    while downloads.wanted().next().is_some() {
        let next = downloads.next(now_ms);
        for request in &next.timed_out {
            assert!(under_way.remove(&request.number).is_some_and(|(_, sent_ms)| now_ms - sent_ms >= NO_PROGRESS_MS));
        }
        for request in next.ask {
            let Request { member, body, chunk, .. } = request;
            assert!(!held[&body].contains(&chunk) && !banned.contains(&(member, body)), "{request:?}");
            let same: Vec<_> =
                under_way.values().filter(|(other, _)| (other.body, other.chunk) == (body, chunk)).collect();
            if let [(other, sent_ms)] = same.as_slice() {
                assert!(other.member != member && now_ms - sent_ms >= ENDGAME_MS, "{request:?}");
                let asked: BTreeSet<u32> =
                    under_way.values().filter(|(other, _)| other.body == body).map(|(other, _)| other.chunk).collect();
                let last = chunk_count(body.size_bytes).unwrap() - 1;
                let left = (0..=last).filter(|chunk| !held[&body].contains(chunk) && !asked.contains(chunk)).count();
                assert!(left == 0 || chunk == last, "other chunks are left to ask for");
            } else {
                assert!(same.is_empty(), "{request:?} a third time");
            }
            under_way.insert(request.number, (request, now_ms));
            let turn = turns[member.as_usize()];
            turns[member.as_usize()] += 1;
            let (delay_ms, outcome) = match &behaviours[member.as_usize()] {
                Behaviour::Good { delay_ms } => (*delay_ms, Some(Outcome::Verified)),
                Behaviour::Later { holds_at_ms } if *holds_at_ms > now_ms => (20, Some(Outcome::NotHeld)),
                Behaviour::Later { .. } => (20, Some(Outcome::Verified)),
                Behaviour::Flaky(outcomes) => (7 * (turn as u64 % 11) + 1, outcomes[turn % outcomes.len()]),
            };
            if let Some(outcome) = outcome {
                let code = outcomes.iter().position(|other| *other == outcome).unwrap() as u8;
                answers.insert((now_ms + delay_ms, request, code));
            }
            ran.requests.push(request);
        }
        assert!(under_way.len() <= MAX_REQUESTS);
        for member in members(behaviours.len() as u16) {
            let asked = under_way.values().filter(|(request, _)| request.member == member).count();
            assert!(asked <= MAX_REQUESTS_PER_MEMBER);
        }
        for (body, ..) in wanted {
            let asked = under_way.values().filter(|(request, _)| request.body == *body).count();
            assert!(asked <= MAX_REQUESTS_PER_BODY);
        }
        let answer_ms = answers.first().map(|(at_ms, ..)| *at_ms);
        let wake_ms = downloads.wake_at_ms(now_ms);
        now_ms = answer_ms.into_iter().chain(wake_ms).min().expect("something is to happen");
        assert!(now_ms < FOREVER_MS, "it ends");
        while let Some((at_ms, request, code)) = answers.first().copied()
            && at_ms <= now_ms
        {
            answers.pop_first();
            under_way.remove(&request.number);
            let outcome = outcomes[usize::from(code)];
            match downloads.answered(&request, outcome, now_ms) {
                Some(Event::Completed(body)) => ran.completed.push(body),
                Some(Event::Banned { member, body, .. }) => assert!(banned.insert((member, body)), "reported once"),
                None => {}
            }
            if outcome == Outcome::Verified {
                held.get_mut(&request.body).unwrap().insert(request.chunk);
            }
        }
    }
    ran.ended_ms = now_ms;
    for (body, ..) in wanted {
        assert_eq!(held[body].len() as u32, chunk_count(body.size_bytes).unwrap());
    }
    ran
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn with_one_good_source_everything_arrives_within_the_limits(
        sizes in prop::collection::vec((1..40u64, 0..3u32, prop::collection::vec(0..40u32, 0..30)), 1..5),
        mut behaviours in prop::collection::vec(behaviour(), 0..12),
        good_at in any::<prop::sample::Index>(),
    ) {
        let good_at = good_at.index(behaviours.len() + 1);
        behaviours.insert(good_at, Behaviour::Good { delay_ms: 100 });
        let wanted: Vec<_> = (0..).zip(sizes).map(|(number, (chunks, priority, held)): (u32, _)| {
            let held = held.into_iter().filter(|chunk| u64::from(*chunk) < chunks).collect::<Vec<_>>();
            (body(&number.to_string(), chunks), priority, held)
        }).collect();
        // A body of which all is held is complete before it is wanted.
        let wanted: Vec<_> = wanted.into_iter().filter(|(body, _, held)| {
            held.iter().collect::<BTreeSet<_>>().len() < chunk_count(body.size_bytes).unwrap() as usize
        }).collect();
        let ran = run(&wanted, &behaviours);
        prop_assert_eq!(ran.completed.iter().collect::<BTreeSet<_>>().len(), wanted.len());
        prop_assert_eq!(ran.completed.len(), wanted.len());
        prop_assert_eq!(run(&wanted, &behaviours), ran, "the same again");
    }
}

#[test]
fn spite_delays_the_end_by_seconds_only() {
    let wanted = [(body("body", 512), 0, Vec::new())];
    let good = vec![Behaviour::Good { delay_ms: 50 }; 3];
    let honest_ms = run(&wanted, &good).ended_ms;
    let spite = [good, vec![Behaviour::Flaky(vec![None]); 1]].concat();
    let ended_ms = run(&wanted, &spite).ended_ms;
    assert!(ended_ms <= honest_ms + 2 * ENDGAME_MS, "{ended_ms} ms, and {honest_ms} ms without spite");
}
