//! Logs on standard error, as lines for people or as JSON; what a node reports on standard output is untouched by them.
//!
//! Nothing waits for a log: lines go through a queue of [`QUEUE_LINES`] to a thread that writes them, and those for which
//! there is no room are counted and dropped.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::args::Log;

/// Where it is said what is logged.
pub const FILTER_VARIABLE: &str = "FEDPRUNE_LOG";
/// Lines that wait to be written.
const QUEUE_LINES: usize = 4096;
/// Most bytes of a line.
const LINE_BYTES: usize = 8 << 10;
/// How long the end of the program waits for lines to be written.
const LAST_LINES: Duration = Duration::from_millis(500);

enum Piece {
    Line(Vec<u8>),
    /// Everything before it is written.
    Written(SyncSender<()>),
}

/// What takes lines, from any thread.
#[derive(Clone)]
struct Queue {
    pieces: SyncSender<Piece>,
    dropped: Arc<AtomicU64>,
}

/// Gathers one line.
struct Line {
    queue: Queue,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = LINE_BYTES.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return;
        }
        if bytes.last() != Some(&b'\n') {
            // it was too long
            bytes.extend_from_slice("…\n".as_bytes());
        }
        if self.queue.pieces.try_send(Piece::Line(bytes)).is_err() {
            self.queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { queue: self.clone(), bytes: Vec::new() }
    }
}

/// The log; what was logged is written when it is dropped, if that does not take long.
pub struct Logging(Option<Queue>);

impl Drop for Logging {
    fn drop(&mut self) {
        let Some(queue) = &self.0 else { return };
        let (written, done) = sync_channel(1);
        if queue.pieces.try_send(Piece::Written(written)).is_ok() {
            let _ = done.recv_timeout(LAST_LINES);
        }
    }
}

/// Begins to log.
///
/// # Errors
/// For a filter that is none.
pub fn start(log: Log) -> anyhow::Result<Logging> {
    if log == Log::Off {
        return Ok(Logging(None));
    }
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| {
            format!(
                "{FILTER_VARIABLE} is `{text}`, which is no filter; write it like `info` or `info,libp2p_swarm=debug`"
            )
        })?,
        Err(_) => EnvFilter::new("info"),
    };
    let (pieces, receiver) = sync_channel(QUEUE_LINES);
    let queue = Queue { pieces, dropped: Arc::default() };
    let dropped = Arc::clone(&queue.dropped);
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_lines(&receiver, &dropped, &mut io::stderr()))
        .context("the system gives no thread")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(queue.clone());
    let set = match log {
        Log::Json => builder.json().flatten_event(true).try_init(),
        _ => builder.try_init(),
    };
    set.map_err(|error| anyhow::anyhow!("the log cannot be started: {error}"))?;
    Ok(Logging(Some(queue)))
}

/// Writes until nobody can log any more; where nobody reads, lines are lost.
fn write_lines(pieces: &Receiver<Piece>, dropped: &AtomicU64, out: &mut dyn Write) {
    for piece in pieces {
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(out, "{lost} lines of the log were dropped: they came faster than they are read");
        }
        match piece {
            Piece::Line(line) => drop(out.write_all(&line)),
            Piece::Written(done) => drop(done.send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_those_without_room_are_counted() {
        let (pieces, receiver) = sync_channel(2);
        let queue = Queue { pieces, dropped: Arc::default() };
        for length in [3, 2 * LINE_BYTES, 5, 7] {
            let mut line = queue.make_writer();
            writeln!(line, "{}", "x".repeat(length)).unwrap();
        }
        drop(queue.make_writer());
        let dropped = Arc::clone(&queue.dropped);
        drop(queue);
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
        let mut out = Vec::new();
        write_lines(&receiver, &dropped, &mut out);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[1]), (3, "xxx"), "{text}");
        assert!(lines[0].starts_with("2 lines of the log were dropped"));
        assert!(lines[2].ends_with("x…") && lines[2].len() == LINE_BYTES + "…".len());
    }
}
