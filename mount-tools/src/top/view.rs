//! The view in a terminal.

use super::model::{Asked, Focus, Model};
use super::rows;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

const HELP: &str = "\
q         quit                        space    look again now
P M T N   sort by processor use, memory, processor time, number
R         the other way round         c        names or command lines
1         nodes or none               arrows   choose a process
/         only processes with a text in them
u         only those of a user        Esc      all of them again
k         send a signal to the chosen process
h         this help                   any key  back

The processes are those of all nodes, with the numbers of /cluster/proc.
%CPU is of one processor, %MEM of the node's memory, both since the last look.";

/// Draws everything; `first` is the first process that was shown before, and is that again afterwards.
pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model, first: &mut usize) {
    let head = rows::head(model);
    let nodes = if model.no_nodes {
        Vec::new()
    } else {
        model.node_rows().iter().map(rows::node).collect()
    };
    let lines = |count: usize| Constraint::Length(u16::try_from(count).unwrap_or(u16::MAX));
    let node_lines = if nodes.is_empty() { 0 } else { nodes.len() + 1 };
    let [top, middle, title, table, bottom] = Layout::vertical([
        lines(head.len()),
        lines(node_lines),
        lines(1),
        Constraint::Min(1),
        lines(1),
    ])
    .areas(frame.area());
    put(frame, top, head);
    if node_lines > 0 {
        let title = std::iter::once(rows::node_header().to_owned());
        put(frame, middle, title.chain(nodes));
    }
    if model.focus == Focus::Help {
        put(frame, table, HELP.lines().map(String::from));
    } else {
        let reversed = Style::new().add_modifier(Modifier::REVERSED);
        let bold = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Paragraph::new(rows::header()).style(bold), title);
        let height = usize::from(table.height);
        *first = model.fit(height, *first);
        let shown = model.rows();
        let shown = shown.iter().enumerate().skip(*first).take(height);
        let line = |(place, row)| {
            let line = Line::raw(rows::process(row, model.names_only));
            let chosen = place == model.place();
            line.style(if chosen { reversed } else { Style::new() })
        };
        frame.render_widget(Paragraph::new(shown.map(line).collect::<Vec<_>>()), table);
    }
    put(frame, bottom, [bottom_line(model)]);
}

fn bottom_line(model: &Model) -> String {
    match &model.focus {
        Focus::Text(Asked::Filter, text) => format!("only with this text: {text}_"),
        Focus::Text(Asked::User, text) => format!("only of this user: {text}_"),
        Focus::Text(Asked::Signal(id), text) => {
            format!("signal to {}, TERM if nothing else: {text}_", id.pid)
        }
        Focus::Table | Focus::Help if !model.word.is_empty() => model.word.clone(),
        Focus::Table | Focus::Help => {
            let (filter, user) = (&model.filter, &model.user);
            let mut line = String::from("q quit  h help  k signal  / text  u user  space look");
            if !filter.is_empty() {
                line += &format!("  [text: {filter}]");
            }
            if !user.is_empty() {
                line += &format!("  [user: {user}]");
            }
            line
        }
    }
}

fn put(frame: &mut Frame<'_>, area: Rect, lines: impl IntoIterator<Item = String>) {
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::raw).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Id, Sample, Seen};
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;
    use std::time::Instant;

    /// Returns what a terminal of 10 lines would show.
    fn screen(model: &mut Model, first: &mut usize) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 10)).expect("in memory");
        let drawn = terminal.draw(|frame| draw(frame, model, first));
        let buffer = drawn.expect("drawn").buffer;
        let cells = buffer.content();
        let lines = cells.chunks(80).map(|cells| {
            let line: String = cells.iter().map(|cell| cell.symbol()).collect();
            line.trim_end().to_owned()
        });
        lines.collect()
    }

    #[test]
    fn the_chosen_process_is_always_seen() {
        let seen = |pid| Seen {
            id: Id { pid, start: 1 },
            node: 1,
            user: "u".into(),
            state: 'S',
            cpu_ms: 0,
            rss_kib: 0,
            name: format!("p{pid}"),
            args: format!("p{pid}"),
        };
        let mut model = Model::default();
        model.take(Sample {
            taken: Instant::now(),
            nodes: Vec::new(),
            processes: (1..=20).map(seen).collect(),
        });
        let mut first = 0;
        let lines = screen(&mut model, &mut first);
        assert!(lines[3].starts_with("       PID"), "{lines:?}");
        assert!(lines[4].ends_with(" p1") && lines[8].ends_with(" p5"));
        assert!(lines[9].starts_with("q quit"), "{lines:?}");
        model.key(KeyCode::End.into());
        let lines = screen(&mut model, &mut first);
        assert!(lines[8].ends_with(" p20"), "{lines:?}");
        model.key(KeyCode::Up.into());
        assert_eq!(screen(&mut model, &mut first), lines);
        model.key(KeyCode::Home.into());
        let lines = screen(&mut model, &mut first);
        assert!(lines[4].ends_with(" p1"), "{lines:?}");
        model.key(KeyCode::Char('k').into());
        let lines = screen(&mut model, &mut first);
        assert_eq!(lines[9], "signal to 1, TERM if nothing else: _");
        model.key(KeyCode::Esc.into());
        model.key(KeyCode::Char('h').into());
        let lines = screen(&mut model, &mut first);
        assert!(lines[4].starts_with("q         quit"), "{lines:?}");
    }
}
