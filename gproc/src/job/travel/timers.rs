//! Timers that CRIU leaves without their next time: a periodic timerfd that has run out and was not read. The kernel winds
//! such a one when it is read, if it has run out; a copy's has not, though it says how often it has.

use super::super::sys;
use super::pipes::members;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// What fdinfo says of a timer.
#[derive(Debug, PartialEq, Eq)]
struct Timer {
    /// How often it has run out since it was read.
    ticks: u64,
    is_wound: bool,
    interval: Duration,
}

impl Timer {
    /// A periodic timer that its program has stopped has never run out since.
    const fn has_stopped(&self) -> bool {
        self.ticks > 0 && !self.is_wound && !self.interval.is_zero()
    }

    fn of(info: &str) -> Option<Self> {
        let value = |name: &str| {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        let time = |name: &str| {
            let pair = value(name)?.strip_prefix('(')?.strip_suffix(')')?;
            let (seconds, nanos) = pair.split_once(", ")?;
            Some(Duration::new(seconds.parse().ok()?, nanos.parse().ok()?))
        };
        Some(Self {
            ticks: value("ticks")?.parse().ok()?,
            is_wound: !time("it_value")?.is_zero(),
            interval: time("it_interval")?,
        })
    }
}

/// Winds such timers of a copy that waits at its gate.
pub(super) fn wind(cgroup: &Path) -> io::Result<()> {
    for pid in members(cgroup, 0)?.into_iter().filter(|pid| *pid > 0) {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            if fs::read_link(entry.path())? != Path::new("anon_inode:[timerfd]") {
                continue;
            }
            let name = entry.file_name();
            let info = Path::new("/proc").join(pid.to_string()).join("fdinfo");
            let timer = Timer::of(&fs::read_to_string(info.join(&name))?);
            let number = name.to_str().and_then(|name| name.parse().ok());
            if let (Some(timer), Some(number)) = (timer.filter(Timer::has_stopped), number) {
                let process = crate::sys::pidfd_open(pid)?;
                let fd = sys::descriptor_of(process.as_fd(), number)?;
                sys::wind_timer(fd.as_fd(), timer.interval, timer.ticks)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_has_stopped_if_it_has_run_out_and_is_not_wound() {
        let check = |ticks: u64, value: &str, interval: &str, stopped: bool| {
            let info = format!(
                "pos:\t0\nflags:\t02\nclockid: 1\nticks: {ticks}\nsettime flags: 00\nit_value: {value}\nit_interval: {interval}\n"
            );
            let timer = Timer::of(&info).expect("a timer");
            assert_eq!(timer.has_stopped(), stopped, "{info}");
        };
        check(1, "(0, 0)", "(0, 1000000)", true);
        check(1, "(0, 0)", "(2, 0)", true);
        check(0, "(0, 0)", "(2, 0)", false);
        check(3, "(0, 7)", "(2, 0)", false);
        check(1, "(0, 0)", "(0, 0)", false);
        assert_eq!(Timer::of("eventfd-count: 3\n"), None);
    }
}
