//! What the daemon counts, as `/cluster/proc/cluster/node<N>/metrics` shows it: the text format of Prometheus.

use crate::transport::Traffic;
use consistency::NodeId;
use gproc::job::MovesCounted;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What is counted.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) version: u32,
    /// Seconds.
    pub(super) up: u64,
    pub(super) leases: usize,
    pub(super) session: bool,
    pub(super) leads: bool,
    pub(super) traffic: BTreeMap<NodeId, Traffic>,
    /// Looks that levelling has taken at jobs, and moves it has made.
    pub(super) levelled: (u64, u64),
    /// Of jobs that were started here.
    pub(super) moves: MovesCounted,
}

/// Returns the text.
pub(super) fn show(counted: &Counted) -> String {
    let Counted {
        version,
        up,
        leases,
        session,
        leads,
        traffic,
        levelled,
        moves,
    } = counted;
    let mut out = String::new();
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
        let text = format!("# HELP glu_{name} {help}\n# TYPE glu_{name} {kind}\n");
        out.push_str(&text);
        for (labels, value) in samples {
            writeln!(out, "glu_{name}{labels} {value}").expect("writing to a string succeeds");
        }
    };
    let alone = |value: u64| [(String::new(), value)];
    let of_peers = |what: fn(&Traffic) -> u64| {
        let sample =
            |(peer, traffic): (&NodeId, _)| (format!("{{peer=\"{peer}\"}}"), what(traffic));
        traffic.iter().map(sample).collect::<Vec<_>>()
    };
    family(
        "protocol_version",
        "gauge",
        "Newest version of the protocol that the daemon speaks.",
        &alone(u64::from(*version)),
    );
    family(
        "uptime_seconds",
        "gauge",
        "Since the daemon started.",
        &alone(*up),
    );
    family(
        "session",
        "gauge",
        "Whether the metadata leader knows the node.",
        &alone(u64::from(*session)),
    );
    family(
        "leads",
        "gauge",
        "Whether the node leads the metadata.",
        &alone(u64::from(*leads)),
    );
    family(
        "leases",
        "gauge",
        "Leases on files that the node holds.",
        &alone(*leases as u64),
    );
    family(
        "sent_bytes_total",
        "counter",
        "Bytes sent to a node.",
        &of_peers(|traffic| traffic.sent),
    );
    family(
        "received_bytes_total",
        "counter",
        "Bytes received from a node.",
        &of_peers(|traffic| traffic.received),
    );
    family(
        "levelling_rounds_total",
        "counter",
        "Looks that automatic levelling has taken at the node's jobs.",
        &alone(levelled.0),
    );
    family(
        "levelling_moves_total",
        "counter",
        "Jobs that automatic levelling has moved away from the node.",
        &alone(levelled.1),
    );
    for (name, help, value) in [
        (
            "moves_total",
            "Moves of jobs that the node has started.",
            moves.moves,
        ),
        (
            "moves_post_copy_total",
            "Those of them after which the job's memory followed.",
            moves.post_copies,
        ),
        (
            "moves_pre_copy_total",
            "Those of them before which most of the job's memory went.",
            moves.pre_copies,
        ),
        (
            "moves_pause_milliseconds_total",
            "For how long jobs stood still for them.",
            moves.pause_ms,
        ),
        ("moves_bytes_total", "What was sent for them.", moves.bytes),
    ] {
        family(name, "counter", help, &alone(value));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_head_and_its_samples() {
        let traffic = |sent| Traffic { sent, received: 7 };
        let text = show(&Counted {
            leases: 3,
            traffic: [(NodeId(2), traffic(5)), (NodeId(12), traffic(6))].into(),
            ..Counted::default()
        });
        assert!(
            text.contains("# TYPE glu_leases gauge\nglu_leases 3\n"),
            "{text}"
        );
        let sent = "# TYPE glu_sent_bytes_total counter\nglu_sent_bytes_total{peer=\"2\"} 5\nglu_sent_bytes_total{peer=\"12\"} 6\n";
        assert!(text.contains(sent), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            let name = name.split('{').next().unwrap_or(name);
            assert!(text.contains(&format!("# HELP {name} ")), "{line}");
            value.parse::<u64>().expect("a number");
        }
    }
}
