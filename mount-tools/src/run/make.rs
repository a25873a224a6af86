//! `glumake`: GNU make, with all its options, whose recipes run on all nodes.
//!
//! make runs `glumake-sh` (which lies beside this program on every node) as its shell, and this program as its
//! sub-make. The shell that the makefile wants is found by reading it, since the command line's `SHELL` hides it from
//! make: an assignment of a plain name is honoured, one that has to be expanded counts as bash if it names bash.
//!
//! This process waits for make, shows on a terminal how far it is, and tells in the end how many recipes could not run in the
//! cluster and ran here; a sub-make leaves that to the first one.

use super::owner::nodes;
use super::progress::Progress;
use super::recipes::{Desk, EVENTS_ENV, Teller};
use super::shell::{JOB_ENV, SHELL_DEFAULT, SHELL_ENV};
use super::signals::Passed;
use super::{give_up, socket, sys};
use gproc::job::protocol::Failure;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

const NAME: &str = "glumake";

/// The shell for recipes, beside this program.
const SHELL: &str = "glumake-sh";

/// Makefiles that make looks for.
const MAKEFILES: [&str; 3] = ["GNUmakefile", "makefile", "Makefile"];

/// Runs `glumake` with the arguments of this process, and ends it.
pub fn main() -> ! {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let own = std::env::current_exe()
        .unwrap_or_else(|error| fail(&format!("cannot find {SHELL}: {error}")));
    let shell = own.with_file_name(SHELL);
    if !shell.exists() {
        fail(&format!("{} is missing", shell.display()));
    }
    // Asked for in any case: without the cluster nothing would run, so it is said once and now.
    let cores = cores().unwrap_or_else(|why| fail(&why));

    let line = Line::new(&args);
    let mut make = std::process::Command::new("make");
    let flags = std::env::var_os("MAKEFLAGS").unwrap_or_default();
    if !line.jobs && !flags_have_jobs(&flags) {
        make.arg(format!("-j{cores}"));
    }
    let wanted = line.shell.clone().unwrap_or_else(|| line.makefile_shell());
    let setting = |name: &str, path: &Path| {
        let mut setting = OsString::from(name);
        setting.push(path);
        setting
    };
    make.args(args)
        .arg(setting("SHELL=", &shell))
        .arg(setting("MAKE=", &own))
        .env(SHELL_ENV, wanted)
        // Inside a job this make is one of its own; its recipes are new jobs.
        .env_remove(JOB_ENV);
    if Teller::from_env().hears() {
        cannot_run(&make.exec());
    }
    let status = watch(&mut make).unwrap_or_else(|error| cannot_run(&error));
    match status.signal() {
        Some(signal) => sys::die_by(signal),
        None => std::process::exit(status.code().unwrap_or(1)),
    }
}

/// Runs make and waits for its end, with an ear for its recipes.
fn watch(make: &mut std::process::Command) -> io::Result<ExitStatus> {
    // No other thread may have got the signals by then.
    let signals = Passed::take_over()?;
    let mut progress = Progress::find();
    let desk = Desk::open(move |tally| {
        if let Some(progress) = &mut progress {
            progress.show(tally);
        }
    });
    let desk = desk.unwrap_or_else(|error| fail(&format!("no socket for recipes: {error}")));
    sys::dies_with_this_thread(make.env(EVENTS_ENV, desk.path()));
    let mut child = make.spawn()?;
    signals.pass_to(&child)?;
    let status = child.wait()?;
    let here = desk.close().here;
    if here > 0 {
        let recipes = if here == 1 { "recipe" } else { "recipes" };
        eprintln!("{NAME}: {here} {recipes} ran here, for faults of the cluster");
    }
    Ok(status)
}

fn cannot_run(error: &io::Error) -> ! {
    match error.kind() {
        io::ErrorKind::NotFound => give_up(NAME, Failure::NotFound, "GNU make is not here"),
        _ => give_up(NAME, Failure::NotExecutable, &format!("make: {error}")),
    }
}

fn fail(why: &str) -> ! {
    give_up(NAME, Failure::Cluster, why)
}

/// Returns the cores of all nodes that are up.
fn cores() -> Result<u32, String> {
    let nodes = nodes(&socket())??;
    let cores = nodes.iter().filter(|(_, up, _)| *up);
    let cores: u32 = cores.map(|(_, _, load)| load.cpus.min(1 << 16)).sum();
    Ok(cores.max(1))
}

/// What this program has to know of make's command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    /// The user says how many jobs.
    jobs: bool,
    /// The user sets SHELL.
    shell: Option<OsString>,
    /// Where make goes first.
    dirs: Vec<PathBuf>,
    makefiles: Vec<PathBuf>,
}

/// make's short options that take the next word, if nothing follows in the same one.
const WITH_VALUE: &str = "CEfIoW";

impl Line {
    fn new(args: &[OsString]) -> Self {
        let mut line = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy();
            if text == "--" {
                break;
            } else if let Some(long) = text.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(PathBuf::from(value))),
                    None => (long, None),
                };
                match name {
                    "jobs" => line.jobs = true,
                    "directory" => line.dirs.extend(value.or_else(|| next(&mut args))),
                    "file" | "makefile" => {
                        line.makefiles.extend(value.or_else(|| next(&mut args)));
                    }
                    _ => {}
                }
            } else if let Some(short) = text.strip_prefix('-') {
                line.take_short(short, &mut args);
            } else if let Some(shell) = text.strip_prefix("SHELL=") {
                line.shell = Some(shell.into());
            }
        }
        line
    }

    fn take_short<'a>(&mut self, word: &str, args: &mut impl Iterator<Item = &'a OsString>) {
        for (at, option) in word.char_indices() {
            match option {
                'j' => {
                    // What follows is its number, or a further option, none of which takes a value before it.
                    self.jobs = true;
                }
                _ if WITH_VALUE.contains(option) => {
                    let rest = &word[at + option.len_utf8()..];
                    let value = match rest {
                        "" => next(args),
                        rest => Some(PathBuf::from(rest)),
                    };
                    match option {
                        'C' => self.dirs.extend(value),
                        'f' => self.makefiles.extend(value),
                        _ => {}
                    }
                    return;
                }
                _ => {}
            }
        }
    }

    /// Returns the shell that the makefiles name.
    fn makefile_shell(&self) -> OsString {
        let dir: PathBuf = self.dirs.iter().collect();
        let files = if self.makefiles.is_empty() {
            let mut there = MAKEFILES.iter().map(|name| dir.join(name));
            there.find(|path| path.exists()).into_iter().collect()
        } else {
            let files = self.makefiles.iter();
            files.map(|file| dir.join(file)).collect::<Vec<_>>()
        };
        // A makefile that cannot be read is make's to complain about.
        let texts = files.iter().filter_map(|file| std::fs::read(file).ok());
        let mut shells = texts.filter_map(|text| shell_of(&String::from_utf8_lossy(&text)));
        shells
            .next_back()
            .unwrap_or_else(|| SHELL_DEFAULT.into())
            .into()
    }
}

fn next<'a>(args: &mut impl Iterator<Item = &'a OsString>) -> Option<PathBuf> {
    args.next().map(PathBuf::from)
}

/// Returns the shell that a makefile assigns last.
fn shell_of(makefile: &str) -> Option<String> {
    let mut assigned = makefile.lines().filter_map(|line| {
        let words = line.trim_start_matches(' ');
        let words = ["export ", "override "]
            .iter()
            .fold(words, |words, prefix| {
                words.strip_prefix(prefix).unwrap_or(words).trim_start()
            });
        let value = words.strip_prefix("SHELL")?.trim_start();
        let value = [":::=", "::=", ":=", "?=", "="]
            .iter()
            .find_map(|operator| value.strip_prefix(operator))?;
        let value = value.split('#').next().unwrap_or_default().trim();
        (!value.is_empty()).then_some(value)
    });
    let value = assigned.next_back()?;
    if value.contains('$') {
        value.contains("bash").then(|| "bash".into())
    } else {
        Some(value.into())
    }
}

/// Returns whether make's flags from the environment say how many jobs.
fn flags_have_jobs(flags: &OsStr) -> bool {
    let flags = flags.to_string_lossy();
    let options = flags.split(" -- ").next().unwrap_or_default();
    options.split(' ').enumerate().any(|(at, word)| {
        let bundle = at == 0 && !word.contains(['=', '-']) && word.contains('j');
        bundle || word.starts_with("-j") || word.starts_with("--jobs")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(args: &str, jobs: bool, shell: Option<&str>, dirs: &[&str], makefiles: &[&str]) {
        let args: Vec<_> = args.split_whitespace().map(OsString::from).collect();
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        let expected = Line {
            jobs,
            shell: shell.map(OsString::from),
            dirs: paths(dirs),
            makefiles: paths(makefiles),
        };
        assert_eq!(Line::new(&args), expected);
    }

    #[test]
    fn command_lines_of_make() {
        check("", false, None, &[], &[]);
        check("all V=1", false, None, &[], &[]);
        check("-j8", true, None, &[], &[]);
        check("-j 8 all", true, None, &[], &[]);
        check("-kj", true, None, &[], &[]);
        check("--jobs=4", true, None, &[], &[]);
        check("-C sub -Cdeeper", false, None, &["sub", "deeper"], &[]);
        check(
            "-kf x.mk --file=y.mk --makefile z.mk",
            false,
            None,
            &[],
            &["x.mk", "y.mk", "z.mk"],
        );
        check("-Ij -o j", false, None, &[], &[]);
        check("SHELL=/bin/bash", false, Some("/bin/bash"), &[], &[]);
        check("-- -j", false, None, &[], &[]);
    }

    #[track_caller]
    fn check_shell(makefile: &str, expected: Option<&str>) {
        assert_eq!(shell_of(makefile).as_deref(), expected);
    }

    #[test]
    fn shells_of_makefiles() {
        check_shell("all:\n\techo SHELL=no\n", None);
        check_shell("SHELL = /bin/bash\n", Some("/bin/bash"));
        check_shell("SHELL:=/bin/zsh # why\nall:\n", Some("/bin/zsh"));
        check_shell("export SHELL ?= bash", Some("bash"));
        check_shell("SHELL = a\noverride SHELL = b", Some("b"));
        check_shell("SHELL := $(shell which bash)", Some("bash"));
        check_shell("SHELL := $(FOO)", None);
        check_shell("SHELLS = x\n.SHELLFLAGS = -ec", None);
    }

    #[test]
    fn jobs_in_flags() {
        let check = |flags: &str, expected| {
            assert_eq!(flags_have_jobs(OsStr::new(flags)), expected, "{flags:?}");
        };
        check("", false);
        check("k", false);
        check("kw -j8 --jobserver-auth=3,4 -- CC=gcc", true);
        check(" -j", true);
        check("w -- X=-j", false);
        check("--no-print-directory", false);
    }
}
