//! The options of a mount, as mount(8) and /etc/fstab write them.

use super::sys::Attributes;
use crate::daemon::SOCKET_DEFAULT;
use std::path::{Path, PathBuf};

/// Options that set and clear flags of a mount: the name, what it clears, what it sets then. Of two that contradict
/// each other the later one counts.
const FLAGS: [(&str, u64, u64); 13] = [
    ("ro", 0, libc::MOUNT_ATTR_RDONLY),
    ("rw", libc::MOUNT_ATTR_RDONLY, 0),
    ("nosuid", 0, libc::MOUNT_ATTR_NOSUID),
    ("allow_suid", libc::MOUNT_ATTR_NOSUID, 0),
    ("nodev", 0, libc::MOUNT_ATTR_NODEV),
    ("allow_dev", libc::MOUNT_ATTR_NODEV, 0),
    ("noexec", 0, libc::MOUNT_ATTR_NOEXEC),
    ("exec", libc::MOUNT_ATTR_NOEXEC, 0),
    ("noatime", libc::MOUNT_ATTR__ATIME, libc::MOUNT_ATTR_NOATIME),
    ("relatime", libc::MOUNT_ATTR__ATIME, 0),
    (
        "strictatime",
        libc::MOUNT_ATTR__ATIME,
        libc::MOUNT_ATTR_STRICTATIME,
    ),
    ("nodiratime", 0, libc::MOUNT_ATTR_NODIRATIME),
    ("diratime", libc::MOUNT_ATTR_NODIRATIME, 0),
];
/// All of them: a new mount inherits none.
const ALL: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR__ATIME
    | libc::MOUNT_ATTR_NODIRATIME;
/// Given unless the opposite is asked for.
const DEFAULTS: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
/// For whoever reads /etc/fstab.
const NOT_OURS: [&str; 6] = ["defaults", "_netdev", "nofail", "auto", "noauto", "nouser"];
const NOT_OURS_PREFIXES: [&str; 3] = ["x-", "X-", "comment="];
/// What mount(8) finds in the table of mounts and repeats in a remount.
const OF_THE_TREE: [&str; 5] = [
    "user_id",
    "group_id",
    "default_permissions",
    "allow_other",
    "max_read",
];
const KNOWN: &str = "ro rw nosuid allow_suid nodev allow_dev noexec exec noatime relatime strictatime nodiratime diratime hard soft \
    timeo=TENTHS socket=PATH remount, and for fstab _netdev nofail auto noauto defaults x-...";

/// What a mount is to be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) remount: bool,
    socket: Option<PathBuf>,
    flags: Attributes,
    hard: Option<bool>,
    /// Tenths of a second.
    timeo: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BadOption {
    #[error("unknown option {option:?}: known are {KNOWN}")]
    Unknown { option: String },
    #[error("{option}: write timeo=N, N tenths of a second from 1 to 36000")]
    Timeo { option: String },
    #[error("{option}: write socket=PATH with an absolute path")]
    Socket { option: String },
}

impl Options {
    /// Reads the arguments of `-o`; `sloppy` passes over what is unknown.
    pub(super) fn parse(arguments: &[String], sloppy: bool) -> Result<Self, BadOption> {
        let words = || {
            arguments
                .iter()
                .flat_map(|argument| argument.split(','))
                .filter(|word| !word.is_empty())
        };
        let mut options = Self {
            remount: words().any(|word| word == "remount"),
            ..Self::default()
        };
        for word in words() {
            match options.take(word) {
                Err(BadOption::Unknown { .. }) if sloppy => {}
                taken => taken?,
            }
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<(), BadOption> {
        let option = || word.to_owned();
        if let Some((_, clear, set)) = FLAGS.iter().find(|(name, ..)| *name == word) {
            self.flags.set = (self.flags.set & !clear) | set;
            self.flags.clear = (self.flags.clear & !set) | clear;
            return Ok(());
        }
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "remount" if value.is_empty() => {}
            "hard" if value.is_empty() => self.hard = Some(true),
            "soft" if value.is_empty() => self.hard = Some(false),
            "timeo" => match value.parse() {
                Ok(tenths @ 1..=36_000) => self.timeo = Some(tenths),
                _ => return Err(BadOption::Timeo { option: option() }),
            },
            "socket" if value.starts_with('/') => self.socket = Some(value.into()),
            "socket" => return Err(BadOption::Socket { option: option() }),
            _ if self.remount && OF_THE_TREE.contains(&key) => {}
            _ if NOT_OURS.contains(&word)
                || NOT_OURS_PREFIXES
                    .iter()
                    .any(|prefix| word.starts_with(prefix)) => {}
            _ => return Err(BadOption::Unknown { option: option() }),
        }
        Ok(())
    }

    /// Returns where the daemon listens.
    pub(super) fn socket(&self) -> &Path {
        let named = self.socket.as_deref();
        named.unwrap_or_else(|| Path::new(SOCKET_DEFAULT))
    }

    /// Returns the flags of a new mount.
    pub(super) fn attributes(&self) -> Attributes {
        Attributes {
            set: (DEFAULTS & !self.flags.clear) | self.flags.set,
            clear: ALL,
            private: true,
        }
    }

    /// Returns what a remount changes: only what was named.
    pub(super) fn changes(&self) -> Attributes {
        self.flags
    }

    pub(super) fn read_only(&self) -> bool {
        self.flags.set & libc::MOUNT_ATTR_RDONLY != 0
    }

    /// Tells whether `rw` was asked for.
    pub(super) fn writable(&self) -> bool {
        self.flags.clear & libc::MOUNT_ATTR_RDONLY != 0
    }

    /// Tells whether it was said how requests wait.
    pub(super) fn waits(&self) -> bool {
        self.hard.is_some() || self.timeo.is_some()
    }

    /// Returns the option, if any, that wants requests to wait in another way than they do.
    pub(super) fn differs(&self, hard: bool, timeo: u32) -> Option<String> {
        match (self.hard, self.timeo) {
            (Some(true), _) if !hard => Some("hard".to_owned()),
            (Some(false), _) if hard => Some("soft".to_owned()),
            (_, Some(wished)) if hard || wished != timeo => Some(format!("timeo={wished}")),
            _ => None,
        }
    }

    /// Tells whether a mount with these options, as the table of mounts shows them, is as a new one would be.
    pub(super) fn are_those_of(&self, shown: &str) -> bool {
        let wished = self.attributes().set;
        FLAGS
            .iter()
            .filter(|(_, _, flag)| *flag != 0)
            .all(|(name, _, flag)| {
                let there = shown.split(',').any(|word| word == *name);
                // Strict access times show as nothing, so they are not in this comparison.
                there == (wished & flag == *flag) || *flag == libc::MOUNT_ATTR_STRICTATIME
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::{MOUNT_ATTR_NODEV as NODEV, MOUNT_ATTR_NOSUID as NOSUID, MOUNT_ATTR_RDONLY as RO};

    fn parse(text: &str) -> Result<Options, BadOption> {
        Options::parse(&[text.to_owned()], false)
    }

    #[test]
    fn flags_of_a_new_mount() {
        let check = |text: &str, set: u64| {
            let attributes = parse(text).expect(text).attributes();
            assert_eq!((attributes.set, attributes.clear), (set, ALL), "{text}");
        };
        check("", NOSUID | NODEV);
        check("rw", NOSUID | NODEV);
        check("rw,ro", RO | NOSUID | NODEV);
        check("ro,rw", NOSUID | NODEV);
        check("allow_dev,rw", NOSUID);
        check("allow_suid,allow_dev,nodev", NODEV);
        check(
            "_netdev,x-systemd.requires=glud.service,nofail",
            NOSUID | NODEV,
        );
        check("noatime", NOSUID | NODEV | libc::MOUNT_ATTR_NOATIME);
        check("noatime,relatime", NOSUID | NODEV);
    }

    #[test]
    fn a_remount_changes_what_is_named() {
        let options = parse("rw,nosuid,relatime,user_id=0,allow_other,remount,ro").expect("good");
        assert!(options.remount && options.read_only() && !options.writable());
        let Attributes {
            set,
            clear,
            private,
        } = options.changes();
        assert_eq!((set, clear), (RO | NOSUID, libc::MOUNT_ATTR__ATIME));
        assert!(!private, "its propagation stays");
        parse("user_id=0").expect_err("not for a new mount");
    }

    #[test]
    fn requests_wait_as_the_daemon_lets_them() {
        let check = |text: &str, hard: bool, differs: Option<&str>| {
            let found = parse(text).expect(text).differs(hard, 300);
            assert_eq!(found.as_deref(), differs, "{text}");
        };
        check("", true, None);
        check("soft,timeo=300", false, None);
        check("soft,timeo=301", false, Some("timeo=301"));
        check("hard", false, Some("hard"));
        check("hard", true, None);
        check("soft", true, Some("soft"));
        check("timeo=300", true, Some("timeo=300"));
    }

    #[test]
    fn what_is_no_option() {
        let check = |text: &str, words: &[&str]| {
            let error = parse(text).expect_err(text).to_string();
            for word in words {
                assert!(error.contains(word), "{word:?} is not in {error:?}");
            }
            assert!(!error.contains('\n') && !error.contains("  "), "{error}");
        };
        check(
            "ro,rsize=8192",
            &["\"rsize=8192\"", "known are ro rw", "x-..."],
        );
        check("hard=1", &["\"hard=1\""]);
        check("timeo=0", &["timeo=0", "1 to 36000"]);
        check("timeo", &["timeo=N"]);
        check("socket=sock", &["socket=sock", "absolute"]);
        Options::parse(&["rsize=8192".to_owned()], true).expect("sloppy");
    }

    #[test]
    fn what_is_mounted_as_wished() {
        let check = |text: &str, shown: &str, expected: bool| {
            let options = parse(text).expect(text);
            assert_eq!(options.are_those_of(shown), expected, "{text}: {shown}");
        };
        check("rw", "rw,nosuid,nodev,relatime", true);
        check("ro", "rw,nosuid,nodev,relatime", false);
        check("rw", "ro,nosuid,nodev,relatime", false);
        check("allow_dev", "rw,nosuid,nodev,relatime", false);
        check("allow_dev", "rw,nosuid,relatime", true);
        check("rw", "rw,nosuid,nodev,noexec,relatime", false);
        check("", "rw,nosuid,relatime", false);
        check("noatime", "rw,nosuid,nodev,noatime", true);
        check("relatime", "rw,nosuid,nodev,noatime", false);
    }
}
