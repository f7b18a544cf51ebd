//! `fedprune node watch`: how a node is doing, live, in the terminal.
//!
//! | module | what it does |
//! |---|---|
//! | `source` | where what is shown comes from: the node's page, or its folder |
//! | `view` | what is drawn, from what was read and where the log stands |

mod source;
mod view;

use std::io::IsTerminal;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::Duration;

use anyhow::{Context, bail};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde_json::Value;

use crate::args::NodeWatchOptions;
use crate::files::{program, shell};
use crate::interrupt::{self, Cooperative};
use crate::output::Report;
use source::{Seen, Source};
use view::View;

/// How long the loop waits for a key before it looks for news.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// How often the node is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(700);

/// Everything was shown.
pub struct Watched;

impl Report for Watched {
    fn to_json(&self) -> serde_json::Result<Value> {
        Ok(Value::Null)
    }

    fn to_text(&self) -> String {
        String::new()
    }

    fn is_said(&self) -> bool {
        true
    }
}

/// Shows a node until a key or a signal ends it.
///
/// # Errors
/// When there is no terminal, or nothing is known of a node.
pub fn run(options: &NodeWatchOptions) -> anyhow::Result<Watched> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        bail!(
            "there is no terminal to watch in; what a script can read is: {} node status --home {} --format json",
            program(),
            shell(&options.home)
        );
    }
    let source = Source::of(options)?;
    // says what is wrong before the terminal is taken
    let first = source.look()?;
    let interrupt = interrupt::cooperative();
    let (seen, news) = sync_channel(1);
    std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            // the receiver is gone when the dashboard is
            while seen.send(source.look()).is_ok() {
                std::thread::sleep(LOOK_INTERVAL);
            }
        })
        .context("the system gives no thread")?;
    // also restores the terminal when this program panics
    let mut terminal = ratatui::try_init().context("the terminal cannot be taken over")?;
    // the wait for keys does not end once the terminal is gone, and takes a whole core
    std::thread::Builder::new()
        .name("terminal".to_owned())
        .spawn(end_with_terminal)
        .context("the system gives no thread")?;
    // two signals that come at once leave no time for the turn that would see the first
    interrupt::set_last(Some(ratatui::restore));
    let ended = turns(&mut terminal, &mut View::new(first), &news, &interrupt);
    interrupt::set_last(None);
    ratatui::try_restore().context("the terminal cannot be given back; type: reset")?;
    ended.map(|()| Watched)
}

/// Ends this program when its terminal is closed.
fn end_with_terminal() {
    while std::io::stdin().is_terminal() {
        std::thread::sleep(LOOK_INTERVAL);
    }
    std::process::exit(i32::from(interrupt::EXIT_CODE));
}

fn turns(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    news: &Receiver<anyhow::Result<Seen>>,
    interrupt: &Cooperative,
) -> anyhow::Result<()> {
    let mut changed = true;
    while interrupt.check().is_ok() {
        if changed {
            terminal.draw(|frame| view.draw(frame)).context("the terminal cannot be drawn on")?;
        }
        changed = match news.try_recv() {
            Ok(seen) => {
                view.take(seen);
                true
            }
            Err(TryRecvError::Empty) => false,
            Err(TryRecvError::Disconnected) => bail!("nothing looks at the node any more"),
        };
        if event::poll(KEY_WAIT).context("the terminal gives no keys")? {
            match event::read().context("the terminal gives no keys")? {
                Event::Key(key) if ends(&key) => return Ok(()),
                Event::Key(key) if key.kind != KeyEventKind::Release => view.key(key.code),
                _ => {} // another size, above all
            }
            changed = true;
        }
    }
    Ok(())
}

fn ends(key: &KeyEvent) -> bool {
    let interrupts = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    interrupts || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_keys_end_it() {
        let key = |code, modifiers| KeyEvent::new(code, modifiers);
        assert!(ends(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(ends(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(ends(&key(KeyCode::Esc, KeyModifiers::NONE)));
        assert!(!ends(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!ends(&key(KeyCode::Up, KeyModifiers::CONTROL)));
    }
}
