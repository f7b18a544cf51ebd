//! How far things are, on standard error: a bar on a terminal, a line now and then elsewhere.
//!
//! Nothing is shown for what ends within two seconds.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

const PATIENCE: Duration = Duration::from_secs(2);
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Makes one [`Task`] after another.
pub struct Meter {
    style: Style,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Silent,
    Bar,
    Lines,
}

/// Several who do something at the same time: a line each.
pub struct Board {
    style: Style,
    lines: Vec<BoardLine>,
    // keeps the lines together
    _bars: MultiProgress,
}

struct BoardLine {
    name: String,
    state: String,
    bar: ProgressBar,
}

/// Something that takes a while; `total` units in all.
pub struct Task {
    style: Style,
    label: String,
    started: Instant,
    bar: ProgressBar,
    last_line: Mutex<Instant>,
}

impl Meter {
    /// A meter that draws bars on a terminal, prints lines elsewhere, and nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let style = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Style::Silent,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        };
        Self { style }
    }

    /// Says which step comes next, unless progress is not wanted.
    pub fn say(&self, step: &str) {
        if self.style != Style::Silent {
            // A lost progress line is no reason to stop.
            let _ = writeln!(std::io::stderr(), "{step}");
        }
    }

    /// Starts a board of those who are named: on a terminal a table that stays in place, elsewhere a line a change.
    pub fn board<'a>(&self, names: impl Iterator<Item = &'a str>) -> Board {
        let names: Vec<&str> = names.collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let bars = MultiProgress::with_draw_target(if self.style == Style::Bar {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        });
        let line = |name: &&str| {
            let bar = bars.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("  {prefix} {msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(format!("{name:<width$}"));
            BoardLine { name: format!("{name:<width$}"), state: String::new(), bar }
        };
        let lines = names.iter().map(line).collect();
        Board { style: self.style, lines, _bars: bars }
    }

    /// Starts a task of `total` units; `bytes` says that the units are bytes.
    pub fn task(&self, label: impl Into<String>, total: u64, bytes: bool) -> Task {
        let label = label.into();
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let template = if bytes {
            "{prefix} [{bar:20}] {bytes}/{total_bytes} ETA {eta}"
        } else {
            "{prefix} [{bar:20}] {percent:>3} % ETA {eta} {msg}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(label.clone());
        let started = Instant::now();
        Task { style: self.style, label, started, bar, last_line: Mutex::new(started) }
    }
}

impl Board {
    /// The one at `index` is now in this state, so long after the start.
    pub fn set(&mut self, index: usize, elapsed: Duration, state: &str) {
        let Some(line) = self.lines.get_mut(index) else { return };
        if line.state == state {
            return;
        }
        line.state = state.to_owned();
        let seconds = elapsed.as_secs_f64();
        match self.style {
            Style::Silent => {}
            Style::Bar => {
                line.bar.set_message(format!("{seconds:6.1} s  {state}"));
                line.bar.tick();
            }
            Style::Lines => {
                // A lost progress line is no reason to stop.
                let _ = writeln!(std::io::stderr(), "{seconds:6.1} s  {} {state}", line.name);
            }
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        self.lines.iter().for_each(|line| line.bar.finish_and_clear());
    }
}

impl Task {
    /// Another `units` are done.
    pub fn advance(&self, units: u64) {
        self.bar.inc(units);
        self.show();
    }

    /// There are `total` units in all, as it turns out.
    pub fn of(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// `done` units are done in all; `what` says what is going on.
    pub fn at(&self, done: u64, what: impl Into<String>) {
        self.bar.set_position(done);
        self.bar.set_message(what.into());
        self.show();
    }

    /// A callback for code that reports the bytes it did since its last call.
    pub fn counter(&self) -> impl Fn(u64) + Sync + '_ {
        |units| self.advance(units)
    }

    fn show(&self) {
        let elapsed = self.started.elapsed();
        if self.style == Style::Silent || elapsed < PATIENCE {
            return;
        }
        if self.style == Style::Bar {
            if self.bar.is_hidden() {
                self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(8));
            }
            return;
        }
        let Ok(mut last_line) = self.last_line.lock() else { return };
        if *last_line != self.started && last_line.elapsed() < LINE_EVERY {
            return;
        }
        *last_line = Instant::now();
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        if done == 0 || done >= total {
            return;
        }
        let left = elapsed.mul_f64((total - done) as f64 / done as f64);
        let message = self.bar.message();
        let percent = done * 100 / total;
        // A lost progress line is no reason to stop.
        let _ = writeln!(
            std::io::stderr(),
            "{}: {percent} %, about {} left {}",
            self.label,
            HumanDuration(left),
            if message.is_empty() { String::new() } else { format!("({message})") },
        );
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
