//! `glurun --rsh`: glurun for programs that want a remote shell, as Open MPI's mpirun, `rsync -e` and Git do.
//!
//! They call it as rsh(1) and ssh(1) are called, `[OPTIONS] HOST [COMMAND...]`, and leave it to the user's shell there to
//! make words of the command. A node is reached without keys, with this process's directory and environment.

use clap::Parser;
use std::ffi::{OsStr, OsString};

/// What glurun is told by.
const FLAG: &str = "--rsh";

/// Runs a command on a node by the user's shell there, as rsh and ssh do.
#[derive(Debug, Parser)]
#[command(name = "glurun --rsh")]
struct Call {
    /// The user, who can only be the one who calls.
    #[arg(short)]
    login: Option<String>,

    /// The command gets no input.
    #[arg(short)]
    no_input: bool,

    /// Nothing: there is no chatter to be silenced (-q), and no display or agent to be forwarded (-x, -a).
    #[arg(short, short_aliases = ['x', 'a'])]
    quiet: bool,

    /// The node: node3 or 3.
    host: String,

    /// What the shell is to run; a shell for this terminal if there is nothing.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Returns the command line of glurun that does what one of a remote shell wants; any other as it is.
///
/// # Errors
///
/// What is wrong with it.
pub(super) fn translated(
    line: Vec<OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<OsString>, clap::Error> {
    if line.get(1).is_none_or(|flag| flag != FLAG) {
        return Ok(line);
    }
    let call = Call::try_parse_from(&line[1..])?;
    let (user, host) = match call.host.split_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (call.login.as_deref(), &*call.host),
    };
    let own = ["USER", "LOGNAME"].map(&variable);
    if let Some(user) = user
        && !own.contains(&Some(user.into()))
    {
        let why = format!("a program runs as who starts it, not as {user}\n");
        return Err(clap::Error::raw(clap::error::ErrorKind::InvalidValue, why));
    }
    let shell = variable("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let mut glurun: Vec<OsString> = vec![line[0].clone(), "--nodes".into(), host.into()];
    if call.no_input {
        glurun.push("--input=none".into());
    }
    glurun.extend(["--".into(), shell]);
    if call.command.is_empty() {
        glurun.push("-l".into());
    } else {
        glurun.extend(["-c".into(), call.command.join(OsStr::new(" "))]);
    }
    Ok(glurun)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translate(line: &str) -> Result<String, String> {
        let line = line.split(' ').map(OsString::from).collect();
        let variable = |name: &str| match name {
            "USER" => Some("ann".into()),
            "SHELL" => Some("/bin/bash".into()),
            _ => None,
        };
        let translated = translated(line, variable).map_err(|error| error.to_string())?;
        let words = translated.iter().map(|word| word.to_string_lossy());
        Ok(words.collect::<Vec<_>>().join("|"))
    }

    #[test]
    fn a_remote_shell_is_a_job() {
        for (line, glurun) in [
            ("glurun ls --rsh", "glurun|ls|--rsh"),
            (
                "glurun --rsh node2 ls -l 'a b'",
                "glurun|--nodes|node2|--|/bin/bash|-c|ls -l 'a b'",
            ),
            // As mpirun, with a shell that is ssh by its name; and as rsync.
            (
                "glurun --rsh -x node3 orted -mca ess env",
                "glurun|--nodes|node3|--|/bin/bash|-c|orted -mca ess env",
            ),
            (
                "glurun --rsh -l ann 2 rsync --server . /x",
                "glurun|--nodes|2|--|/bin/bash|-c|rsync --server . /x",
            ),
            (
                "glurun --rsh -n ann@node2 true",
                "glurun|--nodes|node2|--input=none|--|/bin/bash|-c|true",
            ),
            ("glurun --rsh 2", "glurun|--nodes|2|--|/bin/bash|-l"),
        ] {
            assert_eq!(translate(line).as_deref(), Ok(glurun));
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (line, why) in [
            ("glurun --rsh bob@node2 ls", "not as bob"),
            ("glurun --rsh -l bob node2 ls", "not as bob"),
            ("glurun --rsh -L 80:x:80 node2", "-L"),
            ("glurun --rsh", "<HOST>"),
        ] {
            let said = translate(line).expect_err(line);
            assert!(said.contains(why), "{said}");
        }
    }
}
