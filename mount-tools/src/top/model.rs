//! What is shown and what keys do: no terminal, no clock, no cluster.

use super::sample::{Counted, Id, Node, Sample, Seen};
use gproc::signal;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Longest text that is asked for at the bottom.
const TEXT_CHARS_MAX: usize = 200;

/// What processes are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sort {
    /// Processor use.
    #[default]
    Cpu,
    /// Memory.
    Mem,
    /// Processor time.
    Time,
    /// Number.
    Pid,
}

/// What has the keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Focus {
    #[default]
    Table,
    Help,
    /// A text is being asked for.
    Text(Asked, String),
}

/// What a text is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Filter,
    User,
    Signal(Id),
}

/// What a key wants done outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Quit,
    Look,
    Signal(Id, i32),
}

/// A process with what follows from two looks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row<'a> {
    pub(super) seen: &'a Seen,
    /// Percent of one processor.
    pub(super) cpu: f64,
    /// Percent of its node's memory.
    pub(super) mem: f64,
}

/// A node with what follows from two looks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodeRow<'a> {
    pub(super) node: &'a Node,
    /// Bytes each second, to and from other nodes.
    pub(super) traffic: Option<(f64, f64)>,
}

/// See the module page.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) now: Option<Sample>,
    before: Option<Sample>,
    pub(super) sort: Sort,
    pub(super) reverse: bool,
    /// Only lines with this in name or arguments.
    pub(super) filter: String,
    pub(super) user: String,
    pub(super) names_only: bool,
    pub(super) no_nodes: bool,
    pub(super) focus: Focus,
    /// What came of the last order.
    pub(super) word: String,
    /// Which process was chosen; `None`: whichever is in the first place.
    selected: Option<Id>,
    /// Where the selected one was: another one takes its place when it is gone.
    place: usize,
    /// Lines of processes that there is room for.
    page: usize,
}

impl Model {
    /// Starts with nothing seen.
    pub(super) fn new(sort: Sort, user: String) -> Self {
        Self {
            sort,
            user,
            ..Self::default()
        }
    }

    /// Takes a new look in.
    pub(super) fn take(&mut self, sample: Sample) {
        self.before = self.now.replace(sample);
        self.find_selected();
    }

    /// Says how many lines of processes can be shown; returns the first of them, so that the selected one is seen.
    pub(super) fn fit(&mut self, page: usize, first: usize) -> usize {
        self.page = page;
        let last_first = self.rows().len().saturating_sub(page);
        let lowest = (self.place + 1).saturating_sub(page);
        first.min(last_first).max(lowest).min(self.place)
    }

    /// Returns where the selected process is among [`Self::rows`].
    pub(super) const fn place(&self) -> usize {
        self.place
    }

    /// Returns the processes that are to be seen, in order.
    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        let Some(now) = &self.now else {
            return Vec::new();
        };
        let earlier = self.before.iter().flat_map(|before| &before.processes);
        let earlier: HashMap<Id, u64> = earlier.map(|seen| (seen.id, seen.cpu_ms)).collect();
        let memory = now
            .nodes
            .iter()
            .filter_map(|of| Some((of.node, of.memory?)));
        let memory: HashMap<u16, u64> = memory.collect();
        let passed = self.seconds_passed();
        let shown = now.processes.iter().filter(|seen| self.shows(seen));
        let row = shown.map(|seen| {
            // What began since has all its time from this while.
            let before = earlier.get(&seen.id).copied().unwrap_or(0);
            let spent = seen.cpu_ms.saturating_sub(before);
            let all = memory.get(&seen.node).map_or(0, |all| all / 1024);
            Row {
                seen,
                cpu: passed.map_or(0.0, |passed| float(spent) / 10.0 / passed),
                mem: if all == 0 {
                    0.0
                } else {
                    float(seen.rss_kib) * 100.0 / float(all)
                },
            }
        });
        let mut rows: Vec<Row<'_>> = row.collect();
        rows.sort_by(|a, b| self.order(a, b));
        rows
    }

    /// Returns the nodes.
    pub(super) fn node_rows(&self) -> Vec<NodeRow<'_>> {
        let earlier = self.before.iter().flat_map(|before| &before.nodes);
        let earlier = earlier.filter_map(|of| Some((of.node, of.counted?)));
        let earlier: HashMap<u16, Counted> = earlier.collect();
        let passed = self.seconds_passed();
        let rate = |now: u64, before: u64| Some(float(now.saturating_sub(before)) / passed?);
        let nodes = self.now.iter().flat_map(|now| &now.nodes);
        let rows = nodes.map(|node| {
            let counted = node.counted.zip(earlier.get(&node.node));
            let traffic = counted.and_then(|(now, before)| {
                let sent = rate(now.sent, before.sent)?;
                Some((sent, rate(now.received, before.received)?))
            });
            NodeRow { node, traffic }
        });
        rows.collect()
    }

    /// Does what a key means.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Act> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c')).then_some(Act::Quit);
        }
        match std::mem::take(&mut self.focus) {
            Focus::Table => self.key_in_table(key.code),
            // Any key leaves it.
            Focus::Help => None,
            Focus::Text(asked, text) => self.key_in_text(asked, text, key.code),
        }
    }

    fn key_in_table(&mut self, code: KeyCode) -> Option<Act> {
        self.word.clear();
        let ask = |asked| Focus::Text(asked, String::new());
        match code {
            KeyCode::Char('q') => return Some(Act::Quit),
            KeyCode::Char(' ') => return Some(Act::Look),
            KeyCode::Char('h' | '?') => self.focus = Focus::Help,
            KeyCode::Char('P') => self.sort_by(Sort::Cpu),
            KeyCode::Char('M') => self.sort_by(Sort::Mem),
            KeyCode::Char('T') => self.sort_by(Sort::Time),
            KeyCode::Char('N') => self.sort_by(Sort::Pid),
            KeyCode::Char('R') => self.reverse = !self.reverse,
            KeyCode::Char('c') => self.names_only = !self.names_only,
            KeyCode::Char('1') => self.no_nodes = !self.no_nodes,
            KeyCode::Char('/') => self.focus = ask(Asked::Filter),
            KeyCode::Char('u') => self.focus = ask(Asked::User),
            KeyCode::Char('k') => match self.rows().get(self.place).map(|row| row.seen.id) {
                Some(id) => self.focus = ask(Asked::Signal(id)),
                None => self.word = "there is no process".into(),
            },
            KeyCode::Esc => {
                self.filter.clear();
                self.user.clear();
            }
            KeyCode::Up => self.go(-1),
            KeyCode::Down => self.go(1),
            KeyCode::PageUp => self.go(-self.page.max(1).cast_signed()),
            KeyCode::PageDown => self.go(self.page.max(1).cast_signed()),
            KeyCode::Home => self.go(isize::MIN),
            KeyCode::End => self.go(isize::MAX),
            _ => {}
        }
        self.find_selected();
        None
    }

    fn key_in_text(&mut self, asked: Asked, mut text: String, code: KeyCode) -> Option<Act> {
        match code {
            KeyCode::Esc => return None,
            KeyCode::Enter => return self.answer(asked, text),
            KeyCode::Backspace => drop(text.pop()),
            KeyCode::Char(of) if text.chars().count() < TEXT_CHARS_MAX => text.push(of),
            _ => {}
        }
        self.focus = Focus::Text(asked, text);
        None
    }

    fn answer(&mut self, asked: Asked, text: String) -> Option<Act> {
        let mut act = None;
        match asked {
            Asked::Filter => self.filter = text,
            Asked::User => self.user = text,
            Asked::Signal(id) => {
                let name = if text.is_empty() { "TERM" } else { &text };
                match signal::parse(name.as_bytes()) {
                    Ok(number) => act = Some(Act::Signal(id, number)),
                    Err(_) => self.word = format!("`{text}` is no signal"),
                }
            }
        }
        self.find_selected();
        act
    }

    fn sort_by(&mut self, sort: Sort) {
        self.sort = sort;
        self.reverse = false;
    }

    fn go(&mut self, lines: isize) {
        let place = self.place.saturating_add_signed(lines);
        let rows = self.rows();
        let place = place.min(rows.len().saturating_sub(1));
        let selected = rows.get(place).map(|row| row.seen.id);
        (self.place, self.selected) = (place, selected);
    }

    /// Finds the selected process again after something has changed.
    fn find_selected(&mut self) {
        let rows = self.rows();
        let found = rows
            .iter()
            .position(|row| Some(row.seen.id) == self.selected);
        let place = found.unwrap_or_else(|| self.place.min(rows.len().saturating_sub(1)));
        let selected = self
            .selected
            .and_then(|_| rows.get(place).map(|row| row.seen.id));
        (self.place, self.selected) = (place, selected);
    }

    fn shows(&self, seen: &Seen) -> bool {
        let named = seen.args.contains(&self.filter) || seen.name.contains(&self.filter);
        named && (self.user.is_empty() || seen.user == self.user)
    }

    fn order(&self, a: &Row<'_>, b: &Row<'_>) -> Ordering {
        let (first, second) = (a.seen, b.seen);
        let order = match self.sort {
            Sort::Cpu => b.cpu.total_cmp(&a.cpu),
            Sort::Mem => b.mem.total_cmp(&a.mem),
            Sort::Time => second.cpu_ms.cmp(&first.cpu_ms),
            Sort::Pid => Ordering::Equal,
        };
        let order = order.then(first.id.pid.cmp(&second.id.pid));
        if self.reverse { order.reverse() } else { order }
    }

    fn seconds_passed(&self) -> Option<f64> {
        let (now, before) = (self.now.as_ref()?, self.before.as_ref()?);
        let passed = now.taken.duration_since(before.taken).as_secs_f64();
        (passed > 0.0).then_some(passed)
    }
}

/// Exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests;
