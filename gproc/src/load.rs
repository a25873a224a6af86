//! How loaded a node is.

use crate::level::demand::Gauge;
use crate::text;
use consistency::wire::node::NodeLoad;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// The shortest time that processor use is averaged over.
pub const WINDOW_MIN: Duration = Duration::from_secs(1);
/// Steps of the speed measurement that the reference core (3 GHz) makes in a millisecond.
const REFERENCE_STEPS_PER_MS: u64 = 500_000;
/// Speeds closer than this are the same: a measurement is not more exact.
const SPEED_STEP: u32 = 100;

/// The pid namespace of the machine, as its link in `ns` has it.
const MACHINE: &str = "pid:[4026531836]";

/// Measures this node's load; cheap enough for each report (four small files of procfs; in a pid namespace, a file for
/// each thread, once in [`WINDOW_MIN`]). Blocks.
#[must_use]
pub fn measure() -> NodeLoad {
    static METER: LazyLock<Meter> = LazyLock::new(|| Meter::new(Path::new("/proc")));
    METER.measure()
}

/// Returns the load as `/cluster/proc/cluster/node<N>/load` shows it: 100 when each core of reference speed has one
/// process to run.
#[must_use]
pub fn standard(load: &NodeLoad) -> u64 {
    let (cpus, speed) = (f64::from(load.cpus.max(1)), f64::from(load.speed.max(1)));
    let standard = f64::from(load.runnable) * 100.0 * 1000.0 / speed / cpus;
    // A peer may send any bits; the cast saturates and makes no number 0.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rounded = standard.round() as u64;
    rounded
}

/// Returns how much of its processors a node uses, in percent.
#[must_use]
pub fn utilization(load: &NodeLoad) -> u64 {
    let cpus = f64::from(load.cpus.max(1));
    let percent = (f64::from(load.runnable) / cpus).clamp(0.0, 1.0) * 100.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rounded = percent.round() as u64;
    rounded
}

/// Measures load out of a procfs, averaging between the calls.
#[derive(Debug)]
pub struct Meter {
    proc_path: PathBuf,
    speed: u32,
    window: Mutex<Window>,
    /// In a pid namespace of its own a node is not all of the machine: it is only what its own processes want.
    own: Option<Mutex<Gauge>>,
}

/// Readings of the processors' clock, older and newer; the older one is what use is measured against, the newer one
/// takes its place when it is [`WINDOW_MIN`] old. Frequent calls so still average over a second or two.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    base: Option<Reading>,
    next: Option<Reading>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    /// Ticks since boot that all cores together were busy, and idle.
    busy: u64,
    idle: u64,
}

impl Meter {
    /// Starts measuring; takes a few milliseconds, in which it finds the speed of a core.
    #[must_use]
    pub fn new(proc_path: &Path) -> Self {
        static SPEED: LazyLock<u32> = LazyLock::new(speed);
        let meter = Self {
            proc_path: proc_path.into(),
            speed: *SPEED,
            window: Mutex::default(),
            own: is_in_namespace(proc_path).then(Mutex::default),
        };
        meter.busy_cores();
        meter.of_own_processes();
        meter
    }

    /// Measures. What cannot be read counts as nothing to run, or no memory.
    #[must_use]
    pub fn measure(&self) -> NodeLoad {
        let cpus = cpus();
        let runnable = match self.of_own_processes() {
            #[expect(clippy::cast_possible_truncation, reason = "an average")]
            Some(runnable) => runnable as f32,
            None => self.of_machine(cpus),
        };
        let meminfo = self.read("meminfo");
        NodeLoad {
            runnable,
            guests: 0,
            cpus,
            speed: self.speed,
            mem_total_kib: text::number(&meminfo, b"MemTotal:").unwrap_or(0),
            mem_available_kib: text::number(&meminfo, b"MemAvailable:").unwrap_or(0),
        }
    }

    fn of_own_processes(&self) -> Option<f64> {
        let mut own = self.own.as_ref()?.lock().expect("no holder panics");
        own.measure(WINDOW_MIN, &self.proc_path, || {
            let entries = std::fs::read_dir(&self.proc_path).ok()?.flatten();
            Some(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
        })
    }

    fn of_machine(&self, cpus: u32) -> f32 {
        // The caller itself runs just now.
        let running =
            text::running(&self.read("loadavg")).map_or(0, |running| running.saturating_sub(1));
        // The cores' clocks tell exactly how many processes ran on the average; those that had to wait are seen
        // only at this instant.
        let waiting = running.saturating_sub(cpus);
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
        let runnable = self
            .busy_cores()
            .unwrap_or_else(|| f64::from(running.min(cpus))) as f32
            + waiting as f32;
        runnable
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.proc_path.join(name)).unwrap_or_default()
    }

    /// Returns how many cores were busy on the average of the window; `None` without one.
    fn busy_cores(&self) -> Option<f64> {
        let stat = self.read("stat");
        let (busy, idle) = ticks(&stat)?;
        let now = Reading {
            at: Instant::now(),
            busy,
            idle,
        };
        let base = self.window.lock().expect("no holder panics").pass(now)?;
        let cores = stat
            .split(|&byte| byte == b'\n')
            .filter(|line| line.starts_with(b"cpu"))
            .count()
            .saturating_sub(1);
        let busy = busy.checked_sub(base.busy)?;
        let all = busy + idle.checked_sub(base.idle)?;
        #[allow(clippy::cast_precision_loss)]
        (all > 0).then(|| busy as f64 / all as f64 * cores as f64)
    }
}

impl Window {
    /// Takes a reading and returns the one to compare it with.
    fn pass(&mut self, now: Reading) -> Option<Reading> {
        let next = *self.next.get_or_insert(now);
        if now.at.duration_since(next.at) >= WINDOW_MIN {
            self.base = Some(next);
            self.next = Some(now);
        }
        self.base
    }
}

/// Returns whether a procfs is that of this process, which is in a pid namespace.
fn is_in_namespace(proc_path: &Path) -> bool {
    let namespace = std::fs::read_link("/proc/self/ns/pid");
    proc_path == Path::new("/proc") && namespace.is_ok_and(|link| link != Path::new(MACHINE))
}

/// Returns the busy and idle ticks of all cores in `/proc/stat`.
fn ticks(stat: &[u8]) -> Option<(u64, u64)> {
    let line = stat.split(|&byte| byte == b'\n').next()?;
    let words = std::str::from_utf8(line.strip_prefix(b"cpu ")?).ok()?;
    let words = words.split_whitespace().map(str::parse);
    let ticks = words.collect::<Result<Vec<u64>, _>>().ok()?;
    // user nice system idle iowait irq softirq steal; guest time is in user already.
    let [user, nice, system, idle, iowait, irq, softirq, ..] = ticks[..] else {
        return None;
    };
    Some((user + nice + system + irq + softirq, idle + iowait))
}

/// Returns how many cores this process may use.
fn cpus() -> u32 {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let used = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    let count = (0..CpuSet::count()).filter(used).count();
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

/// Measures the speed of a core, 1000 for the reference: the best of five short runs, since others may run meanwhile.
fn speed() -> u32 {
    let steps = REFERENCE_STEPS_PER_MS / 4;
    let run = || {
        let begun = Instant::now();
        let mut state = 88_172_645_463_325_252_u64;
        for _ in 0..steps {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        black_box(state);
        begun.elapsed()
    };
    let best = (0..5).map(|_| run()).min().expect("five runs");
    let micros = u32::try_from(best.as_micros()).unwrap_or(u32::MAX).max(1);
    let speed = 250_000 / micros;
    ((speed + SPEED_STEP / 2) / SPEED_STEP * SPEED_STEP).max(SPEED_STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_standard(runnable: f32, cpus: u32, speed: u32, expected: u64) {
        let load = NodeLoad {
            runnable,
            cpus,
            speed,
            ..NodeLoad::default()
        };
        assert_eq!(standard(&load), expected);
    }

    #[test]
    fn standard_load() {
        check_standard(0.0, 2, 1000, 0);
        check_standard(2.0, 2, 1000, 100);
        check_standard(3.0, 2, 2000, 75);
        check_standard(1.0, 0, 0, 100_000);
        check_standard(f32::NAN, 1, 1000, 0);
        check_standard(-1.0, 1, 1000, 0);
        check_standard(f32::INFINITY, 1, 1000, u64::MAX);
        let used = [(0.5, 2), (7.0, 2), (f32::NAN, 1), (1.0, 0)].map(|(runnable, cpus)| {
            utilization(&NodeLoad {
                runnable,
                cpus,
                ..NodeLoad::default()
            })
        });
        assert_eq!(used, [25, 100, 0, 100]);
    }

    #[test]
    fn the_window_is_at_least_a_second() {
        let mut window = Window::default();
        let start = Instant::now();
        let mut pass = |ms: u64| {
            let now = Reading {
                at: start + Duration::from_millis(ms),
                busy: ms,
                idle: 0,
            };
            window.pass(now).map(|base| base.busy)
        };
        let seen = [0, 500, 1000, 1500, 2000, 9000].map(&mut pass);
        assert_eq!(seen, [None, None, Some(0), Some(0), Some(1000), Some(2000)]);
    }

    #[test]
    fn files_of_procfs() {
        let proc = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            std::fs::write(proc.path().join(name), text).expect("written");
        };
        let meter = Meter::new(proc.path());
        let none = meter.measure();
        assert_eq!((none.runnable, none.mem_total_kib), (0.0, 0));
        write("loadavg", "0.0 0.0 0.0 2/90 1\n");
        write(
            "meminfo",
            "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 600 kB\n",
        );
        write(
            "stat",
            "cpu  10 0 10 80 0 0 0 0 0 0\ncpu0 10 0 10 80 0 0 0\n",
        );
        let load = meter.measure();
        assert_eq!((load.mem_total_kib, load.mem_available_kib), (1000, 600));
        assert_eq!(load.runnable, 1.0);
        assert!(load.cpus >= 1 && load.speed >= 100);
        let ran = Window {
            base: Some(Reading {
                at: Instant::now(),
                busy: 10,
                idle: 20,
            }),
            next: None,
        };
        *meter.window.lock().expect("free") = ran;
        let ahead = meter.measure().runnable;
        assert!((ahead - 10.0 / 70.0).abs() < 1e-6, "{ahead}");
    }

    #[test]
    fn measuring_is_cheap() {
        let meter = Meter::new(Path::new("/proc"));
        let time = || {
            let begun = Instant::now();
            black_box(meter.measure());
            begun.elapsed()
        };
        let best = (0..50).map(|_| time()).min().expect("some runs");
        println!("load measured in {best:?}");
        assert!(best < Duration::from_millis(5), "{best:?}");
    }
}
