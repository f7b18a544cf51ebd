//! Virtual time: what happens, in order of when it happens.

use std::collections::BTreeMap;

/// What will happen. Of two things at one time, the one that was planned first comes first.
#[derive(Debug)]
pub struct Clock<E> {
    now_ms: u64,
    number: u64,
    planned: BTreeMap<(u64, u64), E>,
}

impl<E> Clock<E> {
    /// Starts at 0 with nothing planned.
    pub fn new() -> Self {
        Self { now_ms: 0, number: 0, planned: BTreeMap::new() }
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Plans something for `delay_ms` from now.
    pub fn plan(&mut self, delay_ms: u64, event: E) {
        self.number += 1;
        self.planned.insert((self.now_ms + delay_ms, self.number), event);
    }

    /// Goes on to what comes next.
    pub fn next(&mut self) -> Option<E> {
        let ((at_ms, _), event) = self.planned.pop_first()?;
        self.now_ms = at_ms;
        Some(event)
    }
}
