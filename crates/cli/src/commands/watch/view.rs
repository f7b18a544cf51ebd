//! What is drawn. Names and messages of others are tamed before: no member moves an operator's cursor.

use fedprune_node::observe::{LogLine, MemberRow, Snapshot};
use fedprune_node::run::Status;
use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Table};

use super::source::Seen;
use crate::output::{bytes, tame};

/// Columns that one block's agreement takes.
const BLOCK_COLUMNS: usize = 25;
/// Characters of its bar.
const BAR_COLUMNS: usize = 10;
/// Columns of the table of bytes, and of a terminal with room for it beside the members.
const BYTES_COLUMNS: u16 = 36;
const WIDE_COLUMNS: u16 = 84;
/// Lines of a terminal with room for a whole table of bytes.
const LOW_LINES: u16 = 24;
/// Lines that a page key moves.
const PAGE: usize = 10;

/// What is shown, and where in the log.
pub(super) struct View {
    seen: Seen,
    /// Why there is no news.
    lost: Option<String>,
    /// Lines of the log below what is shown; 0 follows the log.
    behind: usize,
}

impl View {
    pub(super) fn new(seen: Seen) -> Self {
        Self { seen, lost: None, behind: 0 }
    }

    /// Takes news.
    pub(super) fn take(&mut self, news: anyhow::Result<Seen>) {
        match news {
            Ok(seen) => {
                // what was being read stays where it is when lines come
                if self.behind > 0 {
                    let (before, now) = (total_events(&self.seen), total_events(&seen));
                    self.behind += usize::try_from(now.saturating_sub(before)).unwrap_or(0);
                }
                // a node that has ended takes its page along, and what it showed last is more than its folder has
                match (&mut self.seen, seen) {
                    (Seen::Page(snapshot), Seen::Folder(status, why)) if snapshot.status.round == status.round => {
                        snapshot.status = *status;
                        snapshot.roster.iter_mut().for_each(|member| member.connected = false);
                        self.lost = why;
                    }
                    (_, seen) => {
                        self.seen = seen;
                        self.lost = None;
                    }
                }
            }
            Err(error) => self.lost = Some(format!("{error:#}")),
        }
        self.behind = self.behind.min(self.log_lines().saturating_sub(1));
    }

    /// Moves in the log.
    pub(super) fn key(&mut self, key: KeyCode) {
        let most = self.log_lines().saturating_sub(1);
        self.behind = match key {
            KeyCode::Up => self.behind.saturating_add(1),
            KeyCode::Down => self.behind.saturating_sub(1),
            KeyCode::PageUp => self.behind.saturating_add(PAGE),
            KeyCode::PageDown => self.behind.saturating_sub(PAGE),
            KeyCode::Home => most,
            KeyCode::End => 0,
            _ => self.behind,
        }
        .min(most);
    }

    fn log_lines(&self) -> usize {
        match &self.seen {
            Seen::Page(snapshot) => snapshot.log.len(),
            Seen::Folder(..) => 0,
        }
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let status = self.seen.status();
        let lost = u16::from(self.lost.is_some());
        let snapshot = match &self.seen {
            Seen::Page(snapshot) => Some(&**snapshot),
            Seen::Folder(..) => None,
        };
        let members = snapshot.map_or(status.connected.len(), |snapshot| snapshot.roster.len());
        // of a terminal that is low, the log still gets its lines
        let most = if area.height >= LOW_LINES { (area.height / 3).max(9) } else { area.height / 3 };
        let tables = u16::try_from(members.max(6)).unwrap_or(u16::MAX).saturating_add(3).min(most).max(4);
        let blocks = snapshot.map_or(0, |snapshot| snapshot.agreement.len());
        let a_row = usize::from(area.width.saturating_sub(2)).div_euclid(BLOCK_COLUMNS).max(1);
        let agreement = if blocks == 0 {
            0
        } else {
            u16::try_from(blocks.div_ceil(a_row)).unwrap_or(u16::MAX).saturating_add(2).min(area.height / 4)
        };
        let [head, warning, middle, shares, log, keys] = Layout::vertical([
            Constraint::Length(5),
            Constraint::Length(lost),
            Constraint::Length(tables),
            Constraint::Length(agreement),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(area);
        draw_head(frame, head, status, snapshot);
        if let Some(why) = &self.lost {
            frame.render_widget(Paragraph::new(format!(" no news: {}", tame(why))).yellow(), warning);
        }
        let beside = if is_narrow(area) { 0 } else { BYTES_COLUMNS };
        let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(beside)]).areas(middle);
        draw_members(frame, left, status, snapshot);
        if beside > 0 {
            draw_bytes(frame, right, status);
        }
        if let Some(snapshot) = snapshot {
            draw_agreement(frame, shares, snapshot, a_row);
        }
        self.draw_log(frame, log);
        let text = " q quit   ↑ ↓ PgUp PgDn Home End: log";
        frame.render_widget(Paragraph::new(text).style(Style::new().add_modifier(Modifier::DIM)), keys);
    }

    fn draw_log(&self, frame: &mut Frame<'_>, area: Rect) {
        let title = if self.behind == 0 { " log ".to_owned() } else { format!(" log, {} lines below ", self.behind) };
        let lines: Vec<Line<'_>> = match &self.seen {
            Seen::Page(snapshot) => {
                let room = usize::from(area.height.saturating_sub(2));
                let end = snapshot.log.len().saturating_sub(self.behind);
                let shown = snapshot.log.range(end.saturating_sub(room)..end);
                let line = |line: &LogLine| {
                    let style = if line.warning { Style::new().red() } else { Style::new() };
                    Line::from(vec![
                        Span::from(format!("{} ", ago(snapshot.unix_ms, line.unix_ms))).dim(),
                        Span::styled(tame(&line.text), style),
                    ])
                };
                shown.map(line).collect()
            }
            Seen::Folder(_, why) => {
                let text = match why {
                    Some(why) => format!("only its folder is read: {}", tame(why)),
                    None => {
                        "the node has no page; run it with --page 127.0.0.1:0 to see agreement and log here".to_owned()
                    }
                };
                vec![Line::from(text)]
            }
        };
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
    }
}

fn is_narrow(area: Rect) -> bool {
    area.width < WIDE_COLUMNS
}

fn total_events(seen: &Seen) -> u64 {
    match seen {
        Seen::Page(snapshot) => snapshot.events.values().sum(),
        Seen::Folder(..) => 0,
    }
}

/// How long before `now` something was, in eight characters.
fn ago(now_unix_ms: u64, unix_ms: u64) -> String {
    let seconds = now_unix_ms.saturating_sub(unix_ms) / 1000;
    format!("{:>7}", if seconds == 0 { "now".to_owned() } else { format!("-{}", duration(seconds)) })
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, status: &Status, snapshot: Option<&Snapshot>) {
    let round = status.round.short();
    let title = format!(" fedprune node `{}`, round {round} ", tame(&status.member));
    let phase = if status.running { tame(&status.phase).bold() } else { tame(&status.phase).bold().reversed() };
    let mut first = vec![Span::from("phase "), phase];
    if let Some(owed) = &status.waits_for {
        first.push(Span::from(format!(": it has {}", tame(owed))));
    } else if !status.running {
        first.push(Span::from("; the node has ended"));
    }
    let view = snapshot.map_or(0, |snapshot| snapshot.view);
    let view = if view > 0 { format!(", view {view}") } else { String::new() };
    let others = status.members.saturating_sub(1);
    let connected = snapshot.map_or(status.connected.len(), Snapshot::connected);
    let mut second = format!(
        "heights done {} of {}{view}   connected {connected} of {others}   running for {}",
        status.height,
        status.heights,
        duration(status.seconds as u64),
    );
    if is_narrow(area) {
        let (sent, received) = (bytes(status.sent_bytes), bytes(status.received_bytes));
        second = format!(
            "heights {}/{}{view}  connected {connected}/{others}  sent {sent}  received {received}",
            status.height, status.heights
        );
    }
    let third = match (status.mask_root, snapshot.map(|snapshot| &snapshot.limits)) {
        (Some(root), _) => format!("global mask {root}"),
        (None, Some(limits)) => {
            let met: Vec<String> =
                limits.iter().filter(|(_, times)| **times > 0).map(|(name, times)| format!("{name} {times}")).collect();
            format!("limits met: {}", if met.is_empty() { "none".to_owned() } else { tame(&met.join(", ")) })
        }
        (None, None) => String::new(),
    };
    let text = vec![Line::from(first), Line::from(second), Line::from(third)];
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(title)), area);
}

fn draw_members(frame: &mut Frame<'_>, area: Rect, status: &Status, snapshot: Option<&Snapshot>) {
    let block = Block::bordered().title(" members ");
    let Some(snapshot) = snapshot else {
        let named: Vec<Line<'_>> = status.connected.iter().map(|name| Line::from(tame(name))).collect();
        let text = if named.is_empty() { vec![Line::from("none of the others is connected")] } else { named };
        frame.render_widget(Paragraph::new(text).block(block.title(" connected ")), area);
        return;
    };
    let row = |member: &MemberRow| {
        let mut name = tame(&member.name);
        if member.own {
            name.push_str(" (here)");
        }
        let (connection, style) = match (member.own, &member.shut_out, member.connected) {
            (true, ..) => ("", Style::new()),
            (_, Some(_), _) => ("shut out", Style::new().red()),
            (.., true) => ("connected", Style::new().green()),
            (.., false) => ("away", Style::new().red()),
        };
        let heard = match member.heard_seconds_ago {
            _ if member.own => String::new(),
            None => "never".to_owned(),
            Some(seconds) if seconds < 1.0 => "now".to_owned(),
            Some(seconds) => duration(seconds as u64),
        };
        let ballot = member.ballot.as_deref().map_or_else(|| "–".to_owned(), tame);
        let cells = [Span::from(name), Span::styled(connection, style), Span::from(heard), Span::from(ballot)];
        Row::new(cells)
    };
    let widths = [Constraint::Fill(1), Constraint::Length(9), Constraint::Length(7), Constraint::Length(10)];
    let header = Row::new(["name", "", "heard", "ballot"]).style(Style::new().add_modifier(Modifier::DIM));
    // the members that there is no room for are those at the end; say how many
    let room = usize::from(area.height.saturating_sub(3));
    let hidden = snapshot.roster.len().saturating_sub(room);
    let block = if hidden > 0 { block.title_bottom(format!(" and {hidden} more ")) } else { block };
    frame.render_widget(Table::new(snapshot.roster.iter().map(row), widths).header(header).block(block), area);
}

fn draw_bytes(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let row = |name: &str, sent: u64, received: u64| {
        Row::new([
            Line::from(name.to_owned()),
            Line::from(bytes(sent)).right_aligned(),
            Line::from(bytes(received)).right_aligned(),
        ])
    };
    let kinds = status.sent.by_name().into_iter().zip(status.received.by_name());
    let all = row("all", status.sent_bytes, status.received_bytes);
    let rows = std::iter::once(all).chain(kinds.map(|((name, sent), (_, received))| row(name, sent, received)));
    let widths = [Constraint::Fill(1), Constraint::Length(10), Constraint::Length(10)];
    let header = Row::new([Line::from(""), Line::from("sent").right_aligned(), Line::from("received").right_aligned()])
        .style(Style::new().add_modifier(Modifier::DIM));
    frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered().title(" bytes ")), area);
}

fn draw_agreement(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot, a_row: usize) {
    let cells = snapshot.agreement.iter().enumerate().map(|(block, share)| {
        let shown = match share {
            Some(share) => format!("{}{:>6.1} %", bar(*share), share * 100.0),
            None => format!("{}     –  ", "·".repeat(BAR_COLUMNS)),
        };
        format!("{block:>3} {shown}")
    });
    let cells: Vec<String> = cells.collect();
    let lines: Vec<Line<'_>> = cells.chunks(a_row).map(|row| Line::from(row.join("   "))).collect();
    let title = format!(" agreement by block; by chance {:.1} % ", snapshot.agreement_by_chance * 100.0);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
}

/// A share as a bar, to an eighth of a character.
fn bar(share: f64) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (share.clamp(0.0, 1.0) * (BAR_COLUMNS * 8) as f64).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if let Some(part) = EIGHTHS.get(eighths % 8).filter(|part| **part != ' ') {
        bar.push(*part);
    }
    let room = BAR_COLUMNS.saturating_sub(bar.chars().count());
    bar.extend(std::iter::repeat_n(' ', room));
    bar
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn digest(digit: &str) -> String {
        digit.repeat(64)
    }

    fn snapshot() -> Snapshot {
        let member = |name: &str, own: bool, connected: bool| {
            json!({ "name": name, "own": own, "connected": connected, "heard_seconds_ago": connected.then_some(3.2),
                    "ballot": connected.then_some("held"), "shut_out": null, "finished": false })
        };
        let log: Vec<_> = (0..50)
            .map(|line| json!({ "unix_ms": 1000 * line, "warning": line == 49, "event": "held", "text": format!("line {line}") }))
            .collect();
        serde_json::from_value(json!({
            "member": "north", "round": digest("a"), "running": true, "phase": "agreeing",
            "waits_for": "2 of 3 prevotes of a view", "height": 1, "heights": 6, "connected": ["south"], "members": 3,
            "addresses": [], "sent_bytes": 123_456, "received_bytes": 2_000_000,
            "sent": { "bodies": 100_000, "questions": 3, "gossip": 20_000, "upkeep": 3_000, "framing": 453 },
            "received": { "bodies": 2_000_000, "questions": 0, "gossip": 0, "upkeep": 0, "framing": 0 },
            "seconds": 42.0, "mask_root": null, "transcript": null, "pruned": null,
            "program": "fedprune 0", "consortium": digest("b"), "unix_ms": 60_000, "view": 1,
            "waits": { "what": "prevotes of a view", "found": 2, "needed": 3 },
            "roster": [member("north", true, false), member("so\u{1b}[2Juth", false, true), member("west", false, false)],
            "agreement": [0.9375, 0.5, null, null, null, null], "agreement_by_chance": 0.5,
            "steps": {}, "limits": { "answered busy": 2, "invalid ballots": 0 }, "events": { "held": 50 }, "log": log,
        }))
        .expect("a snapshot")
    }

    fn drawn(view: &View, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_is_there_to_be_seen() {
        let view = View::new(Seen::Page(Box::new(snapshot())));
        let drawn = drawn(&view, 110, 40);
        for expected in [
            "fedprune node `north`, round aaaaaaaa",
            "phase agreeing: it has 2 of 3 prevotes of a view",
            "heights done 1 of 6, view 1   connected 1 of 2   running for 42 s",
            "limits met: answered busy 2",
            "north (here)",
            "so\\u{1b}[2Juth",
            "connected 3 s     held",
            "away      never   –",
            "all            123.5 kB     2.0 MB",
            "by chance 50.0 %",
            "  0 █████████▍  93.8 %     1 █████       50.0 %     2 ··········     –  ",
            "-11 s line 49",
        ] {
            assert!(drawn.contains(expected), "`{expected}` in\n{drawn}");
        }
        assert!(!drawn.contains('\u{1b}'));
    }

    #[test]
    fn keys_move_in_the_log_and_news_do_not() {
        let mut view = View::new(Seen::Page(Box::new(snapshot())));
        view.key(KeyCode::PageUp);
        view.key(KeyCode::Up);
        let text = drawn(&view, 80, 40);
        assert!(
            text.contains("log, 11 lines below") && text.contains("line 38") && !text.contains("line 39"),
            "{text}"
        );
        let mut later = snapshot();
        later.log.pop_front();
        let last = later.log.back().unwrap().clone();
        later.log.push_back(LogLine { text: "news".to_owned(), ..last });
        *later.events.get_mut("held").unwrap() += 1;
        view.take(Ok(Seen::Page(Box::new(later))));
        let text = drawn(&view, 80, 40);
        assert!(
            text.contains("log, 12 lines below") && text.contains("line 38") && !text.contains("line 39"),
            "{text}"
        );
        view.key(KeyCode::End);
        assert!(drawn(&view, 80, 40).contains("news"));
        for _ in 0..100 {
            view.key(KeyCode::PageUp);
        }
        assert!(drawn(&view, 80, 40).contains("line 1"), "no further than the first line");
    }

    #[test]
    fn a_node_that_is_gone_leaves_its_last_picture() {
        let mut view = View::new(Seen::Page(Box::new(snapshot())));
        let ended = Status { running: false, phase: "agreed".to_owned(), waits_for: None, ..snapshot().status };
        view.take(Ok(Seen::Folder(Box::new(ended), None)));
        let text = drawn(&view, 110, 40);
        for expected in ["phase agreed; the node has ended", "93.8 %", "line 49", "connected 0 of 2"] {
            assert!(text.contains(expected), "`{expected}` in\n{text}");
        }
        view.take(Err(anyhow::anyhow!("the folder is gone")));
        assert!(drawn(&view, 110, 40).contains("no news: the folder is gone"));
    }

    #[test]
    fn a_node_without_a_page_shows_what_its_folder_has() {
        let view = View::new(Seen::Folder(Box::new(snapshot().status), None));
        let text = drawn(&view, 100, 30);
        for expected in ["phase agreeing", "connected 1 of 2", "south", "bodies", "run it with --page 127.0.0.1:0"] {
            assert!(text.contains(expected), "`{expected}` in\n{text}");
        }
    }

    #[test]
    fn no_terminal_is_too_small_or_too_large() {
        let view = View::new(Seen::Page(Box::new(snapshot())));
        let narrow = drawn(&view, 80, 24);
        assert!(narrow.contains("sent 123.5 kB  received 2.0 MB") && narrow.contains("connected 3 s"), "{narrow}");
        for (width, height) in [(1, 1), (2, 5), (10, 3), (20, 20), (40, 12), (80, 24), (300, 100)] {
            let text = drawn(&view, width, height);
            assert_eq!(text.lines().count(), usize::from(height), "{width} × {height}");
        }
        let mut many = snapshot();
        many.agreement = vec![Some(1.0); 200];
        many.roster = (0..128).map(|_| many.roster[1].clone()).collect();
        let text = drawn(&View::new(Seen::Page(Box::new(many))), 80, 24);
        assert!(text.contains(" more ") && text.contains("line 49") && text.contains("q quit"), "{text}");
    }
}
