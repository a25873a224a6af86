//! The lines of the view, as text: for the terminal, and for `-b`.

use super::model::{Model, NodeRow, Row};
use crate::stat::State;
use std::collections::BTreeMap;

const KIB: f64 = 1024.0;

/// Returns the lines about the cluster as a whole.
pub(super) fn head(model: &Model) -> Vec<String> {
    let Some(now) = &model.now else {
        return vec!["glu top: looking at the cluster".into()];
    };
    let answers = |state| !matches!(state, State::Down | State::Unreachable);
    let up = now.nodes.iter().filter(|node| answers(node.state)).count();
    let mut states: BTreeMap<char, usize> = BTreeMap::new();
    for seen in &now.processes {
        *states.entry(seen.state).or_default() += 1;
    }
    let in_states = |of: &[char]| {
        let counts = of.iter().filter_map(|state| states.get(state));
        counts.sum::<usize>()
    };
    let sum = |of: fn(&super::sample::Node) -> Option<u64>| -> u64 {
        now.nodes.iter().filter_map(of).sum()
    };
    let (memory, free) = (sum(|node| node.memory), sum(|node| node.memory_free));
    let leases = sum(|node| Some(node.counted?.leases));
    let traffic = model.node_rows();
    let traffic = traffic.iter().filter_map(|row| row.traffic);
    // Each byte is sent by one and received by another.
    let traffic: f64 = traffic.map(|(sent, _)| sent).sum();
    vec![
        format!(
            "nodes: {}, {up} up; processors: {}",
            now.nodes.len(),
            sum(|node| node.cpus)
        ),
        format!(
            "processes: {}, {} running, {} sleeping, {} waiting, {} stopped, {} zombie",
            now.processes.len(),
            in_states(&['R']),
            in_states(&['S', 'I']),
            in_states(&['D']),
            in_states(&['T', 't']),
            in_states(&['Z', 'X']),
        ),
        format!(
            "memory: {} of {} MiB used; leases: {leases}; traffic: {}/s",
            memory.saturating_sub(free) >> 20,
            memory >> 20,
            bytes(traffic),
        ),
    ]
}

/// Returns the names above the nodes.
pub(super) const fn node_header() -> &'static str {
    "NODE  STATE        CPUS  %CPU  MiB USED       MiB   LEASES    SENT/s    RECV/s  REASON"
}

/// Returns the line of a node.
pub(super) fn node(row: &NodeRow<'_>) -> String {
    let node = row.node;
    let number = |of: Option<u64>| of.map_or_else(|| "-".into(), |of| of.to_string());
    let used = node.memory.zip(node.memory_free);
    let used = used.map(|(all, free)| all.saturating_sub(free) >> 20);
    let rate = |of: Option<f64>| of.map_or_else(|| "-".into(), bytes);
    format!(
        "{:>4}  {:<11} {:>5} {:>5} {:>9} {:>9} {:>8} {:>9} {:>9}  {}",
        node.node,
        node.state.to_string(),
        number(node.cpus),
        number(node.used),
        number(used),
        number(node.memory.map(|all| all >> 20)),
        number(node.counted.map(|of| of.leases)),
        rate(row.traffic.map(|(sent, _)| sent)),
        rate(row.traffic.map(|(_, received)| received)),
        node.reason,
    )
}

/// Returns the names above the processes.
pub(super) const fn header() -> &'static str {
    "       PID NODE USER      S  %CPU  %MEM       RES     TIME+  COMMAND"
}

/// Returns the line of a process.
pub(super) fn process(row: &Row<'_>, names_only: bool) -> String {
    let seen = row.seen;
    let user: String = seen.user.chars().take(9).collect();
    let command = if names_only { &seen.name } else { &seen.args };
    let (minutes, rest) = (seen.cpu_ms / 60_000, seen.cpu_ms % 60_000);
    let time = format!("{minutes}:{:02}.{:02}", rest / 1000, rest % 1000 / 10);
    #[allow(clippy::cast_precision_loss)]
    let resident = bytes(seen.rss_kib as f64 * KIB);
    format!(
        "{:>10} {:>4} {user:<9} {} {:>5.1} {:>5.1} {resident:>9} {time:>9}  {command}",
        seen.id.pid, seen.node, seen.state, row.cpu, row.mem,
    )
}

/// Returns everything, for `-b`.
pub(super) fn all(model: &Model) -> String {
    let mut lines = head(model);
    if !model.no_nodes {
        lines.push(String::new());
        lines.push(node_header().into());
        lines.extend(model.node_rows().iter().map(node));
    }
    lines.push(String::new());
    lines.push(header().into());
    let rows = model.rows();
    lines.extend(rows.iter().map(|row| process(row, model.names_only)));
    let mut text = String::new();
    for line in lines {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Shows a number of bytes with three digits or so.
fn bytes(number: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut number, mut unit) = (number, 0);
    while number >= 1000.0 && unit + 1 < units.len() {
        number /= KIB;
        unit += 1;
    }
    if unit == 0 || number >= 100.0 {
        format!("{number:.0} {}", units[unit])
    } else {
        format!("{number:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Counted, Id, Node, Sample, Seen};
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_cluster_as_text() {
        let node = |node, state, counted| Node {
            node,
            state,
            reason: "why".into(),
            cpus: Some(2),
            used: Some(7),
            memory: Some(4 << 30),
            memory_free: Some(3 << 30),
            counted,
        };
        let seen = |cpu_ms| Seen {
            id: Id {
                pid: 131_080,
                start: 5,
            },
            node: 2,
            user: "a-very-long-name".into(),
            state: 'R',
            cpu_ms,
            rss_kib: 40 << 10,
            name: "sh".into(),
            args: "sh -c x".into(),
        };
        let counted = |sent, received| {
            Some(Counted {
                leases: 9,
                sent,
                received,
            })
        };
        let first = Instant::now();
        let mut model = Model::default();
        model.take(Sample {
            taken: first,
            nodes: vec![node(2, State::Busy, counted(0, 5))],
            processes: vec![seen(61_000)],
        });
        model.take(Sample {
            taken: first + Duration::from_secs(2),
            nodes: vec![
                node(2, State::Busy, counted(4096, 5)),
                node(3, State::Down, None),
            ],
            processes: vec![seen(62_000)],
        });
        let expected = "\
nodes: 2, 1 up; processors: 4
processes: 1, 1 running, 0 sleeping, 0 waiting, 0 stopped, 0 zombie
memory: 2048 of 8192 MiB used; leases: 9; traffic: 2.0 KiB/s

NODE  STATE        CPUS  %CPU  MiB USED       MiB   LEASES    SENT/s    RECV/s  REASON
   2  busy            2     7      1024      4096        9   2.0 KiB       0 B  why
   3  down            2     7      1024      4096        -         -         -  why

       PID NODE USER      S  %CPU  %MEM       RES     TIME+  COMMAND
    131080    2 a-very-lo R  50.0   1.0  40.0 MiB   1:02.00  sh -c x
";
        assert_eq!(all(&model), expected);
    }

    #[test]
    fn bytes_in_units() {
        let shown = [0.0, 999.0, 1000.0, 102_400.0, 1e30].map(bytes);
        assert_eq!(shown[..4], ["0 B", "999 B", "1.0 KiB", "100 KiB"]);
        assert!(shown[4].ends_with(" TiB"));
    }
}
