//! Jobs at a terminal: each script is typed at a shell that runs its programs itself and at one that runs them on
//! another node, and must show the same.

use tests::{Cluster, DEADLINE, SHELL, Terminal, wait_until};

/// A shell whose `r` runs programs in one of these ways.
const WAYS: [&str; 2] = ["exec", "exec glurun -w 2"];

/// What the shells have as prompt; typed commands never contain it.
const PROMPT: &str = "<>";

/// Two nodes, and a shell on the first for each way.
fn shells(cluster: &Cluster) -> Vec<Terminal> {
    let shells = WAYS.iter().zip(0..).map(|(way, number)| {
        let dir = format!("/cluster/way{number}");
        cluster.sh(1, &format!("mkdir {dir}")).ok();
        let script = format!("#!/bin/sh\n{way} \"$@\"\n");
        let write = format!("printf %s '{script}' > {dir}/r; chmod +x {dir}/r");
        cluster.sh(1, &write).ok();
        let mut shell = cluster.node(1).terminal(&SHELL);
        shell.send(&format!("cd {dir}; PS1='<''>'; export PATH=$PATH:{dir}\n"));
        shell.expect(PROMPT);
        shell
    });
    shells.collect()
}

/// Has both shells do the same and compares what they show.
#[track_caller]
fn same(shells: &mut [Terminal], mut steps: impl FnMut(&mut Terminal) -> String) {
    let shown: Vec<String> = shells.iter_mut().map(&mut steps).collect();
    assert_eq!(shown[0], shown[1], "left: here, right: on another node");
}

#[test]
fn programs_at_a_terminal_behave_as_here() {
    let cluster = Cluster::up(2);
    let mut shells = shells(&cluster);

    // Line editing, the end of input, the status.
    same(&mut shells, |shell| {
        shell.send("r sh -c 'tty >/dev/null && echo ready; exec cat; '; echo $?\n");
        let mut all = shell.expect("ready\r\n");
        shell.send("hexx\x7f\x7fllo\n");
        all += &shell.expect("llo\r\nhello\r\n");
        shell.send("\x04");
        all + &shell.expect(PROMPT)
    });

    // The size, also a new one.
    same(&mut shells, |shell| {
        shell.send("r sh -c 'stty size; trap \"stty size; exit 3\" WINCH; echo ready; while :; do read x; done'\n");
        let mut all = shell.expect("ready\r\n");
        assert!(all.contains("\r\n24 80\r\n"), "{all:?}");
        shell.resize(31, 99);
        all += &shell.expect(PROMPT);
        assert!(all.contains("31 99\r\n"), "{all:?}");
        shell.resize(24, 80);
        all
    });

    // Input without an echo, as a password is asked for; and modes that a program leaves behind.
    same(&mut shells, |shell| {
        shell.send("r bash -c 'read -rs -p \"wo\"\"rd: \" w; echo; echo \"got $w\"'; r stty -echo; echo silent\n");
        let mut all = shell.expect("word: ");
        shell.send("secret\n");
        all += &shell.expect("silent\r\n");
        all += &shell.expect(PROMPT);
        assert_eq!(all.matches("secret").count(), 1, "{all:?}");
        shell.send("stty echo\n");
        all + &shell.expect(PROMPT)
    });

    // A prompt with a line editor of its own, which an interrupt does not end.
    same(&mut shells, |shell| {
        shell.send("r python3 -q\n");
        let mut all = shell.expect(">>> ");
        shell.send("6*7x\x7f\n");
        all += &shell.expect("42\r\n");
        all += &shell.expect(">>> ");
        shell.send("\x03");
        all += &shell.expect("KeyboardInterrupt");
        all += &shell.expect(">>> ");
        shell.send("\x04");
        all + &shell.expect(PROMPT)
    });

    // Interrupts; the status tells the signal.
    same(&mut shells, |shell| {
        shell.send("r sh -c 'echo ready; exec sleep 1000'; echo status $?\n");
        let mut all = shell.expect("ready\r\n");
        shell.send("\x03");
        // An interrupt ends the whole line.
        all += &shell.expect(PROMPT);
        shell.send("echo $?\n");
        all += &shell.expect("130\r\n");
        all += &shell.expect(PROMPT);
        shell.send("r sh -c 'echo ready; exec sleep 1000'; echo status $?\n");
        all += &shell.expect("ready\r\n");
        shell.send("\x1c");
        all += &shell.expect("status 131");
        // A core is dumped here, not there.
        all = all.replace(" (core dumped)", "");
        all + &shell.expect(PROMPT)
    });

    // Stop and go on, in the foreground and in the background.
    same(&mut shells, |shell| {
        shell.send("r bash -c 'echo ready; while read -r x; do echo got $x; done'\n");
        let mut all = shell.expect("ready\r\n");
        shell.send("\x1a");
        all += &shell.expect(PROMPT);
        assert!(all.contains("Stopped"), "{all:?}");
        shell.send("fg\n");
        all += &shell.expect("done'\r\n");
        shell.send("one\n");
        all += &shell.expect("got one\r\n");
        shell.send("\x1a");
        all += &shell.expect(PROMPT);
        shell.send("fg\n");
        all += &shell.expect("done'\r\n");
        shell.send("two\n\x04");
        all += &shell.expect("got two\r\n");
        all += &shell.expect(PROMPT);
        shell.send("stty -a | grep -c 'isig icanon iexten echo '\n");
        all + &shell.expect(PROMPT)
    });
}

/// What a shell does with jobs: their numbers and lines are the shell's, and so the same in both.
#[test]
fn jobs_of_a_shell_go_on_in_the_background() {
    let cluster = Cluster::up(2);
    let mut shells = shells(&cluster);
    // What it writes while in the background shows; what it has done by then it has done once.
    let works = "r bash -c 'echo ready; while [ ! -e go ]; do sleep 0.05; done; echo went >> went; echo \"at\" end'\n";
    for foreground in [false, true] {
        same(&mut shells, |shell| {
            shell.send("rm -f go went\n");
            let mut all = shell.expect(PROMPT);
            shell.send(works);
            all += &shell.expect("ready\r\n");
            shell.send("\x1a");
            all += &shell.expect(PROMPT);
            shell.send("touch go; sleep 1; cat went; jobs\n");
            all += &shell.expect(PROMPT);
            assert!(!all.contains("at end"), "stopped, it does nothing: {all:?}");
            if foreground {
                shell.send("fg\n");
                all += &shell.expect("at end\r\n");
                all += &shell.expect(PROMPT);
            } else {
                shell.send("bg\n");
                all += &shell.expect("at end\r\n");
                // The prompt may have come before that, and the shell may have told the end already, or not, when it waits.
                shell.send("wait; echo status $?\n");
                all = (all + &shell.expect("status 0\r\n")).replace(PROMPT, "");
                let lines = all.split_inclusive('\n');
                all = lines.filter(|line| !line.contains("]+  Done ")).collect();
                shell.expect(PROMPT);
            }
            shell.send("cat went\n");
            all + &shell.expect("went\r\n") + &shell.expect(PROMPT)
        });
    }
    // One that is started there and reads gets its line in the foreground: a local one has stopped, the other just waits.
    for shell in &mut shells {
        shell.send("r bash -c 'read -r x; echo got $x' &\n");
        shell.expect(PROMPT);
        shell.send("fg\n");
        shell.expect("got $x'\r\n");
        shell.send("one\n");
        shell.expect("got one\r\n");
        shell.expect(PROMPT);
    }
}

#[test]
fn full_screen_programs_work() {
    let cluster = Cluster::up(2);
    let mut shells = shells(&cluster);

    same(&mut shells, |shell| {
        shell.send("seq 100 > lines; r less lines; echo status $?\n");
        let mut all = shell.expect("23");
        all += &shell.painted();
        shell.send(" ");
        all += &shell.expect("46");
        all += &shell.painted();
        shell.send("q");
        all + &shell.expect("status 0\r\n") + &shell.expect(PROMPT)
    });

    let mut files = Vec::new();
    for (shell, number) in shells.iter_mut().zip(0..) {
        shell.send("r vim --clean -n text\n");
        shell.painted();
        shell.send("ione line");
        shell.painted();
        shell.send("\x1b");
        shell.painted();
        shell.send(":w\r");
        shell.expect("written");
        // It stops itself, as it reads single keys.
        shell.send("\x1a");
        shell.expect(PROMPT);
        shell.send("fg\n");
        shell.painted();
        shell.send("oanother\x1b");
        shell.painted();
        shell.send(":wq\r");
        shell.expect(PROMPT);
        let file = format!("/cluster/way{number}/text");
        files.push(cluster.sh(1, &format!("cat {file}")).ok());
        shell.send("echo back\n");
        shell.expect("back\r\n");
    }
    assert_eq!(files, ["one line\nanother"; 2]);

    // A terminal within the terminal, whose server leaves the job's session; its status line has the time.
    for shell in &mut shells {
        shell.send("r tmux -f /dev/null -L glu-$$ new-session 'tty > /dev/null && read x && echo $x-$x; sleep 0.2'\n");
        shell.expect("[0]");
        shell.send("typed\n");
        shell.expect("typed-typed");
        shell.expect("[exited]");
        shell.expect(PROMPT);
    }
}

#[test]
fn what_was_typed_ahead_is_there_for_the_next_command() {
    let cluster = Cluster::up(2);
    let mut shells = shells(&cluster);
    for shell in &mut shells {
        shell.send("r sh -c 'echo ready; read x; echo got $x; sleep 1'\n");
        shell.expect("ready\r\n");
        shell.send("one\necho two\necho th");
        shell.expect("got one\r\n");
        shell.expect("two\r\n");
        shell.send("ree\n");
        shell.expect("three\r\n");
    }
}

#[test]
fn the_terminal_is_given_back_on_every_way_out() {
    let cluster = Cluster::up(2);
    let mut shells = shells(&cluster);
    let shell = &mut shells[1];
    let modes = "stty -a | grep -c 'isig icanon iexten echo '";
    for (number, way) in ["kill -TERM", "kill -HUP", "kill -INT"].iter().enumerate() {
        // The job ends by the signal that is sent to glurun from elsewhere.
        shell.send("r sh -c 'stty raw -echo; echo re\"\"ady; exec sleep 1000'\n");
        shell.expect("ready");
        let job = format!("{way} $(pgrep -f '^glurun.*1000')");
        cluster.sh(1, &job).ok();
        shell.expect(PROMPT);
        shell.send(&format!("{modes}; echo round {number}\n"));
        shell.expect(&format!("\r\n1\r\nround {number}"));
        shell.expect(PROMPT);
    }
    // Its host is lost: no word of the modes there.
    shell.send("r sh -c 'stty -echo; echo re\"\"ady; exec sleep 1001'; echo status $?\n");
    shell.expect("ready");
    cluster.kill(2);
    shell.expect("status 125");
    shell.expect(PROMPT);
    shell.send(&format!("{modes}\n"));
    shell.expect("\r\n1\r\n");
    wait_until("the end of glurun", DEADLINE, || {
        cluster.sh(1, "pgrep -f '^glurun'").code() == Some(1)
    });
}

/// What is shown of processes of all nodes at a terminal, in order, and how a program is left.
#[test]
fn top_and_htop_show_all_nodes() {
    let cluster = Cluster::up(2);
    let start = |node| {
        let sleep = "setsid sleep 4242 >/dev/null 2>&1 </dev/null & echo $!";
        cluster.sh(node, sleep).ok()
    };
    let (here, other) = (start(1), start(2));
    let count = "grep -c ^processor /proc/cpuinfo";
    let processors: u32 = cluster.sh(1, count).ok().parse().expect("a number");
    let mut shell = cluster.node(1).terminal(&[
        "env",
        "LC_ALL=C",
        "HTOPRC=/dev/null",
        "glush",
        "-c",
        "exec bash --noprofile --norc --noediting -i",
    ]);
    shell.resize(70, 132);
    shell.send("PS1='<''>'\n");
    shell.expect(PROMPT);
    let in_order = |screen: &str, [first, second]: [&str; 2]| {
        let at = |pid: &str| screen.find(&format!("{pid} "));
        assert!(at(first).is_some() && at(first) < at(second), "{screen}");
    };

    shell.send("top -o PID\n");
    shell.expect("COMMAND");
    in_order(&shell.painted(), [&other, &here]);
    // A line for each processor of each node.
    shell.send("1");
    let last = format!("%Cpu{}", 2 * processors - 1);
    shell.expect(&last);
    shell.send("q");
    shell.expect(PROMPT);

    shell.send("htop --no-color --sort-key PID --filter 'sleep 4242'\n");
    let screen = shell.expect("F10");
    in_order(&screen, [&here, &other]);
    // A meter for each of them: without what moves the cursor and colours, its number and the left end of its bar.
    let mut plain = screen.split("\x1b[").map(|part| {
        part.trim_start_matches(|it: char| it.is_ascii_digit() || it == ';' || it == '?')
            .get(1..)
            .unwrap_or_default()
    });
    let plain = plain.by_ref().collect::<String>().replace('\x0f', "");
    for processor in 0..2 * processors {
        assert!(
            plain.contains(&format!("{processor}[")),
            "{processor}: {screen}"
        );
    }
    shell.send("q");
    shell.expect(PROMPT);
    shell.send("echo status $?\n");
    shell.expect("status 0\r\n");
}
