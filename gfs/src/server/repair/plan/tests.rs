use super::*;
use consistency::wire::request::NodeReport;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Nodes by words like `3@a`: in domain a; `3-` is down, `3x` gone, `3d` being emptied, `3f` full.
fn view(words: &str) -> View {
    let mut view = View {
        copies: 2,
        ..View::default()
    };
    for word in words.split_whitespace() {
        let (word, domain) = word.split_once('@').unwrap_or((word, ""));
        let digits = word.trim_end_matches(|c: char| !c.is_ascii_digit());
        let is = |mark| word.contains(mark);
        let node = NodeId(digits.parse().expect("a number"));
        if is('x') {
            view.gone.insert(node);
        }
        view.nodes.push(NodeStatus {
            node,
            up: !is('-') && !is('x'),
            report: NodeReport {
                disk_total: 100 * GIB,
                disk_free: if is('f') { GIB } else { 50 * GIB },
                domain: domain.to_owned(),
                ..NodeReport::default()
            },
            chunks: 0,
            chunk_bytes: 0,
            draining: is('d'),
        });
    }
    view
}

fn listed(replicas: &[u16], copies: u8) -> Listed {
    Listed {
        id: ChunkId(7),
        len: 4 << 20,
        copies,
        replicas: replicas.iter().copied().map(NodeId).collect(),
    }
}

fn show(job: Option<&Job>) -> String {
    match job {
        None => "-".to_owned(),
        Some(Job::Copy {
            source,
            to,
            instead: None,
            ..
        }) => format!("{source}>{to}"),
        Some(Job::Copy {
            source,
            to,
            instead: Some(old),
            ..
        }) => format!("{source}>{to} for {old}"),
        Some(Job::Trim { node, keep, .. }) => {
            let keep: Vec<String> = keep.iter().map(ToString::to_string).collect();
            format!("drop {node}, keep {}", keep.join(" "))
        }
        Some(Job::Check { .. }) => "check".to_owned(),
    }
}

#[track_caller]
fn check(nodes: &str, replicas: &[u16], copies: u8, expected: &str) {
    let finding = view(nodes).look(&listed(replicas, copies), |_| true);
    assert_eq!(show(finding.job.as_ref()), expected);
    assert!(finding.job.is_none() || finding.todo, "{finding:?}");
}

#[test]
fn one_more_where_one_is_missing() {
    check("1 2 3", &[1, 2], 0, "-");
    check("1 2 3", &[1, 3], 2, "-");
    check("1 2", &[1], 0, "1>2");
    check("1 2", &[1], 1, "-");
    check("1 2", &[1, 2], 3, "-");
    check("1 2 3", &[1, 2], 3, "1>3");
    check("1 2 3-", &[1, 2], 3, "-");
    check("1", &[1], 0, "-");
}

#[test]
fn a_node_that_is_down_is_waited_for_until_it_is_gone() {
    check("1 2- 3", &[1, 2], 0, "-");
    check("1 2x 3", &[1, 2], 0, "1>3 for 2");
    check("1 2x", &[1, 2], 0, "-");
    // Also one that is no longer a node of the cluster.
    check("1 3", &[1, 2], 0, "1>3 for 2");
    // Nobody can be asked: what is listed stays.
    check("1x 2x 3 4", &[1, 2], 0, "-");
    check("1- 2x 3 4", &[1, 2], 0, "-");
}

#[test]
fn findings() {
    let look = |nodes, replicas: &[u16]| {
        let finding = view(nodes).look(&listed(replicas, 0), |_| true);
        (finding.lacking, finding.unreachable, finding.todo)
    };
    assert_eq!(look("1 2 3", &[1, 2]), (false, false, false));
    assert_eq!(look("1 2- 3", &[1, 2]), (true, false, false));
    assert_eq!(look("1 2x 3", &[1, 2]), (true, false, true));
    assert_eq!(look("1 2x", &[1, 2]), (true, false, false));
    assert_eq!(look("1- 2- 3", &[1, 2]), (true, true, false));
    assert_eq!(look("1 2d 3", &[1, 2]), (false, false, true));
    assert_eq!(look("1", &[1]), (false, false, false));
}

#[test]
fn emptying_a_node() {
    check("1d 2 3", &[1, 2], 0, "1>3 for 1");
    check("1d 2 3f", &[1], 1, "1>2 for 1");
    check("1d 2", &[1], 1, "1>2 for 1");
    // There is nowhere to go.
    check("1d 2", &[1, 2], 0, "-");
    check("1d 2 3f", &[1, 2], 0, "-");
    check("1d 2d 3", &[1, 2], 0, "1>3 for 1");
    check("1d 2 3", &[1, 2, 3], 2, "drop 1, keep 2 3");
    // Gone before it was empty: what cannot be read goes first.
    check("1d 2x 3 4f", &[1, 2], 0, "1>3 for 2");
}

#[test]
fn too_many() {
    check("1 2 3", &[1, 2, 3], 2, "drop 1, keep 2 3");
    check("1 2 3", &[1, 2, 3], 3, "-");
    // Not those of the only other rack.
    check("1@a 2@b 3@b", &[1, 2, 3], 2, "drop 2, keep 1 3");
    // A node that comes back decides.
    check("1 2 3-", &[1, 2, 3], 2, "-");
    check("1 2 3x", &[1, 2, 3], 2, "drop 3, keep 1 2");
    check("1 2- 3x", &[1, 2, 3], 2, "-");
}

#[test]
fn where_nothing_fails_together() {
    check("1@a 2@a 3@b", &[1], 0, "1>3");
    check("1@a 2@a 3@bf", &[1], 0, "1>3");
    check("1@a 2@a 3f@b", &[1], 0, "1>2");
}

#[test]
fn busy_nodes_are_left_alone() {
    let view = view("1 2x 3");
    for busy in [1, 3] {
        let finding = view.look(&listed(&[1, 2], 0), |node| node.0 != busy);
        assert_eq!((finding.job, finding.todo), (None, true));
    }
}

#[track_caller]
fn check_improve(nodes: &str, replicas: &[u16], expected: &str) {
    let job = view(nodes).improve(&listed(replicas, 0), |_| true);
    assert_eq!(show(job.as_ref()), expected);
}

#[test]
fn improvement() {
    check_improve("1@a 2@a 3@b", &[1, 2], "1>3 for 1");
    check_improve("1@a 2@b 3@c", &[1, 2], "-");
    check_improve("1@a 2@a 3@a", &[1, 2], "-");
    check_improve("1@a 2@a 3-@b", &[1, 2], "-");
    // What is not in order is not improved.
    check_improve("1@a 2d@a 3@b", &[1, 2], "-");
    check_improve("1@a 2@a 3@b", &[1], "-");
}

/// An empty node joins: chunks move until all are within a tenth of their share, and then no more.
#[test]
fn an_empty_node_gets_its_share() {
    let mut view = view("1 2 3 4 5");
    view.nodes[4].report.disk_total = 50 * GIB;
    let mut chunks: Vec<Listed> = (0..3000)
        .map(|id| {
            let mut chunk = listed(&[1, 2], 0);
            chunk.id = ChunkId(id);
            let three = u16::try_from(id % 3).expect("small");
            chunk.replicas = vec![NodeId(three + 1), NodeId((three + 1) % 3 + 1)];
            chunk
        })
        .collect();
    for status in &mut view.nodes[..3] {
        status.chunk_bytes = 2000 * (4 << 20);
    }
    let mut moves = 0_u64;
    loop {
        let before = moves;
        for chunk in &mut chunks {
            let held = |node: NodeId, view: &View| view.status(node).expect("known").chunk_bytes;
            let Some(Job::Copy {
                to,
                instead: Some(from),
                ..
            }) = view.improve(chunk, |_| true)
            else {
                continue;
            };
            assert!(held(from, &view) > held(to, &view));
            chunk.replicas.retain(|node| *node != from);
            chunk.replicas.push(to);
            view.nodes[usize::from(from.0 - 1)].chunk_bytes -= 4 << 20;
            view.nodes[usize::from(to.0 - 1)].chunk_bytes += 4 << 20;
            moves += 1;
        }
        if moves == before {
            break;
        }
    }
    let total = 6000 * (4 << 20);
    for status in &view.nodes {
        let share = total / 450 * (status.report.disk_total / GIB);
        let off = status.chunk_bytes.abs_diff(share);
        assert!(off <= share / 10 + 8 * MIB, "{status:?} of {share}");
    }
    // No more than have to: the two new nodes' shares.
    assert!(moves <= 2000, "{moves} moves");
}

/// One copy in the bucket is enough, whoever is there and whatever its tree says; what is on disks is as before.
#[test]
fn the_bucket_is_left_alone() {
    let bucket = NodeId::BUCKET.0;
    for nodes in ["1 2 3", "1- 2x 3d", ""] {
        check(nodes, &[bucket], 0, "-");
        check(nodes, &[bucket], 3, "-");
        check_improve(nodes, &[bucket], "-");
        let finding = view(nodes).look(&listed(&[bucket], 3), |_| true);
        assert_eq!(finding, Finding::default(), "{nodes}");
    }
}
