use super::*;
use consistency::NodeId;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};

const ROOT: Who = Who { uid: 0, gid: 0 };
const OWNER: Who = Who {
    uid: 54_321,
    gid: 54_321,
};
const STRANGER: Who = Who {
    uid: 54_322,
    gid: 54_321,
};

#[track_caller]
fn check(text: &str, expected: Option<i32>) {
    assert_eq!(parse(text.as_bytes()).ok(), expected, "{text:?}");
}

#[test]
fn names_and_numbers() {
    for (text, number) in [
        ("TERM", libc::SIGTERM),
        ("SIGTERM\n", libc::SIGTERM),
        ("sigterm", libc::SIGTERM),
        ("15", 15),
        ("0\n", 0),
        ("64", 64),
        ("CLD", libc::SIGCHLD),
        ("poll", libc::SIGIO),
        ("RTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        ("RTMAX", 64),
    ] {
        check(text, Some(number));
    }
    for text in [
        "",
        "\n",
        "65",
        "-1",
        "+9",
        "9 ",
        " 9",
        "9\n\n",
        "15x",
        "0x9",
        "TERM KILL",
        "SIGSIGTERM",
        "NONE",
        "RTMIN+31",
        "RTMIN-1",
        "RTMAX+1",
        "RTMIN++1",
        "RTMIN+",
        "RTMAX-2147483648",
        "99999999999999999999",
        "TERM\0",
        "é",
    ] {
        check(text, None);
    }
    assert_eq!(parse(b"\xff"), Err(Errno::EINVAL));
}

#[test]
fn who_may() {
    let ids = |real, effective, saved| text::Ids {
        real,
        effective,
        saved,
    };
    let target = Credentials {
        users: ids(5, 6, 7),
        groups: ids(8, 8, 8),
        capable: false,
    };
    let may = |uid, gid| may_signal(Who { uid, gid }, &target);
    // The real and the saved user of the target count, neither its effective one nor any group.
    assert_eq!(
        [0, 5, 6, 7, 8].map(|uid| may(uid, 8)),
        [true, true, false, true, false]
    );
}

/// A child of the test that is ended with it.
struct Sleeper {
    child: Child,
    pid: ClusterPid,
    birth: Birth,
}

fn procfs() -> Procfs {
    Procfs::new(NodeId(1), "/proc".into())
}

impl Sleeper {
    fn start(uid: u32, group: i32) -> Self {
        let mut command = Command::new("sleep");
        let child = command.arg("600").uid(uid).process_group(group).spawn();
        let child = child.expect("started");
        let pid = i32::try_from(child.id()).expect("a pid");
        let pid = ClusterPid::of(NodeId(1), pid).expect("a cluster pid");
        let birth = procfs().identify(pid).expect("it lives").birth;
        Self { child, pid, birth }
    }

    fn send(&self, number: i32, who: Who) -> Result<(), Errno> {
        procfs().signal(self.pid, self.birth, number, who)
    }

    fn send_group(&self, number: i32, who: Who) -> Result<(), Errno> {
        procfs().signal_group(self.pid, Some(self.birth), number, who)
    }

    fn ended_by(&mut self) -> Option<i32> {
        self.child.wait().expect("waited for").signal()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_process_gets_signals_of_those_who_may() {
    let mut sleeper = Sleeper::start(OWNER.uid, 0);
    for who in [ROOT, OWNER] {
        assert_eq!(sleeper.send(0, who), Ok(()));
    }
    for number in [0, libc::SIGKILL] {
        assert_eq!(sleeper.send(number, STRANGER), Err(Errno::EPERM));
    }
    for number in [-1, 65, i32::MAX] {
        assert_eq!(sleeper.send(number, ROOT), Err(Errno::EINVAL));
    }
    assert_eq!(sleeper.send(libc::SIGTERM, OWNER), Ok(()));
    assert_eq!(sleeper.ended_by(), Some(libc::SIGTERM));
    assert_eq!(sleeper.send(0, ROOT), Err(Errno::ESRCH));
}

#[test]
fn a_zombie_takes_signals_as_it_does_from_kill() {
    let mut sleeper = Sleeper::start(OWNER.uid, 0);
    sleeper.child.kill().expect("killed");
    let id = nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(sleeper.pid.kernel()));
    let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
    nix::sys::wait::waitid(id, flags).expect("it is a zombie");
    assert_eq!(sleeper.send(libc::SIGTERM, OWNER), Ok(()));
    assert_eq!(sleeper.ended_by(), Some(libc::SIGKILL));
}

#[test]
fn a_pid_given_out_again_is_not_hit() {
    let mut sleeper = Sleeper::start(OWNER.uid, 0);
    let before = Birth(sleeper.birth.0 - 1);
    let sent = procfs().signal(sleeper.pid, before, libc::SIGKILL, ROOT);
    assert_eq!(sent, Err(Errno::ESRCH));
    let sent = procfs().signal_group(sleeper.pid, Some(before), libc::SIGKILL, ROOT);
    assert_eq!(sent, Err(Errno::ESRCH));
    assert!(sleeper.child.try_wait().expect("waited for").is_none());
    // So is a process of another node with the same number.
    let other = ClusterPid::of(NodeId(2), sleeper.pid.kernel()).expect("a cluster pid");
    let sent = procfs().signal(other, sleeper.birth, libc::SIGKILL, ROOT);
    assert_eq!(sent, Err(Errno::ESRCH));
    assert!(sleeper.child.try_wait().expect("waited for").is_none());
}

#[test]
fn a_group_gets_signals_as_far_as_one_may() {
    for who in [ROOT, OWNER] {
        let mut leader = Sleeper::start(OWNER.uid, 0);
        let mut member = Sleeper::start(OWNER.uid, leader.pid.kernel());
        assert_eq!(leader.send_group(0, STRANGER), Err(Errno::EPERM));
        // A member that leads no group has none of its number.
        assert_eq!(member.send_group(0, who), Err(Errno::ESRCH));
        assert_eq!(leader.send_group(libc::SIGTERM, who), Ok(()));
        assert_eq!(leader.ended_by(), Some(libc::SIGTERM));
        assert_eq!(member.ended_by(), Some(libc::SIGTERM));
        assert_eq!(leader.send_group(0, who), Err(Errno::ESRCH));
    }
}

#[test]
fn a_group_of_several_users() {
    let mut leader = Sleeper::start(STRANGER.uid, 0);
    let mut member = Sleeper::start(OWNER.uid, leader.pid.kernel());
    assert_eq!(leader.send_group(libc::SIGTERM, OWNER), Ok(()));
    assert_eq!(member.ended_by(), Some(libc::SIGTERM));
    assert!(leader.child.try_wait().expect("waited for").is_none());
    assert_eq!(leader.send_group(0, OWNER), Err(Errno::EPERM));
}

#[test]
fn a_group_outlives_its_leader() {
    let mut leader = Sleeper::start(OWNER.uid, 0);
    let mut member = Sleeper::start(OWNER.uid, leader.pid.kernel());
    leader.child.kill().expect("killed");
    leader.child.wait().expect("waited for");
    let send = |birth, number, who| procfs().signal_group(leader.pid, birth, number, who);
    assert_eq!(send(Some(leader.birth), 0, ROOT), Err(Errno::ESRCH));
    assert_eq!(send(None, libc::SIGTERM, STRANGER), Err(Errno::EPERM));
    assert_eq!(send(None, libc::SIGTERM, OWNER), Ok(()));
    assert_eq!(member.ended_by(), Some(libc::SIGTERM));
    for who in [ROOT, OWNER] {
        assert_eq!(send(None, 0, who), Err(Errno::ESRCH));
    }
}
