//! Signals from `glush` to processes of another node: each way to send them, by root, by the owner and by a stranger,
//! and to a number that was given out again.
//!
//! Needs root, /dev/fuse and python3.

use std::time::Duration;
use tests::{Cluster, wait_until};

const LONG: Duration = Duration::from_secs(120);
const OWNER: u32 = 54_321;
const STRANGER: u32 = 54_322;

fn as_user(user: u32) -> String {
    match user {
        0 => String::new(),
        _ => format!("setpriv --reuid {user} --regid {user} --clear-groups"),
    }
}

/// Starts a process of the owner that leads a group on node 2.
fn start(cluster: &Cluster) -> u32 {
    let command = format!("setsid {} sleep 6543", as_user(OWNER));
    let pid = cluster
        .sh(
            2,
            &format!("{command} >/dev/null 2>&1 </dev/null & echo $!"),
        )
        .ok();
    wait_until("a process of its owner", LONG, || {
        let script = format!("stat -c %u /proc/{pid} && cat /proc/{pid}/comm");
        cluster.sh(2, &script).stdout == format!("{OWNER}\nsleep")
    });
    pid.parse().expect("a number")
}

/// Says how each signal to a process ended, sent in one of these ways: an errno each. Behind a stop, a start and an end
/// that were allowed it waits for the process to be seen so.
const SEND: &str = r#"
way=$1 pid=$2
state() { local state; state=$(sed 's/.*) \(.\).*/\1/' /proc/$pid/stat 2>/dev/null); echo "${state:--}"; }
reach() { for _ in $(seq 1200); do case $1 in *$(state)*) return;; esac; sleep 0.05; done; echo "not $1: $(state)"; exit 1; }
send() {
    case $way in
        builtin) said=$(kill -$1 $pid 2>&1);;
        builtin-group) said=$(kill -$1 -- -$pid 2>&1);;
        program) said=$(/bin/kill -$1 $pid 2>&1);;
        *) said=$(python3 /cluster/send.py $way $pid $1);;
    esac
    case $said in
        '') said=0;;
        *'not permitted'*) said=1;;
        *'No such process'*) said=3;;
    esac
    echo "$1:$said"
    case $said:$1 in 0:19) reach T;; 0:18) reach S;; 0:15|0:9) reach -;; esac
}
shift 2
for number in "$@"; do send $number; done
"#;
const PYTHON: &str = "import os, signal, sys
way, pid, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    if way == 'os.kill': os.kill(pid, number)
    elif way == 'os.killpg': os.killpg(pid, number)
    else: signal.pidfd_send_signal(os.pidfd_open(pid), number)
    print(0)
except OSError as error: print(error.errno)
";
const WAYS: [&str; 6] = [
    "builtin",
    "builtin-group",
    "program",
    "os.kill",
    "os.killpg",
    "pidfd",
];

#[test]
fn each_way_asks_whose_process_it_is() {
    let cluster = Cluster::up(2);
    for (name, text) in [("send.sh", SEND), ("send.py", PYTHON)] {
        std::fs::write(cluster.path(1).join(name), text).expect("written");
    }
    let send = |user: u32, way: &str, pid: u32, numbers: &str| {
        let script = format!(
            "{} glush /cluster/send.sh {way} {pid} {numbers}",
            as_user(user)
        );
        let said = cluster.node(1).sh_within(LONG, &script);
        said.ok().replace('\n', " ")
    };
    for (way, end) in WAYS.into_iter().zip([15, 9].into_iter().cycle()) {
        let mut pid = start(&cluster);
        let said = send(STRANGER, way, pid, "0 19 18 15 9");
        assert_eq!(said, "0:1 19:1 18:1 15:1 9:1", "{way}, by a stranger");
        let stat = cluster.sh(2, &format!("ps -o stat= -p {pid}")).ok();
        assert!(stat.trim().starts_with('S'), "{way}: {stat}");
        for user in [OWNER, 0] {
            // It has ended by the last: there is no such process.
            let said = send(user, way, pid, &format!("0 19 18 {end} 0 9"));
            let expected = format!("0:0 19:0 18:0 {end}:0 0:3 9:3");
            assert_eq!(said, expected, "{way}, by {user}");
            if user == OWNER {
                pid = start(&cluster);
            }
        }
    }
}

/// What was opened of a process never means a later one of its number.
#[test]
fn a_number_given_out_again_is_another_process() {
    const HOLDER: &str = "import os, signal, sys, time
pid = int(sys.argv[1])
pidfd = os.pidfd_open(pid)
dir = os.open(f'/proc/{pid}', os.O_RDONLY)
note, notepg, lock = [os.open(f'/proc/{pid}/{name}', os.O_WRONLY) for name in ['note', 'notepg', 'lock']]
stat = os.open(f'/proc/{pid}/stat', os.O_RDONLY)
assert os.pread(stat, 100, 0)
print('ready', flush=True)
while not os.path.exists('/cluster/go'): time.sleep(0.02)
def said(call, *args):
    try: call(*args)
    except OSError as error: return error.errno
    return 0
print(said(signal.pidfd_send_signal, pidfd, 9), said(signal.pidfd_send_signal, dir, 9), said(os.write, note, b'KILL'),
    said(os.write, notepg, b'KILL'), said(os.write, lock, b'1'), said(os.pread, stat, 100, 0), flush=True)
# As on one machine the number itself means who has it now.
print(said(os.kill, pid, 0))
";
    let cluster = Cluster::up(2);
    std::fs::write(cluster.path(1).join("holder.py"), HOLDER).expect("written");
    let pid = start(&cluster);
    let command = format!("exec python3 /cluster/holder.py {pid}");
    let holder = cluster.node(1).spawn_command(&["glush", "-c", &command]);
    wait_until("all to be opened", LONG, || holder.stdout() == "ready");
    cluster.sh(2, &format!("kill -KILL {pid}")).ok();
    wait_until("its end", LONG, || {
        !cluster
            .sh(2, &format!("test -e /proc/{pid}"))
            .status
            .success()
    });
    let again = format!(
        "echo {} > /proc/sys/kernel/ns_last_pid; setsid sleep 6543 >/dev/null 2>&1 </dev/null & echo $!",
        pid - 1
    );
    // Others begin processes, too, and take the number.
    let mut others = Vec::new();
    wait_until("the same number", LONG, || {
        let got = cluster.sh(2, &again).ok();
        others.push(got.clone());
        got == pid.to_string()
    });
    cluster.sh(1, "touch /cluster/go").ok();
    assert_eq!(holder.wait(LONG).ok(), "ready\n3 3 3 3 3 3\n0");
    let stat = cluster.sh(2, &format!("ps -o stat=,args= -p {pid}")).ok();
    assert!(
        stat.trim().starts_with('S') && stat.ends_with("sleep 6543"),
        "{stat}"
    );
    let lock = cluster.sh(1, &format!("cat /cluster/proc/{pid}/lock")).ok();
    assert_eq!(lock, "0");
}
