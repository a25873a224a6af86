//! `glumake-sh`: what make runs instead of a shell. Runs the recipe as a job, in the shell the makefile wants.
//!
//! Some recipes stay here ([`stays`]): those that share make's jobserver, whose descriptors cannot travel (a sub-make's own
//! recipes are jobs again), those that the makefile or its user wants here, and everything inside a job: a recipe that says
//! `$(SHELL) script` is a job already. A recipe that could not run in the cluster runs here, once its copy there, if there was
//! one, cannot run any more; the fault is told, and counted by `glumake`.

use super::owner::{Command, name_of};
use super::recipes::{EVENTS_ENV, Event, Teller};
use super::signals::Signals;
use super::{end_as, give_up, socket, sys};
use gproc::job::protocol::{End, Failure, GONE_AFTER};
use nix::sys::signal::SigSet;
use nix::sys::stat::{SFlag, fstat};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;

/// The shell that the makefile wants, set by `glumake`.
pub(super) const SHELL_ENV: &str = "GLUMAKE_SHELL";

/// The shell of make unless the makefile names another.
pub(super) const SHELL_DEFAULT: &str = "/bin/sh";

/// Set inside a job.
pub(super) const JOB_ENV: &str = "GLU_VNN";

const NAME: &str = "glumake";

/// Characters and words after which a shell expects a command.
const SEPARATORS: [char; 9] = [';', '&', '|', '(', ')', '`', '{', '}', '\n'];
const PREFIXES: [&str; 14] = [
    "!", "if", "then", "else", "elif", "while", "until", "do", "time", "exec", "command", "env",
    "nice", "nohup",
];

/// What stays here by its makefile or user: names of commands, or `*`.
const LOCAL_ENV: &str = "GLUMAKE_LOCAL";

/// Programs that run make's recipes, or share its jobserver.
const MAKES: [&str; 3] = ["make", "gmake", "glumake"];
const SHARES: [&str; 3] = ["cargo", "cmake", "ninja"];

/// Runs `glumake-sh` with the arguments of this process, and ends it.
pub fn main() -> ! {
    let shell = std::env::var_os(SHELL_ENV).unwrap_or_else(|| SHELL_DEFAULT.into());
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let recipe = args.last().and_then(|arg| arg.to_str()).unwrap_or_default();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let flags = variable("MAKEFLAGS");
    if std::env::var_os(JOB_ENV).is_some()
        || shares_jobserver(&flags, is_pipe)
        || stays(recipe, &variable(LOCAL_ENV), flags.contains("--jobserver-"))
    {
        become_shell(&shell, &args);
    }
    let teller = Teller::from_env();
    let own = std::process::id();
    let env = std::env::vars_os().filter(|(name, _)| name != EVENTS_ENV);
    let env = env.map(|(name, value)| {
        let value = match name.to_str() {
            Some("MAKEFLAGS" | "MFLAGS") => without_jobserver(&value),
            _ => value,
        };
        (name, value)
    });
    let ignored = sys::ignored_signals();
    let argv = [shell.clone()].into_iter().chain(args.clone()).collect();
    let command = match Command::new(argv, env, ignored) {
        Ok(command) => command,
        Err(error) => give_up(
            NAME,
            Failure::Cluster,
            &format!("no working directory: {error}"),
        ),
    };
    let signals = Signals::take_over(ignored, None);
    let signals = signals.unwrap_or_else(|error| {
        give_up(
            NAME,
            Failure::Cluster,
            &format!("cannot take signals: {error}"),
        )
    });
    let runs = |node| teller.tell(Event::Runs(own, node));
    let (end, may_run) = command.run_told(&socket(), &signals, &runs);
    let End::Failed { kind, message } = end else {
        teller.tell(Event::Ended(own));
        end_as(NAME, end)
    };
    teller.tell(Event::Here(own));
    // From here on a signal does what it does to any program.
    SigSet::all().thread_unblock().ok();
    let first_line = recipe.lines().next().unwrap_or_default();
    if kind == Failure::Cluster && may_run {
        let wait = GONE_AFTER.as_secs();
        eprintln!("{NAME}: {message}; here in {wait} s: {first_line}");
        std::thread::sleep(GONE_AFTER);
    } else {
        eprintln!("{NAME}: {message}; here: {first_line}");
    }
    become_shell(&shell, &args)
}

fn become_shell(shell: &OsStr, args: &[OsString]) -> ! {
    let error = std::process::Command::new(shell).args(args).exec();
    let why = format!("{}: {error}", shell.display());
    give_up(NAME, Failure::NotExecutable, &why)
}

/// Returns whether make has given its jobserver to this recipe: to those that it takes for a make (`+`, `$(MAKE)`), unless it
/// has one that all can open by a name (GNU make 4.4).
fn shares_jobserver(flags: &str, is_pipe: impl Fn(i32) -> bool) -> bool {
    let options = flags.split(" -- ").next().unwrap_or_default();
    let prefixes = ["--jobserver-auth=", "--jobserver-fds="];
    let servers = prefixes.map(|prefix| {
        options
            .split(' ')
            .rev()
            .find_map(|word| word.strip_prefix(prefix))
    });
    let pair = servers
        .into_iter()
        .flatten()
        .find_map(|server| server.split_once(','));
    pair.is_some_and(|(read, write)| {
        let both = [read, write].map(str::parse);
        both.into_iter().all(|number| number.is_ok_and(&is_pipe))
    })
}

fn is_pipe(number: i32) -> bool {
    if number <= libc::STDERR_FILENO {
        return false;
    }
    sys::inherited(number).is_some_and(|fd| {
        fstat(fd).is_ok_and(|stat| stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits())
    })
}

/// Returns whether a recipe stays on its node: one of its commands is in `local`, or is make, or uses a jobserver that is there.
fn stays(recipe: &str, local: &str, jobserver: bool) -> bool {
    let local: Vec<&str> = local.split_whitespace().collect();
    let shares = if jobserver { &SHARES[..] } else { &[] };
    local.contains(&"*")
        || commands(recipe).any(|name| {
            let name = &*name;
            MAKES.contains(&name) || shares.contains(&name) || local.contains(&name)
        })
}

/// Returns the names of the programs that a recipe runs, as far as its text tells.
fn commands(recipe: &str) -> impl Iterator<Item = String> {
    recipe.split(SEPARATORS).map(|command| {
        let mut words = command.split_whitespace().skip_while(|word| {
            let prefix = PREFIXES.contains(word) || word.starts_with('-');
            // Assignments, and what make takes off a recipe line itself.
            prefix || word.split_once('=').is_some_and(|(name, _)| is_name(name))
        });
        let program = words.next().unwrap_or_default();
        let program = program
            .trim_start_matches(['@', '+', '-'])
            .trim_matches(['"', '\'']);
        name_of(OsStr::new(program))
    })
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Returns make's flags without the jobserver and the number of jobs, of which nothing is there on another node.
fn without_jobserver(flags: &OsStr) -> OsString {
    let Some(text) = flags.to_str() else {
        return flags.to_owned();
    };
    // Variables follow after ` -- `; they are none of ours.
    let (options, rest) = match text.find(" -- ") {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let jobs = |word: &&str| {
        word.starts_with("--jobserver-")
            || word
                .strip_prefix("-j")
                .is_some_and(|count| count.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let kept: Vec<_> = options.split(' ').filter(|word| !jobs(word)).collect();
    (kept.join(" ") + rest).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(recipe: &str, local: bool) {
        assert_eq!(stays(recipe, "", false), local, "{recipe:?}");
    }

    #[test]
    fn recipes_that_run_make_stay_here() {
        check("make -C sub", true);
        check("/usr/bin/make -C sub all", true);
        check("cd sub && gmake", true);
        check("/opt/glu/bin/glumake -C sub", true);
        check("for d in a b; do make -C $d || exit 1; done", true);
        check("CC=gcc V=1 make", true);
        check("if test -d x; then make -C x; fi", true);
        check("(cd x; 'make' y)", true);
        check("test -f x ||\\\n make x", true);
        check("env A=1 nice -n5 make x", true);
        check("gcc -o make make.c", false);
        check("echo make", false);
        check("cmake --build .", false);
        check("./make.sh", false);
        check("rm -f make", false);
        check("", false);
    }

    #[test]
    fn recipes_that_are_wanted_here_stay() {
        let check = |recipe, local, jobserver, expected| {
            assert_eq!(
                stays(recipe, local, jobserver),
                expected,
                "{recipe:?} {local:?}"
            );
        };
        check("install -m 755 a b", "docker install", false, true);
        check("cc -c install.c", "docker install", false, false);
        check(
            "cd x && /usr/bin/docker build .",
            "docker install",
            false,
            true,
        );
        check("cc -c a.c", "*", false, true);
        check("cargo build", "", false, false);
        check("cargo build", "", true, true);
        check("cd x && ninja", "", true, true);
    }

    #[test]
    fn a_jobserver_that_is_there_is_shared() {
        let check = |flags, open: &[i32], expected| {
            let shares = shares_jobserver(flags, |number| open.contains(&number));
            assert_eq!(shares, expected, "{flags:?} {open:?}");
        };
        check("k -j8 --jobserver-auth=3,4 -- X=1", &[3, 4], true);
        check("k -j8 --jobserver-auth=3,4", &[], false);
        check("k -j8 --jobserver-auth=3,4", &[4], false);
        check("-j8 --jobserver-fds=5,6", &[5, 6], true);
        check("k -- X=--jobserver-auth=3,4", &[3, 4], false);
        check("-j8 --jobserver-auth=fifo:/tmp/x", &[3, 4], false);
        check("", &[], false);
    }

    #[track_caller]
    fn check_flags(flags: &str, expected: &str) {
        assert_eq!(without_jobserver(OsStr::new(flags)), expected);
    }

    #[test]
    fn the_jobserver_does_not_travel() {
        check_flags("", "");
        check_flags("k", "k");
        check_flags("k -j8 --jobserver-auth=3,4 -- CC=gcc", "k -- CC=gcc");
        check_flags(" -j --jobserver-auth=fifo:/tmp/x", "");
        check_flags(
            "w -j8 --jobserver-fds=3,4 -- X=--jobserver-auth=1",
            "w -- X=--jobserver-auth=1",
        );
    }
}
