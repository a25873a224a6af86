//! `glurun` and `glumake` as users run them, against two nodes in this process. Needs root.

use async_trait::async_trait;
use consistency::NodeId;
use consistency::wire::node::NodeLoad;
use consistency::wire::request::{NodeReport, NodeStatus};
use gfs::net::mem::MemNet;
use gfs::net::{NetError, ServiceId};
use gproc::job::{Agent, JobServer, Nodes, SOCKET_ENV, bind};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const HERE: NodeId = NodeId(1);
const THERE: NodeId = NodeId(2);

/// Every wait ends by then; the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// Two nodes; programs are run on the first.
struct Cluster {
    dir: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

struct FixedNodes;

#[async_trait]
impl Nodes for FixedNodes {
    async fn nodes(&self) -> Result<Vec<NodeStatus>, NetError> {
        let load = NodeLoad {
            cpus: 2,
            speed: 1000,
            mem_available_kib: 1 << 20,
            ..NodeLoad::default()
        };
        let report = NodeReport {
            load,
            ..NodeReport::default()
        };
        let status = |node| NodeStatus::new(node, true, report.clone());
        Ok(vec![status(HERE), status(THERE)])
    }
}

impl Cluster {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let context = runtime.enter();
        let net = MemNet::default();
        let (transport, _) = net.join(HERE);
        let (_, router_there) = net.join(THERE);
        let agent = |node| {
            let instance = format!("run-{}-{number}.{node}", std::process::id());
            Agent::new(node, &instance).expect("an agent starts")
        };
        router_there.register(ServiceId::Job, agent(THERE).service());
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = bind(&dir.path().join("sock")).expect("binds");
        let server = JobServer::new(agent(HERE), transport, Arc::new(FixedNodes));
        runtime.spawn(Arc::new(server).serve(listener));
        drop(context);
        Self {
            dir,
            _runtime: runtime,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(args)
            .env(SOCKET_ENV, self.path("sock"))
            .env_remove("MAKEFLAGS")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    fn glurun(&self, args: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_glurun"), args)
    }

    fn glumake(&self, args: &[&str]) -> Command {
        self.command(env!("CARGO_BIN_EXE_glumake"), args)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(mut command: Command) -> Output {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.expect("starts");
    child.wait_with_output().expect("ends")
}

/// Feeds a program while its output is read.
fn run_with(mut command: Command, input: Vec<u8>) -> Output {
    let piped = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("ends");
    // A program that reads less than all is no failure here.
    feeder.join().expect("no panic").ok();
    output
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "waited {DEADLINE:?} until {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_until("glurun has ended", || {
        status = child.try_wait().expect("own child");
        status.is_some()
    });
    status.expect("has ended")
}

fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

const NODES: [&str; 2] = ["1", "2"];

#[test]
fn the_status_of_the_program_is_glurun_s() {
    let cluster = Cluster::new();
    for node in NODES {
        for (script, code, signal) in [
            ("exit 0", Some(0), None),
            ("exit 42", Some(42), None),
            ("kill -TERM $$", None, Some(libc::SIGTERM)),
            ("kill -SEGV $$", None, Some(libc::SIGSEGV)),
            ("kill -KILL $$", None, Some(libc::SIGKILL)),
        ] {
            let status = run(cluster.glurun(&["-w", node, "sh", "-c", script])).status;
            assert_eq!(
                (status.code(), status.signal()),
                (code, signal),
                "{script} on {node}"
            );
        }
    }
}

#[test]
fn glurun_s_own_faults_have_their_own_status() {
    let cluster = Cluster::new();
    let check = |args: &[&str], status: i32, message: &str| {
        let output = run(cluster.glurun(args));
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {told}");
        assert!(
            told.starts_with("glurun: ") && told.contains(message),
            "{told}"
        );
        assert_eq!(told.lines().count(), 1, "{told}");
    };
    check(&["no-such-program"], 127, "no-such-program: No such file");
    check(&["/etc"], 126, "/etc: Permission denied");
    check(&["-w", "7", "true"], 125, "node 7 is not in the cluster");
    check(&["--gres", "1", "true"], 2, "unexpected argument '--gres'");
    check(&["-w", "host", "true"], 2, "`host` is no node");
    check(&[], 2, "required arguments");
    let mut orphan = cluster.glurun(&["true"]);
    orphan.env(SOCKET_ENV, "/no/such/socket");
    let output = run(orphan);
    assert_eq!(output.status.code(), Some(125));
    let told = text(&output.stderr);
    assert!(
        told.contains("no answer from this node's daemon at /no/such/socket"),
        "{told}"
    );
}

#[test]
fn input_and_outputs_pass_unchanged() {
    let cluster = Cluster::new();
    let input: Vec<u8> = (0..1_u32 << 20)
        .flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    for node in NODES {
        let output = run_with(cluster.glurun(&["-w", node, "cat"]), input.clone());
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(output.stdout == input, "cat on {node} changed its input");
        let output = run(cluster.glurun(&["-w", node, "sh", "-c", "echo out; echo err >&2"]));
        assert_eq!(
            (&*output.stdout, &*output.stderr),
            (&b"out\n"[..], &b"err\n"[..])
        );
        let output = run_with(cluster.glurun(&["-w", node, "head", "-c3"]), input.clone());
        assert_eq!(output.stdout, input[..3]);
        assert!(output.status.success());
    }
}

#[test]
fn what_a_job_does_not_read_of_a_file_stays() {
    let cluster = Cluster::new();
    let lines: String = (0..50_000).map(|line| format!("{line}\n")).collect();
    write(cluster.dir.path(), "lines", &lines);
    for node in NODES {
        for reader in ["read a; echo $a", "true", "cat"] {
            let path = cluster.path("lines");
            let mut file = fs::File::open(&path).expect("opens");
            // It begins where another reader has stopped.
            file.read_exact(&mut [0; 2]).expect("reads");
            let stdin = file.try_clone().expect("dups");
            let mut command = cluster.glurun(&["-w", node, "sh", "-c", reader]);
            command.stdin(stdin);
            let output = run(command);
            assert!(output.status.success(), "{}", text(&output.stderr));
            let mut all = text(&output.stdout);
            file.read_to_string(&mut all).expect("reads on");
            assert_eq!(all, lines[2..], "{reader} on {node}");
        }
    }
}

/// Feeds scripts, which run glurun as `$GLURUN`, with lines from a pipe (J6), and checks what comes out of them.
fn check_piped(script: &str, expected: &str) {
    check_piped_on(&NODES, script, expected);
}

fn check_piped_on(nodes: &[&str], script: &str, expected: &str) {
    let cluster = Cluster::new();
    let lines: String = (0..100_000).map(|line| format!("{line}\n")).collect();
    for node in nodes {
        let mut command = cluster.command("bash", &["-c", script]);
        let glurun = format!("{} -w {node}", env!("CARGO_BIN_EXE_glurun"));
        command.env("GLURUN", glurun);
        let output = run_with(command, lines.clone().into_bytes());
        let told = text(&output.stderr);
        assert!(output.status.success(), "{script} on {node}: {told}");
        let expected = match expected {
            "all" => &*lines,
            other => other,
        };
        let got = text(&output.stdout);
        let same = got
            .bytes()
            .zip(expected.bytes())
            .take_while(|(a, b)| a == b);
        let same = same.count();
        assert!(
            got == expected,
            "{script} on {node}: {} bytes, the first {same} are right",
            got.len()
        );
    }
}

#[test]
fn what_a_job_does_not_read_of_a_pipe_stays() {
    check_piped("$GLURUN sh -c 'read a; echo $a'; cat", "all");
    check_piped("$GLURUN true; cat", "all");
    check_piped("$GLURUN cat; cat", "all");
    // More than fits into all that is on the way.
    check_piped(
        "$GLURUN dd bs=1000 count=500 iflag=fullblock 2>/dev/null; cat",
        "all",
    );
    check_piped(
        "$GLURUN sh -c 'dd bs=7 count=1 2>/dev/null; exec <&-; echo closed >&2; sleep 0.1'; cat",
        "all",
    );
    // One after the other, with a local reader between.
    let turns =
        "for i in 1 2 3; do $GLURUN sh -c 'read a; echo $a'; read b; echo $b; done; $GLURUN cat";
    check_piped(turns, "all");
    check_piped(
        "while read a && [ $a -lt 5 ]; do $GLURUN echo $a; done",
        "0\n1\n2\n3\n4\n",
    );
}

#[test]
fn a_pipe_is_read_by_one_job_after_the_other() {
    // Each of two at once would see the same: none is to read what the other has read. Here they read themselves.
    let both = "exec 3<&0; $GLURUN cat <&3 >a & $GLURUN cat <&3 >b & wait; cat a b; rm a b";
    check_piped_on(&["2"], both, "all");
}

#[test]
fn a_pipe_that_another_program_reads_too_is_a_fault() {
    let cluster = Cluster::new();
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(b"for the job").expect("fits");
    let mut command = cluster.glurun(&[
        "-w",
        "2",
        "sh",
        "-c",
        "echo runs; while [ ! -e go ]; do sleep 0.01; done; read a; echo $a",
    ]);
    let mut other = reader.try_clone().expect("dups");
    let piped = command
        .stdin(reader)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = piped.spawn().expect("starts");
    drop(command);
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("reads");
    // Whoever comes first: the job may have been sent it by now or not.
    other.read_exact(&mut [0; 11]).expect("is there");
    writer.write_all(b" and more\n").expect("fits");
    drop(writer);
    write(cluster.dir.path(), "go", "");
    let (status, mut rest) = (ended(&mut child), String::new());
    out.read_to_string(&mut rest).expect("reads");
    match rest.trim() {
        "and more" => assert!(status.success(), "{status:?}"),
        _ => assert_eq!(status.code(), Some(125), "{rest}"),
    }
}

#[test]
fn a_quiet_pipe_passes_on_what_comes() {
    let cluster = Cluster::new();
    for node in NODES {
        let mut command = cluster.glurun(&["-w", node, "cat"]);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("piped");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        for word in ["one\n", "two\n", "three\n"] {
            stdin.write_all(word.as_bytes()).expect("writes");
            let mut line = String::new();
            out.read_line(&mut line).expect("reads");
            assert_eq!(line, word);
        }
        drop(stdin);
        assert!(ended(&mut child).success());
    }
}

#[test]
fn one_file_for_both_outputs_keeps_the_order() {
    let cluster = Cluster::new();
    let script = "for i in 1 2 3; do echo o$i; echo e$i >&2; done";
    for node in NODES {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let mut command = cluster.glurun(&["-w", node, "sh", "-c", script]);
        let other = writer.try_clone().expect("dups");
        let mut child = command
            .stdout(writer)
            .stderr(other)
            .spawn()
            .expect("starts");
        drop(command);
        let mut all = String::new();
        reader.read_to_string(&mut all).expect("reads");
        assert_eq!(all, "o1\ne1\no2\ne2\no3\ne3\n");
        assert!(ended(&mut child).success());
    }
}

#[test]
fn a_closed_output_ends_the_job_as_it_would_here() {
    let cluster = Cluster::new();
    for node in NODES {
        let mut command = cluster.glurun(&["-w", node, "yes"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
        let mut first = [0; 2];
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_exact(&mut first).expect("reads");
        drop(stdout);
        assert_eq!(ended(&mut child).signal(), Some(libc::SIGPIPE));
    }
}

/// Starts a script, and returns it with its first line of output.
fn start(cluster: &Cluster, node: &str, script: &str) -> (Child, String) {
    let mut command = cluster.glurun(&["-w", node, "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    let mut reader = BufReader::new(stdout);
    reader.read_line(&mut line).expect("reads");
    // The pipe stays open for what follows.
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    (child, line.trim().to_owned())
}

#[test]
fn signals_are_sent_on() {
    let cluster = Cluster::new();
    for node in NODES {
        for (name, number) in [
            ("INT", libc::SIGINT),
            ("TERM", libc::SIGTERM),
            ("HUP", libc::SIGHUP),
            ("QUIT", libc::SIGQUIT),
            ("USR1", libc::SIGUSR1),
            ("USR2", libc::SIGUSR2),
        ] {
            let script = format!("trap 'exit 9' {name}; sleep 600 & echo ready; wait");
            let (mut child, line) = start(&cluster, node, &script);
            assert_eq!(line, "ready");
            let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
            let signal = nix::sys::signal::Signal::try_from(number).expect("a signal");
            nix::sys::signal::kill(pid, signal).expect("glurun runs");
            assert_eq!(ended(&mut child).code(), Some(9), "{name} on {node}");
        }
    }
}

/// Returns the state letter of a process.
fn state(pid: &str) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

#[test]
fn stopping_glurun_stops_its_job() {
    use nix::sys::signal::{Signal, kill};
    let cluster = Cluster::new();
    for node in NODES {
        let (mut child, job) = start(&cluster, node, "echo $$; exec sleep 600");
        let glurun = child.id().to_string();
        let send = |signal| {
            let pid = nix::unistd::Pid::from_raw(glurun.parse().expect("a pid"));
            kill(pid, signal).expect("glurun runs");
        };
        let both = |stopped| {
            [&*job, &*glurun]
                .map(state)
                .iter()
                .all(|state| (*state == Some('T')) == stopped)
        };
        send(Signal::SIGTSTP);
        wait_until("both are stopped", || both(true));
        send(Signal::SIGCONT);
        wait_until("both go on", || both(false));
        send(Signal::SIGKILL);
        ended(&mut child);
    }
}

#[test]
fn kill_9_of_glurun_ends_all_of_the_job() {
    let cluster = Cluster::new();
    for node in NODES {
        let script = "setsid sh -c '(echo $$; exec sleep 600) & exec sleep 600' & wait";
        let (mut child, grandchild) = start(&cluster, node, script);
        assert!(runs(&grandchild));
        child.kill().expect("glurun runs");
        ended(&mut child);
        wait_until("the job has ended too", || !runs(&grandchild));
    }
}

#[test]
fn many_processes_and_labels() {
    let cluster = Cluster::new();
    let script = "echo $GLU_VNN $GLU_NODE; exit $GLU_VNN";
    let output = run(cluster.glurun(&["-n", "4", "-l", "sh", "-c", script]));
    assert_eq!(output.status.code(), Some(3), "the highest status");
    let all = text(&output.stdout);
    let mut lines: Vec<_> = all.lines().collect();
    lines.sort_unstable();
    for (vnn, line) in lines.iter().enumerate() {
        assert!(line.starts_with(&format!("{vnn}: {vnn} ")), "{all}");
    }
    assert_eq!(lines.len(), 4);
    let on_2 = lines.iter().filter(|line| line.ends_with(" 2")).count();
    assert!((1..=3).contains(&on_2), "they spread: {all}");
}

#[test]
fn the_job_is_at_home() {
    let cluster = Cluster::new();
    for node in NODES {
        let mut command =
            cluster.glurun(&["-w", node, "sh", "-c", "pwd; umask; echo $MINE $GLU_NODE"]);
        command.env("MINE", "a  b");
        let output = run(command);
        let dir = cluster.dir.path().canonicalize().expect("exists");
        let expected = format!("{}\n0022\na b {node}\n", dir.display());
        assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    }
}

fn write(dir: &Path, name: &str, content: &str) {
    fs::write(dir.join(name), content).expect("writes");
}

#[test]
fn glumake_builds_on_all_nodes() {
    let cluster = Cluster::new();
    let dir = cluster.dir.path();
    fs::create_dir(dir.join("sub")).expect("makes a directory");
    write(
        dir,
        "Makefile",
        "SHELL = /bin/bash\n.SHELLFLAGS = -eu -o pipefail -c\nall: a b c d e f g h sub\n\t@[[ x == x ]] && echo bash\n\
         a b c d e f g h:\n\t@echo $$GLU_NODE > $@\n\
         sub:\n\t@$(MAKE) -C sub\n.PHONY: sub\n",
    );
    write(
        &dir.join("sub"),
        "Makefile",
        "x:\n\t@echo $$GLU_NODE > x\n\t@$(SHELL) -c 'echo nested'\n",
    );
    let output = run(cluster.glumake(&[]));
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(
        out.contains("bash\n") && out.contains("nested\n"),
        "{out}{err}"
    );
    assert_eq!(err, "");
    let nodes: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h"]
        .iter()
        .map(|name| fs::read_to_string(dir.join(name)).expect("was made"))
        .collect();
    for node in ["1\n", "2\n"] {
        assert!(nodes.iter().any(|on| on == node), "{nodes:?}");
    }
    let sub = fs::read_to_string(dir.join("sub/x")).expect("was made");
    assert!(["1\n", "2\n"].contains(&&*sub), "a job: {sub:?}");
}

#[test]
fn glumake_tells_failures() {
    let cluster = Cluster::new();
    write(cluster.dir.path(), "Makefile", "x:\n\t@exit 3\n");
    let output = run(cluster.glumake(&["-j2"]));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("Error 3"),
        "{}",
        text(&output.stderr)
    );
    let mut orphan = cluster.glumake(&[]);
    orphan.env(SOCKET_ENV, "/no/such/socket");
    let output = run(orphan);
    assert_eq!(output.status.code(), Some(125));
    let told = text(&output.stderr);
    assert!(
        told.starts_with("glumake: no answer from this node's daemon"),
        "{told}"
    );
    assert_eq!(told.lines().count(), 1);
}

/// Prints what a job costs; `cargo test -- --nocapture latency`.
#[test]
fn latency_of_a_null_job() {
    let cluster = Cluster::new();
    let rounds = 30;
    let time = |command: &dyn Fn() -> Command| {
        let start = Instant::now();
        for _ in 0..rounds {
            assert!(
                command()
                    .stdout(Stdio::null())
                    .status()
                    .expect("runs")
                    .success()
            );
        }
        start.elapsed() / rounds
    };
    let local = time(&|| cluster.command("/bin/true", &[]));
    let here = time(&|| cluster.glurun(&["-w", "1", "/bin/true"]));
    let there = time(&|| cluster.glurun(&["-w", "2", "/bin/true"]));
    println!("null job: spawn {local:?}, glurun on this node {here:?}, on another {there:?}");
}
