use super::*;
use crate::stat::State;
use std::time::{Duration, Instant};

const fn id(pid: u32) -> Id {
    Id { pid, start: 1 }
}

fn seen(pid: u32, user: &str, cpu_ms: u64, rss_kib: u64, args: &str) -> Seen {
    Seen {
        id: id(pid),
        node: 1,
        user: user.into(),
        state: 'S',
        cpu_ms,
        rss_kib,
        name: format!("n{pid}"),
        args: args.into(),
    }
}

fn node(counted: Option<Counted>) -> Node {
    Node {
        node: 1,
        state: State::Idle,
        reason: String::new(),
        cpus: Some(2),
        used: None,
        memory: Some(1024 << 10),
        memory_free: None,
        counted,
    }
}

/// Two looks, two seconds apart.
fn model(before: Vec<Seen>, now: Vec<Seen>) -> Model {
    let counted = |sent| Counted {
        leases: 1,
        sent,
        received: 50,
    };
    let taken = Instant::now();
    let mut model = Model::default();
    model.take(Sample {
        taken,
        nodes: vec![node(Some(counted(100)))],
        processes: before,
    });
    model.take(Sample {
        taken: taken + Duration::from_secs(2),
        nodes: vec![node(Some(counted(300)))],
        processes: now,
    });
    model
}

fn three() -> Model {
    let before = vec![seen(1, "a", 9000, 1, "x"), seen(2, "b", 0, 9, "y")];
    let now = vec![
        seen(1, "a", 9100, 1, "x one"),
        seen(2, "b", 1000, 9, "y two"),
        seen(3, "a", 400, 512, "z two"),
    ];
    model(before, now)
}

fn pids(model: &Model) -> Vec<u32> {
    let rows = model.rows();
    rows.iter().map(|row| row.seen.id.pid).collect()
}

fn press(model: &mut Model, keys: &str) -> Option<Act> {
    let code = |key| match key {
        '\n' => KeyCode::Enter,
        '\x1b' => KeyCode::Esc,
        '\x08' => KeyCode::Backspace,
        other => KeyCode::Char(other),
    };
    let acts = keys.chars().map(|key| model.key(code(key).into()));
    acts.last().flatten()
}

#[test]
fn figures_are_of_the_time_between_two_looks() {
    let model = three();
    let rows = model.rows();
    let figures: Vec<_> = rows
        .iter()
        .map(|row| (row.seen.id.pid, row.cpu, row.mem))
        .collect();
    let expected = [(2, 50.0, 0.87890625), (3, 20.0, 50.0), (1, 5.0, 0.09765625)];
    assert_eq!(figures, expected);
    assert_eq!(model.node_rows()[0].traffic, Some((100.0, 0.0)));
    // The first look knows no rates, and neither does one of a process with another beginning.
    let mut first = Model::default();
    first.take(model.now.clone().expect("a look"));
    assert_eq!(first.rows()[0].cpu, 0.0);
    assert_eq!(first.node_rows()[0].traffic, None);
}

#[test]
fn keys_sort() {
    let mut model = three();
    for (key, expected) in [
        ("M", [3, 2, 1]),
        ("T", [1, 2, 3]),
        ("N", [1, 2, 3]),
        ("R", [3, 2, 1]),
        ("P", [2, 3, 1]),
        ("R", [1, 3, 2]),
    ] {
        press(&mut model, key);
        assert_eq!(pids(&model), expected, "{key}");
    }
}

#[test]
fn texts_leave_others_out() {
    let mut model = three();
    press(&mut model, "/two\n");
    assert_eq!(pids(&model), [2, 3]);
    press(&mut model, "ux\x08a\n");
    assert_eq!(pids(&model), [3]);
    // What is broken off changes nothing; Esc in the table brings all back.
    press(&mut model, "uzzz\x1b");
    assert_eq!(pids(&model), [3]);
    press(&mut model, "\x1b");
    assert_eq!(pids(&model), [2, 3, 1]);
    // Names count as well as arguments.
    press(&mut model, "/n1\n");
    assert_eq!(pids(&model), [1]);
}

#[test]
fn signals_go_to_the_chosen_process() {
    let mut model = three();
    assert_eq!(press(&mut model, "k\n"), Some(Act::Signal(id(2), 15)));
    model.key(KeyCode::Down.into());
    assert_eq!(press(&mut model, "kKILL\n"), Some(Act::Signal(id(3), 9)));
    assert_eq!(press(&mut model, "k65\n"), None);
    assert!(model.word.contains("65"), "{}", model.word);
    // It stays chosen when it moves, and the one in its place is when it is gone.
    press(&mut model, "M");
    assert_eq!((model.place(), model.selected), (0, Some(id(3))));
    press(&mut model, "P");
    let mut sample = model.now.clone().expect("a look");
    sample.processes.retain(|seen| seen.id.pid != 3);
    sample.taken += Duration::from_secs(2);
    model.take(sample);
    assert_eq!((model.place(), model.selected), (1, Some(id(2))));
    // While a signal is being asked for, it is for who was chosen then.
    press(&mut model, "k");
    let mut sample = model.now.clone().expect("a look");
    sample.processes.clear();
    model.take(sample);
    assert_eq!(press(&mut model, "1\n"), Some(Act::Signal(id(2), 1)));
    assert_eq!(press(&mut model, "k"), None);
    assert_eq!(model.word, "there is no process");
}

#[test]
fn other_keys() {
    let mut model = three();
    assert_eq!(press(&mut model, "q"), Some(Act::Quit));
    assert_eq!(press(&mut model, " "), Some(Act::Look));
    press(&mut model, "h");
    assert_eq!(model.focus, Focus::Help);
    // It only leaves the help.
    assert_eq!(press(&mut model, "q"), None);
    press(&mut model, "1c");
    assert!(model.no_nodes && model.names_only);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut model, "/abc");
    assert_eq!(model.key(interrupt), Some(Act::Quit));
    // Letters with Control are no text.
    press(&mut model, "/");
    model.key(KeyEvent::new(KeyCode::Char('a'), KeyModifiers::CONTROL));
    for key in ["PageUp", "PageDown"] {
        let code = if key == "PageUp" {
            KeyCode::PageUp
        } else {
            KeyCode::PageDown
        };
        Model::default().key(code.into());
    }
}
