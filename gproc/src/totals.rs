//! The files of procfs about the machine, for the cluster as one machine: a node's text each, in the order of nodes.
//!
//! Processors are numbered anew, one node's behind the other's; interfaces and disks have the node before their name
//! (`node2.eth0`). Everything else is added up. What a node's kernel does not have is left out.

use consistency::NodeId;
use std::collections::HashMap;
use std::fmt::Write;

/// What a node says.
pub(crate) type Share<'a> = (NodeId, &'a str);

/// Adds up `stat`. The boot is the earliest.
pub(crate) fn stat(shares: &[Share<'_>]) -> String {
    let mut out = sums("cpu", shares, usize::MAX);
    let mut cpu = 0;
    for (_, text) in shares {
        for line in lines_of(text, |key| key.starts_with("cpu") && key != "cpu") {
            let (_, rest) = line.split_once(' ').unwrap_or((line, ""));
            say(&mut out, format_args!("cpu{cpu} {rest}"));
            cpu += 1;
        }
    }
    // Behind the first number of interrupts is one for each of the machine's.
    out += &sums("intr", shares, 1);
    out += &sums("ctxt", shares, 1);
    let boots = shares.iter().filter_map(|(_, text)| {
        let line = lines_of(text, |key| key == "btime").next()?;
        numbers(line).next()
    });
    if let Some(boot) = boots.min() {
        say(&mut out, format_args!("btime {boot}"));
    }
    for key in ["processes", "procs_running", "procs_blocked"] {
        out += &sums(key, shares, 1);
    }
    out + &sums("softirq", shares, usize::MAX)
}

/// Adds up `loadavg`; the youngest pid is that of the last share.
pub(crate) fn loadavg(shares: &[Share<'_>]) -> String {
    let (mut loads, mut running, mut tasks, mut last) = ([0.0; 3], 0_u64, 0_u64, "0");
    for (_, text) in shares {
        let mut words = text.split_whitespace();
        for load in &mut loads {
            *load += words
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0.0);
        }
        let counts = words.next().and_then(|counts| counts.split_once('/'));
        let (some, all) = counts.unwrap_or_default();
        running += some.parse().unwrap_or(0);
        tasks += all.parse().unwrap_or(0);
        last = words.next().unwrap_or(last);
    }
    let [one, five, fifteen]: [f64; 3] = loads;
    format!("{one:.2} {five:.2} {fifteen:.2} {running}/{tasks} {last}\n")
}

/// Up as long as the first node to boot; idle as long as all processors together.
pub(crate) fn uptime(shares: &[Share<'_>]) -> String {
    let (mut up, mut idle) = (0.0_f64, 0.0);
    for (_, text) in shares {
        let mut words = text
            .split_whitespace()
            .map(|word| word.parse().unwrap_or(0.0));
        up = up.max(words.next().unwrap_or(0.0));
        idle += words.next().unwrap_or(0.0);
    }
    format!("{up:.2} {idle:.2}\n")
}

/// Adds up `meminfo`, but for the size of a huge page.
pub(crate) fn meminfo(shares: &[Share<'_>]) -> String {
    let mut out = String::new();
    for (key, sum, unit) in sums_of_lines(shares) {
        let unit = if unit.is_empty() { "" } else { " kB" };
        let key_and_space = format!("{key} ");
        say(&mut out, format_args!("{key_and_space:<16}{sum:>8}{unit}"));
    }
    out
}

/// Adds up `vmstat`.
pub(crate) fn vmstat(shares: &[Share<'_>]) -> String {
    let mut out = String::new();
    for (key, sum, _) in sums_of_lines(shares) {
        say(&mut out, format_args!("{key} {sum}"));
    }
    out
}

/// All processors, numbered anew.
pub(crate) fn cpuinfo(shares: &[Share<'_>]) -> String {
    let (mut out, mut cpu) = (String::new(), 0);
    for (_, text) in shares {
        for line in text.lines() {
            if line.starts_with("processor\t") {
                say(&mut out, format_args!("processor\t: {cpu}"));
                cpu += 1;
            } else {
                say(&mut out, format_args!("{line}"));
            }
        }
    }
    out
}

/// All disks.
pub(crate) fn diskstats(shares: &[Share<'_>]) -> String {
    let mut out = String::new();
    for (node, text) in shares {
        for line in text.lines() {
            // Major and minor number come first.
            let name = line
                .split_whitespace()
                .nth(2)
                .and_then(|name| line.find(&format!(" {name} ")));
            if let Some(at) = name {
                let (numbers, rest) = line.split_at(at + 1);
                say(&mut out, format_args!("{numbers}node{node}.{rest}"));
            }
        }
    }
    out
}

/// All interfaces.
pub(crate) fn net_dev(shares: &[Share<'_>]) -> String {
    let mut out = String::new();
    for line in shares
        .first()
        .into_iter()
        .flat_map(|(_, text)| text.lines().take(2))
    {
        say(&mut out, format_args!("{line}"));
    }
    for (node, text) in shares {
        for line in text.lines().skip(2) {
            say(&mut out, format_args!("node{node}.{}", line.trim_start()));
        }
    }
    out
}

fn say(out: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("writing to a string succeeds");
}

fn lines_of(text: &str, key: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
    let found = move |line: &&str| key(line.split(' ').next().unwrap_or_default());
    text.lines().filter(found)
}

/// Returns the numbers behind the key of a line.
fn numbers(line: &str) -> impl Iterator<Item = u64> {
    let words = line.split_whitespace().skip(1);
    words.map(|word| word.parse().unwrap_or(0))
}

/// Adds up the first `count` numbers of the lines with a key, column by column.
fn sums(key: &str, shares: &[Share<'_>], count: usize) -> String {
    let mut sums = Vec::<u64>::new();
    for (_, text) in shares {
        for line in lines_of(text, |found| found == key) {
            for (at, number) in numbers(line).take(count).enumerate() {
                match sums.get_mut(at) {
                    Some(sum) => *sum = sum.saturating_add(number),
                    None => sums.push(number),
                }
            }
        }
    }
    if sums.is_empty() {
        return String::new();
    }
    // As in the kernel's file the line of all processors has a second blank.
    let mut line = String::from(if key == "cpu" { "cpu " } else { key });
    for sum in sums {
        write!(line, " {sum}").expect("writing to a string succeeds");
    }
    line + "\n"
}

/// Adds up lines of a key, a number and maybe a unit, in the order they are first seen.
fn sums_of_lines<'a>(shares: &[Share<'a>]) -> Vec<(&'a str, u64, &'a str)> {
    let mut sums = Vec::<(&str, u64, &str)>::new();
    let mut places = HashMap::new();
    for line in shares.iter().flat_map(|(_, text)| text.lines()) {
        let mut words = line.split_whitespace();
        let (Some(key), Some(Ok(number))) = (words.next(), words.next().map(str::parse)) else {
            continue;
        };
        let place = *places.entry(key).or_insert(sums.len());
        match sums.get_mut(place) {
            Some(_) if key == "Hugepagesize:" => {}
            Some((_, sum, _)) => *sum = u64::saturating_add(*sum, number),
            None => sums.push((key, number, words.next().unwrap_or_default())),
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NodeId = NodeId(1);
    const TWO: NodeId = NodeId(2);

    #[test]
    fn processors_are_numbered_anew() {
        let one = "cpu  10 1 2\ncpu0 4 0 1\ncpu3 6 1 1\nintr 7 1 1\nctxt 5\nbtime 100\nprocesses 9\nprocs_running 1\nprocs_blocked 0\nsoftirq 3 1 2\n";
        let two = "cpu  1 1 1\ncpu0 1 1 1\nintr 3\nctxt 1\nbtime 90\nprocesses 1\nprocs_running 2\nprocs_blocked 1\nsoftirq 1 1 0\n";
        assert_eq!(
            stat(&[(ONE, one), (TWO, two)]),
            "cpu  11 2 3\ncpu0 4 0 1\ncpu1 6 1 1\ncpu2 1 1 1\nintr 10\nctxt 6\nbtime 90\nprocesses 10\nprocs_running 3\nprocs_blocked 1\nsoftirq 4 2 2\n"
        );
        let cpus = "processor\t: 0\nmodel\t: x\n\nprocessor\t: 1\nmodel\t: x\n\n";
        assert_eq!(
            cpuinfo(&[(ONE, cpus), (TWO, "processor\t: 0\n")]),
            "processor\t: 0\nmodel\t: x\n\nprocessor\t: 1\nmodel\t: x\n\nprocessor\t: 2\n"
        );
    }

    #[test]
    fn loads_and_times() {
        let shares = [
            (ONE, "0.10 0.20 0.30 1/20 77\n"),
            (TWO, "1.00 0.05 0.00 2/30 99\n"),
        ];
        assert_eq!(loadavg(&shares), "1.10 0.25 0.30 3/50 99\n");
        let shares = [(ONE, "100.50 30.00\n"), (TWO, "7.00 6.25\n")];
        assert_eq!(uptime(&shares), "100.50 36.25\n");
    }

    #[test]
    fn memory() {
        let one = "MemTotal:           1000 kB\nMemFree:          100 kB\nHugePages_Total:       1\nHugepagesize:       2048 kB\n";
        let two = "MemTotal:        500 kB\nMemFree:          11 kB\nHugepagesize:       2048 kB\nOther: 3 kB\n";
        assert_eq!(
            meminfo(&[(ONE, one), (TWO, two)]),
            "MemTotal:           1500 kB\nMemFree:             111 kB\nHugePages_Total:        1\nHugepagesize:       2048 kB\nOther:                 3 kB\n"
        );
        assert_eq!(meminfo(&[(ONE, one)]).lines().next(), one.lines().next());
        let shares = [(ONE, "pgpgin 5\nnr_x 1\n"), (TWO, "pgpgin 6\n")];
        assert_eq!(vmstat(&shares), "pgpgin 11\nnr_x 1\n");
    }

    #[test]
    fn names_of_devices_tell_the_node() {
        let one = "   8       0 sda 1 2 3\n";
        let two = "   8       0 sda 4 5 6\n   8       1 sda1 4 5 6\n";
        assert_eq!(
            diskstats(&[(ONE, one), (TWO, two)]),
            "   8       0 node1.sda 1 2 3\n   8       0 node2.sda 4 5 6\n   8       1 node2.sda1 4 5 6\n"
        );
        let one = "Inter-|\n face |\n  eth0: 1 2\n";
        let two = "Inter-|\n face |\n    lo: 3 4\n";
        assert_eq!(
            net_dev(&[(ONE, one), (TWO, two)]),
            "Inter-|\n face |\nnode1.eth0: 1 2\nnode2.lo: 3 4\n"
        );
    }

    #[test]
    fn what_makes_no_sense_adds_nothing() {
        let shares = [
            (ONE, "\n\0 x\ncpu\ncpu0\nintr x\n 18446744073709551615\n"),
            (TWO, ""),
        ];
        for total in [
            stat, loadavg, uptime, meminfo, vmstat, cpuinfo, diskstats, net_dev,
        ] {
            total(&shares);
            assert!(total(&[]).lines().count() <= 1);
        }
        let big = "x 18446744073709551615\n";
        assert_eq!(vmstat(&[(ONE, big), (TWO, big)]), big);
    }
}
