//! When to ask others for news: soon after anything was said or heard, ever more seldom while nothing is.
//!
//! Statements are gossiped, and asked for only in case some were lost. Where much happens, much may be lost; where
//! nothing does, a node that asks as often all the same sends more in a long wait than in the round itself.

use std::time::Instant;

use super::super::config::{SYNC_INTERVAL, SYNC_LONGEST};

/// When to ask.
pub(super) struct Pace {
    next: Instant,
    pause: std::time::Duration,
    /// Whether anything happened since others were asked.
    stirred: bool,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, pause: SYNC_INTERVAL, stirred: false }
    }

    /// When [`is_due`](Self::is_due) is true.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Something was said or heard: there may be more.
    pub(super) fn stir(&mut self, now: Instant) {
        self.stirred = true;
        self.pause = SYNC_INTERVAL;
        self.next = self.next.min(now + SYNC_INTERVAL);
    }

    /// Whether to ask now; if so, the next time is later.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        if !std::mem::take(&mut self.stirred) {
            self.pause = (self.pause * 2).min(SYNC_LONGEST);
        }
        self.next = now + self.pause;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn pauses_double_while_nothing_happens() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut now, mut pauses) = (start, Vec::new());
        for _ in 0..6 {
            assert!(pace.is_due(now));
            assert!(!pace.is_due(now));
            pauses.push((pace.next() - now).as_millis());
            now = pace.next();
        }
        assert_eq!(pauses, [1400, 2800, 5600, 11_200, 11_200, 11_200]);
        // what happens in a long pause ends it
        let later = now - Duration::from_secs(4);
        pace.stir(later);
        assert_eq!(pace.next(), later + SYNC_INTERVAL);
        now = pace.next();
        assert!(pace.is_due(now));
        assert_eq!(pace.next() - now, SYNC_INTERVAL, "once more, and then seldomer");
        now = pace.next();
        assert!(pace.is_due(now));
        assert_eq!(pace.next() - now, SYNC_INTERVAL * 2);
    }

    #[test]
    fn however_much_happens_it_stays_with_the_interval() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(pace.is_due(start));
        let mut asked = 0;
        for tenth in 0..70u32 {
            let now = start + Duration::from_millis(100) * tenth;
            pace.stir(now);
            asked += u32::from(pace.is_due(now));
        }
        assert_eq!(asked, 9, "seven seconds at 700 ms, the first time after them");
    }
}
