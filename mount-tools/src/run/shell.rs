//! `glumake-sh`: what make runs instead of a shell. Runs the recipe as a job, in the shell the makefile wants.
//!
//! A recipe that runs make itself stays here: its sub-make shares the jobserver, whose descriptors cannot travel.
//! So does everything inside a job: a recipe that says `$(SHELL) script` is a job already.

use super::owner::{Command, name_of};
use super::signals::Signals;
use super::{end_as, give_up, socket, sys};
use gproc::job::protocol::Failure;
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

/// Runs `glumake-sh` with the arguments of this process, and ends it.
pub fn main() -> ! {
    let shell = std::env::var_os(SHELL_ENV).unwrap_or_else(|| SHELL_DEFAULT.into());
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let recipe = args.last().and_then(|arg| arg.to_str());
    if std::env::var_os(JOB_ENV).is_some() || recipe.is_some_and(runs_make) {
        let error = std::process::Command::new(&shell).args(args).exec();
        let why = format!("{}: {error}", shell.display());
        give_up(NAME, Failure::NotExecutable, &why);
    }
    let env = std::env::vars_os().map(|(name, value)| {
        let value = match name.to_str() {
            Some("MAKEFLAGS" | "MFLAGS") => without_jobserver(&value),
            _ => value,
        };
        (name, value)
    });
    let ignored = sys::ignored_signals();
    let argv = [shell].into_iter().chain(args).collect();
    let command = match Command::new(argv, env, ignored) {
        Ok(command) => command,
        Err(error) => give_up(
            NAME,
            Failure::Cluster,
            &format!("no working directory: {error}"),
        ),
    };
    match Signals::take_over(ignored, None) {
        Ok(signals) => end_as(NAME, command.run(&socket(), 0, &signals)),
        Err(error) => give_up(
            NAME,
            Failure::Cluster,
            &format!("cannot take signals: {error}"),
        ),
    }
}

/// Returns whether a recipe runs make as one of its commands.
fn runs_make(recipe: &str) -> bool {
    recipe.split(SEPARATORS).any(|command| {
        let mut words = command.split_whitespace().skip_while(|word| {
            let prefix = PREFIXES.contains(word) || word.starts_with('-');
            // Assignments, and what make takes off a recipe line itself.
            prefix || word.split_once('=').is_some_and(|(name, _)| is_name(name))
        });
        let program = words.next().unwrap_or_default();
        let program = program
            .trim_start_matches(['@', '+', '-'])
            .trim_matches(['"', '\'']);
        matches!(&*name_of(OsStr::new(program)), "make" | "gmake" | "glumake")
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
        assert_eq!(runs_make(recipe), local, "{recipe:?}");
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
