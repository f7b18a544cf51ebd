use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::events::parse;
use crate::manifest::Manifest;

const ROOT: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const OTHER_ROOT: &str = "2222222222222222222222222222222222222222222222222222222222222222";

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Silos `a` and `b`, with more said about `b`, and 10 s for all.
fn two(about_b: &str) -> Supervisor {
    let text = format!(
        "name = \"t\"\nmodel = \"bundled\"\n\
         [[silo]]\nname = \"a\"\ndata = [\"a.txt\"]\n\
         [[silo]]\nname = \"b\"\ndata = [\"b.txt\"]\n{about_b}\n\
         [expect]\nwithin_seconds = 10\n"
    );
    let manifest = Manifest::parse(&text).unwrap();
    Supervisor::new(&manifest.silos, &manifest.link_faults, manifest.expect.within, manifest.expect.outcome)
}

fn start(silo: usize) -> Action {
    Action::Start { silo, fail_at: None, file_bytes: None }
}

impl Supervisor {
    fn pass(&mut self, at: u64) -> Vec<Action> {
        self.step(ms(at), Input::Tick)
    }

    fn hear(&mut self, at: u64, silo: usize, line: serde_json::Value) -> Vec<Action> {
        self.step(ms(at), Input::Said { silo, said: parse(line.to_string().as_bytes()) })
    }

    fn exit(&mut self, at: u64, silo: usize, code: Option<i32>) {
        self.exit_with(at, silo, code, None);
    }

    fn exit_with(&mut self, at: u64, silo: usize, code: Option<i32>, error: Option<&str>) {
        let status = code.map_or("signal 9".to_owned(), |code| format!("code {code}"));
        let error = error.map(str::to_owned);
        assert_eq!(self.step(ms(at), Input::Exited { silo, code, status, error }), []);
    }

    fn finish(&mut self, at: u64, silo: usize) {
        let line = json!({"event": "finished", "outcome": "agreed", "mask_root": ROOT, "transcript": "t", "pruned": "p",
            "sent_bytes": 1, "received_bytes": 2});
        assert_eq!(self.hear(at, silo, line), []);
    }

    fn reason(&self) -> String {
        self.ended().unwrap().unwrap_err().reason
    }

    fn is_well(&self) -> bool {
        self.ended() == Some(Ok(()))
    }
}

#[test]
fn all_start_and_it_ends_with_the_last() {
    let mut supervisor = two("start_after_ms = 500");
    assert_eq!(supervisor.pass(0), [start(0)]);
    assert_eq!(supervisor.pass(499), []);
    assert_eq!(supervisor.pass(500), [start(1)]);
    assert_eq!(supervisor.hear(600, 0, json!({"event": "listening", "addresses": []})), []);
    assert_eq!(supervisor.hear(600, 0, json!({"event": "connected", "member": "b"})), []);
    let ballot = json!({"event": "ballot", "bytes": 70, "seconds": 0.5, "mask_root": OTHER_ROOT});
    assert_eq!(supervisor.hear(600, 0, ballot), []);
    assert_eq!(supervisor.phases().next().unwrap(), ("a", &Phase::Ballot { bytes: 70 }));
    supervisor.finish(700, 0);
    assert_eq!(supervisor.ended(), None);
    supervisor.finish(800, 1);
    assert!(supervisor.is_well());
    // asked to stop, one node says that it was; the other had ended by then
    supervisor.stop();
    supervisor.exit(900, 0, Some(0));
    supervisor.exit(900, 1, Some(130));
    assert!(supervisor.is_well());
    let records = supervisor.into_records();
    assert_eq!(records[0].finished.as_ref().unwrap().at, ms(700));
    assert_eq!(records[0].connected, BTreeSet::from(["b".to_owned()]));
}

#[test]
fn an_absent_silo_is_not_waited_for() {
    let mut supervisor = two("start = false");
    assert_eq!(supervisor.pass(0), [start(0)]);
    assert_eq!(supervisor.pass(9000), []);
    supervisor.finish(9100, 0);
    assert!(supervisor.is_well());
    assert_eq!(supervisor.phases().nth(1).unwrap(), ("b", &Phase::Absent));
}

#[test]
fn the_deadline_names_who_is_late() {
    let mut supervisor = two("");
    let _ = supervisor.pass(0);
    supervisor.finish(9000, 0);
    assert_eq!(supervisor.pass(10_000), []);
    assert_eq!(supervisor.ended(), None);
    assert_eq!(supervisor.pass(10_001), []);
    let failure = supervisor.ended().unwrap().unwrap_err();
    assert_eq!((failure.silo, failure.reason.as_str()), (Some(1), "10 s are over and silo `b` has not finished"));

    let mut supervisor = two("kill = { after_ms = 20000 }");
    let _ = supervisor.pass(0);
    supervisor.finish(100, 0);
    let _ = supervisor.pass(10_001);
    assert!(supervisor.reason().contains("something that the manifest asks for has not happened"));
}

#[test]
fn a_node_that_ends_early_fails_at_once() {
    let mut supervisor = two("");
    let _ = supervisor.pass(0);
    supervisor.exit(50, 1, Some(1));
    assert_eq!(supervisor.reason(), "the node of silo `b` ended with code 1 before the round did");
    // what follows is no cause
    supervisor.exit(60, 0, None);
    let _ = supervisor.pass(99_000);
    assert!(supervisor.reason().contains("`b`"));
}

#[test]
fn a_kill_at_a_point_is_the_nodes_own_and_is_followed_by_a_plain_start() {
    let mut supervisor = two("kill = { point = \"header-written\", restart_after_ms = 300 }");
    let armed = Action::Start { silo: 1, fail_at: Some("header-written".to_owned()), file_bytes: None };
    assert_eq!(supervisor.pass(0), [start(0), armed]);
    supervisor.exit(100, 1, None);
    assert_eq!(supervisor.phases().nth(1).unwrap().1, &Phase::Killed);
    assert_eq!(supervisor.pass(399), []);
    assert_eq!(supervisor.pass(400), [start(1)]);
    supervisor.finish(500, 0);
    assert_eq!(supervisor.ended(), None);
    supervisor.finish(600, 1);
    assert!(supervisor.is_well());
    assert_eq!(supervisor.into_records()[1].kills, 1);
}

#[test]
fn a_point_that_is_not_reached_fails() {
    let mut supervisor = two("kill = { point = \"header-written\", restart_after_ms = 300 }");
    let _ = supervisor.pass(0);
    supervisor.finish(500, 1);
    let reason = supervisor.reason();
    assert!(reason.contains("never happened") && reason.contains("header-written"), "{reason}");

    // an exit with a code is the node's own failure, not the kill
    let mut supervisor = two("kill = { point = \"header-written\" }");
    let _ = supervisor.pass(0);
    supervisor.exit(10, 1, Some(2));
    assert!(supervisor.reason().contains("ended with code 2"), "{}", supervisor.reason());
}

#[test]
fn kills_at_an_event_and_after_a_time_come_one_after_the_other() {
    let mut supervisor = two("kill = { event = \"ballot\", restart_after_ms = 0 }\n\
         [[perturb]]\nwho = \"b\"\nafter_ms = 100");
    let ballot = json!({"event": "ballot", "bytes": 70, "seconds": 0.5, "mask_root": OTHER_ROOT});
    assert_eq!(supervisor.pass(0), [start(0), start(1)]);
    // before its turn the second kill waits
    assert_eq!(supervisor.pass(150), []);
    assert_eq!(supervisor.hear(200, 0, ballot.clone()), []);
    assert_eq!(supervisor.hear(200, 1, ballot.clone()), [Action::Kill { silo: 1 }]);
    // a moment passes before it is dead: it is killed once
    assert_eq!(supervisor.hear(201, 1, ballot.clone()), []);
    supervisor.exit(210, 1, None);
    assert_eq!(supervisor.pass(210), [start(1)]);
    assert_eq!(supervisor.hear(220, 1, ballot), []);
    assert_eq!(supervisor.pass(309), []);
    assert_eq!(supervisor.pass(310), [Action::Kill { silo: 1 }]);
    supervisor.finish(320, 0);
    assert_eq!(supervisor.ended(), None);
    supervisor.exit(330, 1, None);
    assert!(supervisor.is_well());
    let record = &supervisor.into_records()[1];
    assert_eq!((record.kills, record.ballots.len()), (2, 1));
}

#[test]
fn what_a_dying_node_says_last_does_not_count_as_its_end() {
    let mut supervisor = two("kill = { event = \"decided\", restart_after_ms = 10 }");
    let _ = supervisor.pass(0);
    let decided = json!({"event": "decided", "height": 0, "contributors": ["a", "b"]});
    assert_eq!(supervisor.hear(5, 1, decided), [Action::Kill { silo: 1 }]);
    supervisor.finish(6, 1);
    supervisor.exit(7, 1, None);
    assert_eq!(supervisor.pass(17), [start(1)]);
    supervisor.finish(20, 0);
    assert_eq!(supervisor.ended(), None);
    supervisor.finish(30, 1);
    assert!(supervisor.is_well());
}

#[test]
fn nodes_that_disagree_fail_whatever_they_say_later() {
    let tallied = |root| json!({"event": "tallied", "height": 2, "mask_root": root});
    let mut supervisor = two("");
    let _ = supervisor.pass(0);
    assert_eq!(supervisor.hear(1, 0, tallied(ROOT)), []);
    assert_eq!(supervisor.hear(2, 1, tallied(ROOT)), []);
    assert_eq!(supervisor.ended(), None);
    assert_eq!(supervisor.hear(3, 1, tallied(OTHER_ROOT)), []);
    assert_eq!(supervisor.reason(), "silo `b` has changed its mind on the mask of height 2");

    let decided = |names: &[&str]| json!({"event": "decided", "height": 0, "contributors": names});
    let mut supervisor = two("");
    let _ = supervisor.pass(0);
    assert_eq!(supervisor.hear(1, 0, decided(&["a", "b"])), []);
    assert_eq!(supervisor.hear(2, 1, decided(&["a"])), []);
    assert_eq!(supervisor.reason(), "silos `b` and `a` disagree on whose ballots count of height 0");
}

#[test]
fn a_silo_that_fails_in_its_own_way_is_not_judged() {
    let mut supervisor = two("fail_at = \"propose-wrong-root\"");
    let armed = Action::Start { silo: 1, fail_at: Some("propose-wrong-root".to_owned()), file_bytes: None };
    assert_eq!(supervisor.pass(0), [start(0), armed]);
    assert_eq!(supervisor.hear(1, 0, json!({"event": "tallied", "height": 0, "mask_root": ROOT})), []);
    assert_eq!(supervisor.hear(1, 1, json!({"event": "tallied", "height": 0, "mask_root": OTHER_ROOT})), []);
    supervisor.exit(2, 1, Some(1));
    assert_eq!(supervisor.ended(), None);
    supervisor.finish(3, 0);
    assert!(supervisor.is_well());
}

#[test]
fn exit_codes_must_tell_the_outcome() {
    for (code, stopped, well) in [(0, false, true), (130, false, false), (130, true, true), (1, true, false)] {
        let mut supervisor = two("start = false");
        let _ = supervisor.pass(0);
        supervisor.finish(1, 0);
        if stopped {
            supervisor.stop();
        }
        supervisor.exit(2, 0, Some(code));
        assert_eq!(supervisor.is_well(), well, "{code} {stopped}");
    }
}

#[test]
fn what_is_no_event_fails() {
    let mut supervisor = two("");
    let _ = supervisor.pass(0);
    let _ = supervisor.step(ms(1), Input::Said { silo: 1, said: parse(b"thread panicked") });
    let failure = supervisor.ended().unwrap().unwrap_err();
    assert!(failure.silo == Some(1) && failure.reason.contains("`thread panicked`"), "{failure:?}");
}

#[test]
fn a_paused_node_goes_on_and_counts_as_disturbed_once() {
    let mut supervisor = two("[[perturb]]\nwhat = \"pause\"\nwho = \"b\"\nevent = \"joined\"\nfor_ms = 300");
    let _ = supervisor.pass(0);
    assert_eq!(supervisor.hear(100, 1, json!({"event": "joined"})), [Action::Pause { silo: 1 }]);
    assert_eq!(supervisor.phases().nth(1).unwrap().1, &Phase::Paused);
    // what it said before it stood still, and was read after
    let ballot = json!({"event": "ballot", "bytes": 70, "seconds": 0.5, "mask_root": OTHER_ROOT});
    assert_eq!(supervisor.hear(101, 1, ballot), []);
    assert_eq!(supervisor.pass(399), []);
    assert_eq!(supervisor.pass(400), [Action::Resume { silo: 1 }]);
    assert_eq!(supervisor.phases().nth(1).unwrap().1, &Phase::Ballot { bytes: 70 });
    supervisor.finish(500, 0);
    assert_eq!(supervisor.ended(), None);
    supervisor.finish(600, 1);
    assert!(supervisor.is_well());
    let record = supervisor.into_records().swap_remove(1);
    assert_eq!((record.faults, record.kills), (1, 0));
}

#[test]
fn what_was_said_before_a_pause_and_read_after_it_begins_the_next_fault_when_it_goes_on() {
    let pause = "[[perturb]]\nwhat = \"pause\"\nwho = \"b\"\nevent = \"joined\"\nfor_ms = 300";
    let next = |what: &str| format!("{pause}\n[[perturb]]\nwhat = \"{what}\"\nwho = \"b\"\nevent = \"computing\"");
    let computing = || json!({"event": "computing"});
    let mut supervisor = two(&format!("{}\nrestart_after_ms = 10", next("restart")));
    let _ = supervisor.pass(0);
    assert_eq!(supervisor.hear(100, 1, json!({"event": "joined"})), [Action::Pause { silo: 1 }]);
    assert_eq!(supervisor.hear(101, 1, computing()), []);
    // it has ended before it was stopped, and does so again when it has restarted
    supervisor.finish(102, 1);
    assert_eq!(supervisor.pass(400), [Action::Resume { silo: 1 }, Action::Terminate { silo: 1 }]);
    supervisor.exit(410, 1, Some(130));
    assert_eq!(supervisor.pass(420), [start(1)]);
    // what made it restart does not do so twice
    assert_eq!(supervisor.hear(430, 1, computing()), []);
    supervisor.finish(500, 0);
    supervisor.finish(600, 1);
    assert!(supervisor.is_well());

    let mut supervisor = two(&format!("{}\nfor_ms = 50", next("pause")));
    let _ = supervisor.pass(0);
    let _ = supervisor.hear(100, 1, json!({"event": "joined"}));
    assert_eq!(supervisor.hear(101, 1, computing()), []);
    assert_eq!(supervisor.pass(400), [Action::Resume { silo: 1 }, Action::Pause { silo: 1 }]);
    assert_eq!(supervisor.pass(450), [Action::Resume { silo: 1 }]);
}

#[test]
fn a_restarted_node_ends_as_one_that_was_asked_to() {
    let about = "[[perturb]]\nwhat = \"restart\"\nwho = \"b\"\nevent = \"joined\"\nrestart_after_ms = 300";
    let mut supervisor = two(about);
    let _ = supervisor.pass(0);
    assert_eq!(supervisor.hear(100, 1, json!({"event": "joined"})), [Action::Terminate { silo: 1 }]);
    supervisor.exit(150, 1, Some(130));
    assert_eq!(supervisor.pass(450), [start(1)]);
    supervisor.finish(500, 0);
    supervisor.finish(600, 1);
    assert!(supervisor.is_well());

    let mut supervisor = two(about);
    let _ = supervisor.pass(0);
    let _ = supervisor.hear(100, 1, json!({"event": "joined"}));
    supervisor.exit(150, 1, Some(101));
    assert!(supervisor.reason().contains("ended with code 101, not code 130"), "{}", supervisor.reason());
}

#[test]
fn a_full_disk_ends_a_node_and_is_gone_when_it_starts_again() {
    let about = "[[perturb]]\nwhat = \"disk-full\"\nwho = \"b\"\nfile_bytes = 5000\nrestart_after_ms = 300";
    let mut supervisor = two(about);
    let full = Action::Start { silo: 1, fail_at: None, file_bytes: Some(5000) };
    assert_eq!(supervisor.pass(0), [start(0), full]);
    supervisor.exit_with(100, 1, Some(1), Some("error: cannot write `0000` of the log: File too large (os error 27)"));
    assert_eq!(supervisor.pass(400), [start(1)]);
    supervisor.finish(500, 0);
    supervisor.finish(600, 1);
    assert!(supervisor.is_well());

    // whatever else ends it is not the disk, nor is what nobody could look after
    for error in [None, Some("error: `b` is no member"), Some("error: File too large (os error 27)")] {
        let mut supervisor = two(about);
        let _ = supervisor.pass(0);
        supervisor.exit_with(100, 1, Some(1), error);
        let reason = supervisor.reason();
        assert!(reason.contains("full disk") && reason.contains(error.unwrap_or("nothing")), "{reason}");
    }

    let mut supervisor = two(about);
    let _ = supervisor.pass(0);
    supervisor.exit(100, 1, Some(101));
    assert!(supervisor.reason().contains("ended with code 101 before"), "a panic is no way to end");
}

#[test]
fn links_are_disturbed_for_a_time_and_everything_has_to_happen() {
    let about = "[[perturb]]\nwhat = \"delay\"\ndelay_ms = 5\nafter_ms = 100\nfor_ms = 200\n\
                 [[perturb]]\nwhat = \"disconnect\"\nwho = \"b\"\nevent = \"joined\"";
    let mut supervisor = two(about);
    assert_eq!(supervisor.pass(0).len(), 2);
    assert_eq!(supervisor.hear(50, 0, json!({"event": "joined"})), [], "another's");
    assert_eq!(supervisor.pass(100), [Action::Disturb { fault: 0, on: true }]);
    assert_eq!(supervisor.pass(299), []);
    assert_eq!(supervisor.pass(300), [Action::Disturb { fault: 0, on: false }]);
    supervisor.finish(500, 0);
    assert_eq!(supervisor.hear(600, 1, json!({"event": "joined"})), [Action::Disturb { fault: 1, on: true }]);
    assert_eq!(supervisor.ended(), None);
    supervisor.finish(700, 1);
    assert!(supervisor.is_well());
    let begun = |name, at, unfinished| Begun { name, at: ms(at), unfinished };
    assert_eq!(supervisor.begun(), [begun("delay", 100, 2), begun("disconnect", 600, 1)]);
}

#[test]
fn links_that_are_disturbed_when_every_node_has_finished_have_met_no_round() {
    let apart = "[[perturb]]\nwhat = \"partition\"\ngroups = [[\"a\"]]\nfor_ms = 9";
    for (begins, words) in
        [("after_ms = 2500", "stopped 2500 ms after the start"), ("event = \"weather\"", "stopped at event `weather`")]
    {
        let mut supervisor = two(&format!("{apart}\n{begins}"));
        let _ = supervisor.pass(0);
        supervisor.finish(500, 0);
        assert_eq!(supervisor.ended(), None);
        supervisor.finish(501, 1);
        // at once: nothing is left to be waited for
        let reason = supervisor.reason();
        assert!(reason.starts_with(&format!("every node had finished before links were {words}")), "{reason}");
    }

    // the end of the first is before that of the last, and the end of the last is not
    let mut supervisor = two(&format!("{apart}\nevent = \"finished\""));
    let _ = supervisor.pass(0);
    let line =
        json!({"event": "finished", "outcome": "agreed", "mask_root": ROOT, "sent_bytes": 1, "received_bytes": 2});
    assert_eq!(supervisor.hear(500, 0, line.clone()), [Action::Disturb { fault: 0, on: true }]);
    supervisor.finish(501, 1);
    assert!(supervisor.is_well());
    let mut supervisor = two("[[perturb]]\nwhat = \"disconnect\"\nwho = \"b\"\nevent = \"finished\"");
    let _ = supervisor.pass(0);
    supervisor.finish(500, 0);
    let _ = supervisor.hear(501, 1, line.clone());
    assert!(supervisor.reason().contains("links were cut at event `finished`"), "{}", supervisor.reason());

    // nobody waits for a node that need not finish
    let mut supervisor = two(&format!("start = false\n{apart}\nafter_ms = 2500"));
    let _ = supervisor.pass(0);
    let _ = supervisor.hear(500, 0, line);
    assert!(supervisor.reason().starts_with("every node had finished before links were stopped"));
}

#[test]
fn a_round_that_must_stall_ends_well_when_time_is_over() {
    let stalled = || {
        let mut supervisor = two("start = false");
        supervisor.stalls = true;
        let _ = supervisor.pass(0);
        supervisor
    };
    let mut supervisor = stalled();
    assert_eq!((supervisor.pass(10_000), supervisor.ended()), (vec![], None));
    assert_eq!((supervisor.pass(10_001), supervisor.is_well()), (vec![], true));
    let mut supervisor = stalled();
    supervisor.finish(100, 0);
    assert!(supervisor.reason().contains("can come to nothing"));
}
