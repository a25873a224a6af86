//! `glu attach` of a terminal: a pseudo-terminal that stays while its line comes and goes.

use super::{LONG, open_classes, terminal};
use nix::sys::termios::{self, BaudRate, SetArg};
use std::fs::File;
use std::io::{Read, Write};
use tests::{Cluster, wait_until, with_deadline};

#[test]
fn an_attached_line_outlives_its_node() {
    let cluster = Cluster::up(2);
    open_classes(&cluster, 2, &["terminal"]);
    let (pty, slave) = terminal();
    let mut before = termios::tcgetattr(&pty.slave).expect("termios");
    termios::cfsetspeed(&mut before, BaudRate::B9600).expect("a speed");
    termios::tcsetattr(&pty.slave, SetArg::TCSANOW, &before).expect("set");
    let speed = || {
        let modes = termios::tcgetattr(&pty.slave).expect("termios");
        termios::cfgetospeed(&modes)
    };
    let master = File::from(pty.master.try_clone().expect("a copy"));
    let expect = |text: &'static [u8]| {
        let mut master = master.try_clone().expect("a copy");
        let mut got = vec![0; text.len()];
        let read = with_deadline("what was written", LONG, move || {
            master.read_exact(&mut got).map(|()| got)
        });
        assert_eq!(read.expect("read"), text);
    };
    let device = format!("/cluster/node2{}", slave.display());
    let near = cluster
        .sh(
            1,
            &format!("glu attach --with pty node2{}", slave.display()),
        )
        .ok();
    assert!(near.starts_with("/dev/pts/"), "{near}");
    let listed = |state: &str| {
        let line = format!("{near} {device} {state}");
        let list = cluster.sh(1, "glu attach --list").ok();
        list.lines().any(|listed| listed == line)
    };
    assert!(listed("write"));
    let other = cluster.sh(2, "glu attach --list").ok();
    assert!(!other.contains("pts"), "it is of its node: {other}");
    cluster
        .sh(1, &format!("test -t 0 <{near} && stty -F {near} 115200"))
        .ok();
    wait_until("115200 baud", LONG, || speed() == BaudRate::B115200);
    cluster.sh(1, &format!("printf one >{near}")).ok();
    expect(b"one");
    // Both ways, and over the end of its node.
    let read = |count: usize| cluster.spawn(1, &format!("head -c {count} <{near}"));
    let reader = read(5);
    (&master).write_all(b"hello").expect("written");
    assert_eq!(reader.wait(LONG).ok(), "hello");
    cluster.kill(2);
    wait_until("the line to be lost", LONG, || listed("lost"));
    cluster
        .sh(1, &format!("printf two >{near}; stty -F {near} 57600"))
        .ok();
    cluster.start(2);
    wait_until("the line to be back", LONG, || listed("write"));
    expect(b"two");
    assert_eq!(speed(), BaudRate::B57600);
    let reader = read(5);
    (&master).write_all(b"again").expect("written");
    assert_eq!(reader.wait(LONG).ok(), "again");
    // Its own daemon ends, and starts anew.
    let end = "pid=$(pgrep -o -x glud) && kill -KILL $pid && while [ -e /proc/$pid ]; do sleep 0.02; done";
    cluster.sh(1, end).ok();
    let writes = format!("printf three >{near}");
    cluster.sh(1, &writes).ok();
    expect(b"three");
    wait_until("the line to be back", LONG, || listed("write"));
    cluster.sh(1, &format!("glu detach {near}")).ok();
    assert!(!listed("write") && !listed("lost"));
    assert_eq!(speed(), BaudRate::B9600, "as it was before");
    let gone = cluster.sh(1, &format!("glu detach {near}")).to_string();
    assert!(gone.contains("stands for no device"), "{gone}");
    let refused = cluster.sh(
        1,
        &format!("glu attach --read-only node2{}", slave.display()),
    );
    assert!(refused.to_string().contains("is no disk"), "{refused}");
    let refused = cluster.sh(1, "glu attach node2/dev/ttyNONE").to_string();
    assert!(refused.contains("there is no such device"), "{refused}");
}
