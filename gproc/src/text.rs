//! The texts of `/proc/<pid>/stat` and `status`: what is read from them and how their pids become cluster pids.

/// Which words of `stat` behind the name are pids: ppid, pgrp, session, tpgid.
const STAT_PIDS: [usize; 4] = [1, 2, 3, 5];
/// Which word of `stat` behind the name is the process group.
const STAT_GROUP: usize = 2;
/// Which word of `stat` behind the name is the wait status.
const STAT_EXIT: usize = 49;
/// Which word of `stat` behind the name is the start time.
const STAT_START: usize = 19;
/// Which words of `stat` behind the name are addresses, shown only to who may trace the process: the kernel says 1 for
/// the first two and 0 for the others instead, and 0 for the status of its end.
const STAT_CODE: std::ops::Range<usize> = 23..25;
const STAT_HIDDEN: [std::ops::Range<usize>; 3] = [25..28, 32..33, 42..50];
/// Lines of `status` that begin with a pid of the reader's namespace. Those of inner namespaces that may follow in
/// the last four are what the process itself knows and stay.
const STATUS_PIDS: [&[u8]; 8] = [
    b"Tgid:",
    b"Pid:",
    b"PPid:",
    b"TracerPid:",
    b"NStgid:",
    b"NSpid:",
    b"NSpgid:",
    b"NSsid:",
];

/// Returns the start time in `stat`, in ticks since boot.
pub(crate) fn start_ticks(stat: &[u8]) -> Option<u64> {
    let (_, _, rest) = split_stat(stat)?;
    parse(rest.split(|&byte| byte == b' ').nth(STAT_START)?)
}

/// Returns the name in `stat`, as `comm` has it but for the newline.
pub(crate) fn comm(stat: &[u8]) -> Option<&[u8]> {
    split_stat(stat).map(|(_, name, _)| name)
}

/// Returns the wait status in the `stat` of a process that nobody has waited for yet; `None` if it lives.
pub(crate) fn exit_status(stat: &[u8]) -> Option<i32> {
    let (_, _, rest) = split_stat(stat)?;
    let mut words = words(rest);
    let state = words.next()?;
    parse(words.nth(STAT_EXIT - 1)?).filter(|_| state == b"Z")
}

/// Returns the process group in `stat`.
pub(crate) fn group(stat: &[u8]) -> Option<i32> {
    let (_, _, rest) = split_stat(stat)?;
    parse(rest.split(|&byte| byte == b' ').nth(STAT_GROUP)?)
}

/// Returns effective user and group in `status`.
pub(crate) fn owner(status: &[u8]) -> Option<(u32, u32)> {
    let Credentials { users, groups, .. } = credentials(status)?;
    Some((users.effective, groups.effective))
}

/// Whose a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Users.
    pub(crate) users: Ids,
    /// Groups.
    pub(crate) groups: Ids,
    /// It may have capabilities.
    pub(crate) capable: bool,
}

/// Real, effective and saved user or group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) real: u32,
    pub(crate) effective: u32,
    pub(crate) saved: u32,
}

/// Returns users and groups in `status`.
pub(crate) fn credentials(status: &[u8]) -> Option<Credentials> {
    let ids = |key| {
        let mut ids = words(value(status, key)?).map(parse);
        let mut next = || ids.next().flatten();
        Some(Ids {
            real: next()?,
            effective: next()?,
            saved: next()?,
        })
    };
    Some(Credentials {
        users: ids(b"Uid:")?,
        groups: ids(b"Gid:")?,
        capable: value(status, b"CapPrm:")
            .is_some_and(|set| set.iter().any(|hex| (b'1'..=b'f').contains(hex))),
    })
}

/// Returns the thread group in `status`.
pub(crate) fn thread_group(status: &[u8]) -> Option<i32> {
    parse(words(value(status, b"Tgid:")?).next()?)
}

/// Returns the group that a procfs at `path` hides no processes from, if it hides any (hidepid); the last mount there
/// counts.
pub(crate) fn hidden(mountinfo: &str, path: &str) -> Option<u32> {
    let at_path = |line: &&str| line.split(' ').nth(4) == Some(path);
    let mount = mountinfo.lines().rfind(at_path)?;
    let options = mount.split(" - proc ").nth(1)?.split(' ').nth(1)?;
    let option = |key: &str| {
        options
            .split(',')
            .find_map(|option| option.strip_prefix(key))
    };
    let hides = !matches!(option("hidepid=")?, "0" | "off");
    let group = option("gid=").and_then(|group| group.parse().ok());
    hides.then(|| group.unwrap_or(0))
}

/// Returns the running (or runnable) tasks that `loadavg` tells about.
pub(crate) fn running(loadavg: &[u8]) -> Option<u32> {
    let tasks = words(loadavg).nth(3)?;
    parse(tasks.split(|&byte| byte == b'/').next()?)
}

/// Returns the number behind a key at the beginning of a line.
pub(crate) fn number(text: &[u8], key: &[u8]) -> Option<u64> {
    parse(words(value(text, key)?).next()?)
}

/// Returns `stat` with `map` applied to its pids, and without addresses; numbers that are no pids (0, -1) stay.
pub(crate) fn rewrite_stat(stat: &[u8], map: impl Fn(i32) -> i32) -> Option<Vec<u8>> {
    let (pid, name, rest) = split_stat(stat)?;
    let mut out = Vec::with_capacity(stat.len() + 24);
    push_mapped(&mut out, pid, &map)?;
    out.extend_from_slice(b" (");
    out.extend_from_slice(name);
    out.push(b')');
    for (at, word) in rest.split(|&byte| byte == b' ').enumerate() {
        out.push(b' ');
        if STAT_PIDS.contains(&at) {
            push_mapped(&mut out, word, &map)?;
        } else if STAT_CODE.contains(&at) && word != b"0" {
            out.push(b'1');
        } else if STAT_HIDDEN.iter().any(|hidden| hidden.contains(&at)) {
            // The last word has the newline.
            out.push(b'0');
            out.extend(word.strip_suffix(b"\n").map(|_| b'\n'));
        } else {
            out.extend_from_slice(word);
        }
    }
    Some(out)
}

/// Returns `stat` with a start that is so many ticks later.
pub(crate) fn start_later(stat: &[u8], ticks: u64) -> Option<Vec<u8>> {
    let (_, _, rest) = split_stat(stat)?;
    let start = rest.split(|&byte| byte == b' ').nth(STAT_START)?;
    let later = parse::<u64>(start)?.saturating_add(ticks).to_string();
    let words = rest.split(|&byte| byte == b' ').enumerate();
    let words = words.map(|(at, word)| match at {
        STAT_START => later.as_bytes(),
        _ => word,
    });
    let words: Vec<&[u8]> = words.collect();
    let mut out = stat[..stat.len() - rest.len()].to_vec();
    out.extend(words.join(&b' '));
    Some(out)
}

/// Returns `stat` and `status` of a process that waits for its node.
pub(crate) fn of_silent_node(stat: &[u8], status: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut waiting = stat.to_vec();
    // The state is one letter.
    let behind = stat.iter().rposition(|&byte| byte == b')');
    if let Some(state) = behind.and_then(|behind| waiting.get_mut(behind + 2)) {
        *state = b'D';
    }
    let line = |line: &[u8]| match line.starts_with(b"State:") {
        true => b"State:\tD (its node does not answer)\n".to_vec(),
        false => line.to_vec(),
    };
    let lines = status.split_inclusive(|&byte| byte == b'\n').map(line);
    (waiting, lines.collect::<Vec<_>>().concat())
}

/// Returns `stat` and `status` of what stands for the processes of a node that does not answer: no memory, no time, no
/// parent.
pub(crate) fn stand_in(pid: u32, name: &str) -> (Vec<u8>, Vec<u8>) {
    let zeros = ["0"; STAT_EXIT - 5].join(" ");
    let stat = format!("{pid} ({name}) D 0 0 0 0 -1 {zeros}\n");
    let status = format!(
        "Name:\t{name}\nState:\tD (its node does not answer)\nTgid:\t{pid}\nNgid:\t0\nPid:\t{pid}\nPPid:\t0\n\
         TracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t0\nGroups:\t\nThreads:\t1\n"
    );
    (stat.into(), status.into())
}

/// Returns `status` with `map` applied to its pids; 0 stays.
pub(crate) fn rewrite_status(status: &[u8], map: impl Fn(i32) -> i32) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(status.len() + 32);
    for line in status.split_inclusive(|&byte| byte == b'\n') {
        let rest = STATUS_PIDS.iter().find_map(|key| line.strip_prefix(*key));
        let Some(rest) = rest else {
            out.extend_from_slice(line);
            continue;
        };
        let from = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        let len = rest[from..].iter().position(u8::is_ascii_whitespace)?;
        out.extend_from_slice(&line[..line.len() - rest.len() + from]);
        push_mapped(&mut out, &rest[from..from + len], &map)?;
        out.extend_from_slice(&rest[from + len..]);
    }
    Some(out)
}

/// Splits `stat` into pid, name and what follows. The name may hold anything, parentheses and spaces too, but
/// nothing behind it does.
fn split_stat(stat: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let pid = stat[..open].strip_suffix(b" ")?;
    let name = stat.get(open + 1..close)?;
    Some((pid, name, stat[close + 1..].strip_prefix(b" ")?))
}

fn value<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut lines = text.split(|&byte| byte == b'\n');
    lines.find_map(|line| line.strip_prefix(key))
}

fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}

fn parse<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn push_mapped(out: &mut Vec<u8>, word: &[u8], map: impl Fn(i32) -> i32) -> Option<()> {
    let pid: i32 = parse(word)?;
    let mapped = if pid > 0 { map(pid) } else { pid };
    if mapped == pid {
        out.extend_from_slice(word);
    } else {
        out.extend_from_slice(mapped.to_string().as_bytes());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thousand_more(pid: i32) -> i32 {
        pid + 1000
    }

    #[track_caller]
    fn check_stat(stat: &str, expected: Option<&str>) {
        let out = rewrite_stat(stat.as_bytes(), thousand_more);
        let out = out.map(|out| String::from_utf8(out).expect("text"));
        assert_eq!(out.as_deref(), expected);
    }

    #[test]
    fn pids_in_stat() {
        check_stat(
            "7 (sh) S 1 7 7 34816 9 4194560 1\n",
            Some("1007 (sh) S 1001 1007 1007 34816 1009 4194560 1\n"),
        );
        check_stat(
            "7 (a) b (c) S 0 0 0 0 -1 1\n",
            Some("1007 (a) b (c) S 0 0 0 0 -1 1\n"),
        );
        let words = |hidden: [&str; 2]| {
            let mut words = (0..=49)
                .map(|at| (at + 100).to_string())
                .collect::<Vec<_>>();
            for at in [1, 2, 3, 5] {
                words[at] = "0".into();
            }
            words[23..25].fill(hidden[0].into());
            for hidden_words in [25..28, 32..33, 42..50] {
                words[hidden_words].fill(hidden[1].into());
            }
            format!("7 (a) {}\n", words.join(" "))
        };
        let shown = words(["1", "0"]).replacen('7', "1007", 1);
        check_stat(&words(["94", "77"]), Some(&shown));
        let shown = words(["0", "0"]).replacen('7', "1007", 1);
        check_stat(&words(["0", "0"]), Some(&shown));
        check_stat("7 () R 1 1 1 0 -1", Some("1007 () R 1001 1001 1001 0 -1"));
        for bad in [
            "",
            "7",
            "7 (sh",
            "7 (sh)",
            ")(",
            "x (sh) S 1 1 1 1 1",
            "7 (sh) S y 1",
        ] {
            check_stat(bad, None);
        }
    }

    #[track_caller]
    fn check_later(stat: &str, ticks: u64, expected: Option<&str>) {
        let out = start_later(stat.as_bytes(), ticks);
        let out = out.map(|out| String::from_utf8(out).expect("text"));
        assert_eq!(out.as_deref(), expected);
    }

    #[test]
    fn starts_that_are_later() {
        let stat = |start: &str| format!("7 (a) 1 (b) S {} {start} 8 9\n", ["0"; 18].join(" "));
        check_later(&stat("50"), 100, Some(&stat("150")));
        check_later(&stat("50"), u64::MAX, Some(&stat(&u64::MAX.to_string())));
        check_later("7 (a) S 1 2", 100, None);
        check_later("", 100, None);
    }

    #[track_caller]
    fn check_status(status: &str, expected: Option<&str>) {
        let out = rewrite_status(status.as_bytes(), thousand_more);
        let out = out.map(|out| String::from_utf8(out).expect("text"));
        assert_eq!(out.as_deref(), expected);
    }

    #[test]
    fn pids_in_status() {
        check_status(
            "Name:\tPid: 3\nTgid:\t7\nNgid:\t5\nPid:\t7\nPPid:\t0\nTracerPid:\t0\nUid:\t1\t2\t3\t4\n",
            Some(
                "Name:\tPid: 3\nTgid:\t1007\nNgid:\t5\nPid:\t1007\nPPid:\t0\nTracerPid:\t0\nUid:\t1\t2\t3\t4\n",
            ),
        );
        check_status(
            "NSpid:\t7\t1\nNSsid:\t0\t0\n",
            Some("NSpid:\t1007\t1\nNSsid:\t0\t0\n"),
        );
        check_status("Pid:\n", None);
        check_status("Pid:\tx\n", None);
    }

    #[test]
    fn mounts_that_hide() {
        let mounts = |options: &str| {
            format!(
                "22 1 0:20 / /proc rw,nosuid - proc proc rw,hidepid=2\n23 1 0:21 / /sys rw - sysfs sysfs rw,hidepid=2\n24 1 0:22 / /proc rw shared:5 - proc none {options}\n"
            )
        };
        for (options, expected) in [
            ("rw", None),
            ("rw,hidepid=0", None),
            ("rw,hidepid=off,gid=5", None),
            ("rw,hidepid=1", Some(0)),
            ("rw,gid=7,hidepid=invisible", Some(7)),
        ] {
            assert_eq!(hidden(&mounts(options), "/proc"), expected, "{options}");
        }
        assert_eq!(hidden(&mounts("rw"), "/sys"), None);
        assert_eq!(hidden(&mounts("rw,hidepid=2"), "/elsewhere"), None);
    }

    #[test]
    fn a_silent_node() {
        let (stat, status) = of_silent_node(
            b"7 (a) b) S 1 7\n",
            b"Name:\tState:\nState:\tS (sleeping)\nTgid:\t7\n",
        );
        assert_eq!(stat, b"7 (a) b) D 1 7\n");
        assert_eq!(
            status,
            b"Name:\tState:\nState:\tD (its node does not answer)\nTgid:\t7\n"
        );
        let nothing = of_silent_node(b"", b"");
        assert_eq!(nothing, (vec![], vec![]));
    }

    #[test]
    fn facts() {
        let words = (3..=52).map(|field| field.to_string()).collect::<Vec<_>>();
        let stat = format!("7 (a) (b) {}\n", words.join(" "));
        assert_eq!(start_ticks(stat.as_bytes()), Some(22));
        assert_eq!(exit_status(stat.as_bytes()), None);
        let zombie = stat.replace(") 3 4", ") Z 4");
        assert_eq!(exit_status(zombie.as_bytes()), Some(52));
        assert_eq!(comm(stat.as_bytes()), Some(&b"a) (b"[..]));
        let status = b"Name:\tUid: 9\nTgid:\t12\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n";
        assert_eq!(owner(status), Some((2, 6)));
        assert_eq!(owner(b"Uid:\t1\n"), None);
        let credentials = |status: &[u8]| credentials(status).expect("there");
        let Credentials { users, groups, .. } = credentials(status);
        assert_eq!((users.real, users.saved, groups.real), (1, 3, 5));
        let capable = |set| {
            let status = format!("Uid:\t1 2 3 4\nGid:\t1 2 3 4\nCapPrm:\t{set}\n");
            credentials(status.as_bytes()).capable
        };
        assert_eq!(["0000", "0800", "000f"].map(capable), [false, true, true]);
        assert_eq!(group(b"7 (a) (b) S 6 9 8"), Some(9));
        assert_eq!(thread_group(status), Some(12));
        assert_eq!(running(b"0.10 0.20 0.30 4/512 9999\n"), Some(4));
        assert_eq!(running(b"0.10"), None);
        assert_eq!(
            number(b"MemTotal:  8 kB\nMemFree: 4 kB\n", b"MemFree:"),
            Some(4)
        );
    }
}
