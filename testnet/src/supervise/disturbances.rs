//! Faults of links and when they begin and end: times and what nodes do are inputs here, too.

use std::time::Duration;

use super::Action;
use crate::manifest::{Begin, Disturbance, LinkFault};

/// How far a fault of links is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    NotYet,
    /// Until this time, or to the end.
    Now(Option<Duration>),
    Over,
}

/// A fault of links that has begun while nodes had not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begun {
    /// As the manifest calls it.
    pub(crate) name: &'static str,
    /// Since the first node started.
    pub(crate) at: Duration,
    /// How many of the nodes that must finish had not.
    pub(crate) unfinished: usize,
}

/// All faults of links of a testnet.
#[derive(Debug)]
pub(super) struct Disturbances {
    faults: Vec<(LinkFault, Progress)>,
    begun: Vec<Begun>,
}

impl Disturbances {
    pub(super) fn new(faults: &[LinkFault]) -> Self {
        let faults = faults.iter().map(|fault| (fault.clone(), Progress::NotYet)).collect();
        Self { faults, begun: Vec::new() }
    }

    /// Begins those that begin by the clock, and ends those that are over.
    pub(super) fn tick(&mut self, now: Duration, unfinished: usize, actions: &mut Vec<Action>) {
        self.step(now, unfinished, |begins| matches!(begins, Begin::After(after) if now >= *after), actions);
    }

    /// Begins those that begin when this silo prints this event.
    pub(super) fn said(
        &mut self,
        now: Duration,
        unfinished: usize,
        (silo, name): (usize, &str),
        actions: &mut Vec<Action>,
    ) {
        let due = |begins: &Begin| match begins {
            Begin::Event(of, event) => of.is_none_or(|of| of == silo) && event == name,
            Begin::After(_) => false,
        };
        self.step(now, unfinished, due, actions);
    }

    fn step(&mut self, now: Duration, unfinished: usize, due: impl Fn(&Begin) -> bool, actions: &mut Vec<Action>) {
        for (number, (fault, progress)) in self.faults.iter_mut().enumerate() {
            match *progress {
                Progress::NotYet if due(&fault.begins) => {
                    *progress = Progress::Now(fault.lasts.map(|lasts| now.saturating_add(lasts)));
                    self.begun.push(Begun { name: fault.name, at: now, unfinished });
                    actions.push(Action::Disturb { fault: number, on: true });
                }
                Progress::Now(Some(until)) if now >= until => {
                    *progress = Progress::Over;
                    actions.push(Action::Disturb { fault: number, on: false });
                }
                Progress::NotYet | Progress::Now(_) | Progress::Over => {}
            }
        }
    }

    /// One that has not begun, in words.
    pub(super) fn missing(&self) -> Option<String> {
        let missing = self.faults.iter().find(|(_, progress)| *progress == Progress::NotYet);
        missing.map(|(fault, _)| in_words(fault))
    }

    /// Those that have begun.
    pub(super) fn begun(&self) -> &[Begun] {
        &self.begun
    }
}

fn in_words(fault: &LinkFault) -> String {
    let how = match fault.disturbance {
        Disturbance::Cut => "cut",
        Disturbance::Stall => "stopped",
        Disturbance::Delay(_) => "delayed",
        Disturbance::Loss { .. } => "made to lose segments",
        Disturbance::Slow { .. } => "slowed down",
    };
    match &fault.begins {
        Begin::After(after) => format!("{how} {} ms after the start", after.as_millis()),
        Begin::Event(_, event) => format!("{how} at event `{event}`"),
    }
}
