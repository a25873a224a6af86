//! Jobs with a terminal that move between real nodes: their user sees nothing of it.

use tests::{Cluster, DEADLINE, SHELL, Terminal, moves, wait_until};

/// Moves a job away and back to where it was started, by way of a third node, or the other way round.
const WAY: [u32; 4] = [2, 3, 1, 3];

/// A program whose memory is checked whole after each line, by a thread and by a child that it has made since; it tells of another
/// size.
const MEMORY: &str = r#"
import hashlib, os, queue, signal, sys, threading
pages = {n: hashlib.sha256(b'%d' % n).digest() * 128 for n in range(int(sys.argv[1]) * 256)}
def all_are():
    return all(page == hashlib.sha256(b'%d' % n).digest() * 128 for n, page in pages.items())
asked, found = queue.Queue(), queue.Queue()
def look():
    while asked.get():
        found.put(all_are())
threading.Thread(target=look, daemon=True).start()
signal.signal(signal.SIGWINCH, lambda *_: os.write(1, b'%d rows\n' % os.get_terminal_size().lines))
print('ready')
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(0 if all_are() else 1)
    asked.put(line)
    print(f'got <{line.strip()}>', found.get(), os.waitpid(child, 0)[1])
"#;

#[track_caller]
fn go(cluster: &Cluster, migrate: &str, pid: &str, node: u32) {
    let moved = cluster.sh(1, &format!("{migrate} {pid} {node}"));
    assert_eq!(moved.code(), Some(0), "{moved}");
}

struct AtTerminal<'a> {
    cluster: &'a Cluster,
    terminal: Terminal,
    pid: String,
    /// How it is moved.
    migrate: &'static str,
}

impl<'a> AtTerminal<'a> {
    /// Starts a job on node 1 at a terminal of node 1, which runs a program of bash.
    fn start(cluster: &'a Cluster, script: &str) -> Self {
        let script = format!("echo \"pid $$ runs\"; {script}");
        let program = ["glurun", "-w", "1", "bash", "-c", &script];
        let mut terminal = cluster.node(1).terminal(&program);
        terminal.expect("pid ");
        let shown = terminal.expect(" runs\r\n");
        let pid = shown.trim_end_matches(" runs\r\n").to_owned();
        Self {
            cluster,
            terminal,
            pid,
            migrate: "migrate",
        }
    }

    fn go(&self, node: u32) {
        go(self.cluster, self.migrate, &self.pid, node);
        assert_eq!(self.file("where"), node.to_string());
    }

    fn ties(&self) -> String {
        self.file("cantmove")
    }

    fn file(&self, name: &str) -> String {
        let file = format!("cat /cluster/proc/{}/{name}", self.pid);
        self.cluster.sh(1, &file).ok()
    }
}

/// Lines, echo, erased letters, a line that was begun before a move and one that was typed ahead.
#[test]
fn lines_are_read_as_they_were_typed() {
    let cluster = moves::cluster_that_moves(3);
    let script = "while read -r line; do echo \"got <$line>\"; while [ -e /cluster/wait ]; do sleep 0.05; done; done; echo exit";
    let mut job = AtTerminal::start(&cluster, script);
    assert_eq!(job.ties(), "");
    for node in WAY {
        let word = format!("on{node}");
        job.terminal.send("begxx\x7f\x7fun ");
        job.terminal.expect("un ");
        job.go(node);
        job.terminal.send(&format!("bee\x7f {word}\n"));
        // It is echoed, and the line is whole.
        job.terminal.expect(&word);
        job.terminal.expect(&format!("got <begun be {word}>"));
        // Typed ahead: one line, and part of the next.
        cluster.sh(1, "touch /cluster/wait").ok();
        job.terminal.send("first\n");
        job.terminal.expect("got <first>");
        job.terminal.send("second\nthi");
        job.terminal.expect("thi");
        job.go(if node == 3 { 2 } else { 3 });
        cluster.sh(1, "rm /cluster/wait").ok();
        job.terminal.expect("got <second>");
        job.terminal.send("rd\n");
        job.terminal.expect("got <third>");
    }
    // The end of input, by its key.
    job.terminal.send("\x04");
    job.terminal.expect("exit");
}

#[test]
fn a_shell_has_its_jobs() {
    shell_with_jobs("migrate", "pre-copy");
}

#[test]
fn a_shell_has_its_jobs_before_their_memory() {
    shell_with_jobs("migrate --post-copy", "post-copy");
}

/// An interactive shell: its prompt, keys that signal, jobs in the background and the foreground.
#[track_caller]
fn shell_with_jobs(migrate: &'static str, went: &str) {
    let cluster = moves::cluster_that_moves(3);
    let sleeper = "import os, signal, time
memory = os.urandom(24 << 20)
known = hash(memory)
signal.signal(signal.SIGCONT, lambda *_: print('going on', hash(bytes(bytearray(memory))) == known, flush=True))
print('up', flush=True)
while True: time.sleep(0.05)
";
    std::fs::write(cluster.path(1).join("sleeper.py"), sleeper).expect("written");
    let shell = "exec env PS1='<''>' bash --noprofile --norc --noediting -i";
    let mut job = AtTerminal::start(&cluster, shell);
    job.migrate = migrate;
    job.terminal.expect("<>");
    for node in WAY {
        job.go(node);
        job.terminal.send("tty >/dev/null && echo 'it''s one'\n");
        job.terminal.expect("its one\r\n");
        job.terminal.expect("<>");
        // The terminal is that of the session: a program finds it by its name.
        job.terminal.send("echo found >/dev/tty\n");
        job.terminal.expect("\r\nfound\r\n");
        job.terminal.expect("<>");
        // One in the foreground while all moves, which is stopped, and interrupted.
        job.terminal.send("python3 /cluster/sleeper.py\n");
        job.terminal.expect("up\r\n");
        job.go(if node == 3 { 2 } else { 3 });
        assert!(job.file("moved").ends_with(went));
        job.terminal.send("\x1a");
        job.terminal.expect("Stopped");
        job.terminal.expect("<>");
        job.go(node);
        assert!(job.file("moved").ends_with(went));
        job.terminal.send("jobs\n");
        job.terminal.expect("Stopped");
        job.terminal.expect("<>");
        // It says so when the shell has given it the terminal.
        job.terminal.send("fg\n");
        job.terminal.expect("going on True\r\n");
        job.terminal.send("\x03");
        job.terminal.expect("KeyboardInterrupt");
        job.terminal.expect("<>");
        job.terminal.send("echo status $?\n");
        job.terminal.expect("status 130\r\n");
        job.terminal.expect("<>");
    }
    job.terminal.send("exit 5\n");
}

/// A whole screen, in the middle of an edit, another size on the way, and what is left of the modes.
#[test]
fn an_editor_is_in_the_middle_of_its_work() {
    let cluster = moves::cluster_that_moves(3);
    let editor = "vim -u NONE -N -i NONE -n -c 'set nomore' /cluster/text; stty -a | head -1; stty -a | grep -o 'icanon\\|echo ' | tr '\\n' ' '; echo end";
    let mut job = AtTerminal::start(&cluster, editor);
    job.terminal.painted();
    job.terminal.send("ione\rtwo");
    job.terminal.painted();
    let rows = [40, 30, 35, 24];
    for (node, rows) in WAY.into_iter().zip(rows) {
        job.go(node);
        job.terminal.send(&format!("\rat {node}"));
        let painted = job.terminal.painted();
        assert!(painted.contains(&format!("at {node}")), "{painted:?}");
        // It paints all of it again.
        job.terminal.resize(rows, 90);
        let painted = job.terminal.painted();
        assert!(
            painted.contains("one") && painted.contains("two"),
            "{painted:?}"
        );
    }
    job.terminal.send("\x1b:wq\r");
    job.terminal.expect("rows 24; columns 90;");
    let modes = job.terminal.expect("end");
    assert!(
        modes.contains("icanon") && modes.contains("echo"),
        "{modes:?}"
    );
    let text = cluster.sh(1, "cat /cluster/text").ok();
    assert_eq!(text, "one\ntwo\nat 2\nat 3\nat 1\nat 3");
}

#[test]
fn memory_goes_ahead_of_a_job_at_a_terminal() {
    goes_with_its_memory("migrate", "pre-copy");
}

#[test]
fn memory_follows_a_job_at_a_terminal() {
    goes_with_its_memory("migrate --post-copy", "post-copy");
}

/// A line that was begun before, lines that are typed while all moves, another size, a key that signals.
#[track_caller]
fn goes_with_its_memory(migrate: &'static str, went: &str) {
    let cluster = moves::cluster_that_moves(3);
    std::fs::write(cluster.path(1).join("memory.py"), MEMORY).expect("written");
    let script = "python3 /cluster/memory.py 32; true";
    let mut job = AtTerminal::start(&cluster, script);
    job.terminal.expect("ready\r\n");
    assert_eq!(job.ties(), "");
    let rows = [40, 30, 35, 24, 40, 30];
    for (node, rows) in WAY.into_iter().chain([1, 2]).zip(rows) {
        job.terminal.send("begxx\x7f\x7fun ");
        job.terminal.expect("un ");
        let moving = cluster.spawn(1, &format!("{migrate} {} {node}", job.pid));
        job.terminal.send("bee\x7f first\n");
        for word in ["second", "third", "fourth"] {
            job.terminal.send(&format!("{word}\n"));
        }
        let moved = moving.wait(DEADLINE);
        assert_eq!(moved.code(), Some(0), "{moved}");
        for line in ["begun be first", "second", "third", "fourth"] {
            job.terminal.expect(&format!("got <{line}> True 0\r\n"));
        }
        let moved = job.file("moved");
        println!("{moved}");
        let words: Vec<&str> = moved.split_whitespace().collect();
        assert_eq!((words[1], words[5]), (&*node.to_string(), went), "{moved}");
        job.terminal.resize(rows, 90);
        job.terminal.expect(&format!("{rows} rows\r\n"));
        job.terminal.send("again\n");
        job.terminal.expect("got <again> True 0\r\n");
    }
    job.terminal.send("\x03");
    job.terminal.expect("KeyboardInterrupt");
}

/// Has a job move to this node, and stops here what gets its pages while some are missing; says which process that is.
const HALF_WAY: &str = r#"
rm -f /cluster/told
(migrate --post-copy "$1" 2; echo $? >/cluster/told) >/dev/null 2>&1 &
until [ -e /cluster/told ]; do
    found=$(pgrep -f '[c]riu lazy-pages') && [ "$(cat "/cluster/proc/$1/where")" = 2 ] || continue
    # While the copy is made pages are needed. The leader of its session has all of this among its arguments.
    pgrep -af '[c]riu restore' | grep -qv lead-session && continue
    kill -STOP "$found" || continue
    until grep -q '^State:.[Tt]' "/proc/$found/status"; do [ -e "/proc/$found" ] || continue 2; done
    echo "$found"
    exit
done
"#;

/// It has another size, and what gets the pages ends with the job.
#[test]
fn a_terminal_is_the_copy_s_before_all_pages_are_there() {
    let cluster = moves::cluster_that_moves(2);
    std::fs::write(cluster.path(1).join("memory.py"), MEMORY).expect("written");
    std::fs::write(cluster.path(1).join("half-way"), HALF_WAY).expect("written");
    let script = "python3 /cluster/memory.py 160; true";
    let mut job = AtTerminal::start(&cluster, script);
    job.terminal.expect("ready\r\n");
    let half_way = |job: &AtTerminal<'_>| {
        let mut fetching = String::new();
        wait_until("a move with pages that are missing", DEADLINE, || {
            job.go(1);
            let script = format!("sh /cluster/half-way {} 2>/dev/null", job.pid);
            fetching = cluster.sh(2, &script).ok();
            !fetching.is_empty()
        });
        fetching
    };
    let fetching = half_way(&job);
    job.terminal.resize(40, 90);
    // By its name: what it was called with is in its memory.
    let size = "stty size <\"/proc/$(pgrep -o -x python3)/fd/0\"";
    wait_until("the new size", DEADLINE, || {
        cluster.sh(2, size).ok() == "40 90"
    });
    job.terminal.send("typed\n");
    cluster.sh(2, &format!("kill -CONT {fetching}")).ok();
    job.terminal.expect("40 rows\r\n");
    job.terminal.expect("got <typed> True 0\r\n");
    wait_until("the end of the move", DEADLINE, || {
        cluster.sh(1, "cat /cluster/told; true").ok() == "0"
    });
    let fetching = half_way(&job);
    cluster.sh(2, &format!("kill -KILL {fetching}")).ok();
    job.terminal.expect("pages of its memory were lost");
    let left = "cd /; pgrep -f '^python3 /cluster/memory.py'; true";
    for number in [1, 2] {
        wait_until("the end of all copies", DEADLINE, || {
            cluster.node(number).sh(left).ok().is_empty()
        });
    }
}

/// What the shell of the owner sees: a program that is stopped by its key and goes on, how it has ended, what it has not read,
/// and the modes that it has left.
#[test]
fn the_owner_s_shell_sees_nothing_of_it() {
    let cluster = moves::cluster_that_moves(3);
    let mut shell = cluster.node(1).terminal(&SHELL);
    shell.send("cd /; PS1='<''>'\n");
    shell.expect("<>");
    let pid_of = |shell: &mut Terminal| {
        shell.expect("pid ");
        let shown = shell.expect(" runs\r\n");
        shown.trim_end_matches(" runs\r\n").to_owned()
    };
    for started in [1, 2] {
        let script = "echo p\"\"id $$ runs; read -r x; echo got $x; exit 7";
        shell.send(&format!("glurun -w {started} bash -c '{script}'\n"));
        let pid = pid_of(&mut shell);
        go(&cluster, "migrate", &pid, 3);
        shell.send("\x1a");
        shell.expect("<>");
        shell.send("fg\n");
        shell.expect("glurun");
        go(&cluster, "migrate", &pid, if started == 1 { 2 } else { 1 });
        // The second line is the shell's.
        shell.send("line\n");
        shell.expect("got line\r\n");
        shell.expect("<>");
        shell.send("echo status $?\n");
        shell.expect("status 7\r\n");
        shell.expect("<>");
        // It ends away from home with something unread, and without an echo.
        let script =
            "stty -echo; echo p\"\"id $$ runs; trap \"exit 9\" USR1; while :; do sleep 0.05; done";
        shell.send(&format!("glurun -w {started} bash -c '{script}'\n"));
        let pid = pid_of(&mut shell);
        shell.send("echo ah");
        go(&cluster, "migrate", &pid, 3);
        shell.send("ead\n");
        cluster.sh(1, &format!("glukill -USR1 {pid}")).ok();
        shell.expect("<>");
        shell.expect("ahead\r\n");
        shell.expect("<>");
        shell.send("stty echo; echo status $?\n");
        shell.expect("status 0\r\n");
        shell.expect("<>");
    }
}

/// Each says so, and goes on unharmed.
#[test]
fn other_terminals_stay() {
    let cluster = moves::cluster_that_moves(2);
    for script in [
        "exec 3</dev/tty; read -r x; echo got $x",
        "exec python3 -c 'import pty; pty.openpty(); print(\"got\", input())'",
    ] {
        let mut job = AtTerminal::start(&cluster, script);
        wait_until("the word", DEADLINE, || job.ties().contains("terminal"));
        let moved = cluster.sh(1, &format!("migrate {} 2", job.pid));
        assert_eq!(moved.code(), Some(1), "{moved}");
        assert!(moved.stderr.contains("it has a terminal"), "{moved}");
        job.terminal.send("line\n");
        job.terminal.expect("got line");
    }
}

/// Its host cannot make the copy: a file is on the first node only. One job goes whole, before the memory of the other most of that goes.
#[test]
fn a_move_that_fails_leaves_the_terminal_as_it_was() {
    let cluster = moves::cluster_that_moves(2);
    cluster
        .sh(1, "mount -t tmpfs none /mnt && echo local > /mnt/here")
        .ok();
    fails_and_goes_on(&cluster, "");
    fails_and_goes_on(
        &cluster,
        "memory=$(head -c 24000000 /dev/urandom | base64 -w 0); ",
    );
}

#[track_caller]
fn fails_and_goes_on(cluster: &Cluster, begin: &str) {
    let script = "exec 3</mnt/here; trap 'stty size; exit' INT; echo ready; while read -r line; do echo \"got <$line>\"; done";
    let mut job = AtTerminal::start(cluster, &format!("{begin}{script}"));
    job.terminal.expect("ready\r\n");
    for (word, how) in [
        ("first", ""),
        ("second", "--post-copy "),
        ("third", ""),
        ("fourth", "--post-copy "),
    ] {
        job.terminal.send("begxx\x7f\x7fun ");
        job.terminal.expect("un ");
        let moved = cluster.sh(1, &format!("migrate {how}{} 2", job.pid));
        assert_eq!(moved.code(), Some(1), "{moved}");
        assert!(moved.stderr.contains("could not be moved now"), "{moved}");
        job.terminal.send(&format!("bee\x7f {word}\n"));
        job.terminal.expect(&format!("{word}\r\n"));
        job.terminal.expect(&format!("got <begun be {word}>\r\n"));
    }
    job.terminal.resize(30, 100);
    job.terminal.send("\x03");
    job.terminal.expect("30 100\r\n");
}

/// It goes on as its checkpoint, and reads again what was typed since.
#[test]
fn a_job_at_a_terminal_goes_back_to_its_checkpoint() {
    let cluster = moves::cluster_that_moves(3);
    let script = "while read -r line; do count=$((count + 1)); echo \"$count: <$line>\"; done";
    let mut job = AtTerminal::start(&cluster, script);
    job.go(2);
    job.terminal.send("one\n");
    job.terminal.expect("1: <one>\r\n");
    job.terminal.send("tw");
    job.terminal.expect("tw");
    let kept = cluster.sh(1, &format!("glu checkpoint {}", job.pid));
    assert_eq!(kept.code(), Some(0), "{kept}");
    job.terminal.send("o\nthree\n");
    job.terminal.expect("2: <two>\r\n");
    job.terminal.expect("3: <three>\r\n");
    let back = cluster.sh(1, &format!("glu restart {} 3", job.pid));
    assert_eq!(back.code(), Some(0), "{back}");
    job.terminal.expect("2: <two>\r\n");
    job.terminal.expect("3: <three>\r\n");
    job.terminal.send("four\n");
    job.terminal.expect("4: <four>\r\n");
}
