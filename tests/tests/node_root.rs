//! `/cluster/node<N>/root`: what a node exports of its own directories, used from another one.
//!
//! Needs root, /dev/fuse, git, rsync, tar, python3, attr.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tests::{Cluster, wait_until};

const LONG: Duration = Duration::from_secs(60);
/// `lease_term_ms` of `glu dev`: what the end of a node may take to be seen.
const TERM: Duration = Duration::from_secs(4);
const STRANGER: &str = "setpriv --reuid 4321 --regid 4321";

/// Two nodes, of which the second exports a directory.
struct World {
    cluster: Cluster,
    /// On its owner.
    near: PathBuf,
}

impl World {
    fn new(nodes: u32, read_only: bool) -> Self {
        let cluster = Cluster::up(nodes);
        let near = cluster.state().join("exported");
        fs::create_dir(&near).expect("made");
        fs::write(cluster.state().join("secret"), "secret").expect("written");
        let empty = cluster.sh(1, "ls -A /cluster/node2/root").ok();
        assert_eq!(empty, "", "nothing by default");
        cluster.export(2, &near, read_only);
        Self { cluster, near }
    }

    /// Returns where the directory is for the nodes.
    fn far(&self) -> String {
        format!("/cluster/node2/root{}", self.near.display())
    }

    /// Returns a path in it that node 1 makes of that, as this machine sees it.
    fn open_far(&self, name: &str, options: &OpenOptions) -> std::io::Result<File> {
        let below = self.near.strip_prefix("/").expect("absolute");
        let root = self.cluster.path(1).join("node2/root");
        options.open(root.join(below).join(name))
    }

    /// Runs a script in the directory as node 1 sees it, with a copy of the project in reach.
    fn far_sh(&self, script: &str) -> String {
        let script = format!("set -e; cd {}; {script}", self.far());
        self.cluster.node(1).sh_within(5 * LONG, &script).ok()
    }

    /// Runs a script in the directory on its owner.
    fn near_sh(&self, script: &str) -> String {
        let script = format!("set -e; cd {}; {script}", self.near.display());
        self.cluster.node(2).sh_within(5 * LONG, &script).ok()
    }

    /// Runs a script at both, and checks that it says the same.
    #[track_caller]
    fn same(&self, script: &str) -> String {
        let far = self.far_sh(script);
        assert_eq!(far, self.near_sh(script), "{script}");
        far
    }
}

#[test]
fn programs_work_on_the_files_of_another_node() {
    let world = World::new(2, false);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../gdev");
    // Copied there with all that a file has.
    world.near_sh(
        "mkdir made; cd made; echo a >a; ln a b; ln -s a l; ln -s /nowhere/at/all d; mkfifo p; \
         mkdir -m 2750 s",
    );
    world.near_sh(
        "cd made; touch -d @1000000000.123456789 a; chmod 640 a; chown 7:8 s; \
         setfattr -n user.x -v y a; truncate -s 1M holes",
    );
    world.far_sh("cp -a made copy");
    let all = "find . -printf '%P %y %m %U %G %n %l ' \\( -type f -printf '%s %T@' -o -true \\) -printf '\\n' | sort";
    let made = world.same(&format!("cd made; {all}"));
    assert_eq!(made.lines().count(), 8, "{made}");
    assert_eq!(world.same(&format!("cd copy; {all}")), made);
    assert_eq!(world.same("getfattr --only-values -n user.x copy/a"), "y");
    world.same("stat -c %i:%h copy/a copy/b | sort -u | wc -l | grep -x 1");
    // A tree of the project, both ways.
    world.far_sh(&format!("cp -a {source} tree; diff -r {source} tree"));
    let compare = "rsync -aHXn --checksum --delete --itemize-changes";
    let told = world.far_sh(&format!("{compare} {source}/ tree/"));
    assert_eq!(told, "", "nothing differs");
    let packed = "tar --sort=name --numeric-owner -cf - tree made | sha256sum";
    world.same(packed);
    world.far_sh("tar -cf - tree | (mkdir /cluster/back; cd /cluster/back; tar -xf -)");
    world.far_sh(&format!("diff -r {source} /cluster/back/tree"));
    // Git, with its locks, renames and mapped packs.
    let id = "-c user.name=a -c user.email=a@b -c core.fsync=all -c safe.directory='*'";
    world.far_sh(&format!(
        "cd tree; git init -q; git {id} add .; git {id} commit -qm one; git {id} gc -q; git {id} fsck --strict"
    ));
    world.same(&format!(
        "cd tree; git {id} status --porcelain; git {id} log --format=%H"
    ));
    world.near_sh("echo more >>tree/Cargo.toml; echo new >tree/new");
    let status = format!("cd tree; git {id} status --porcelain");
    assert_eq!(world.far_sh(&status), " M Cargo.toml\n?? new");
    world.far_sh(&format!(
        "git {id} clone -q tree clone; diff -r tree/src clone/src"
    ));
    // Programs, maps, room.
    world.near_sh("cp /bin/true program; cp -r clone/src text");
    world.far_sh("./program");
    let mapped = "python3 -c 'import mmap; f = open(\"text/lib.rs\", \"rb\"); \
                  m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print(m[:].count(b\"e\"))'";
    world.same(mapped);
    world.same("stat -f -c '%s %b' . | awk '{print $1 * $2}'");
    world.far_sh("dd if=/dev/urandom of=large bs=1M count=32 conv=fsync 2>/dev/null");
    world.same("sha256sum large");
    world.far_sh(
        "rm -r tree clone copy made text large program; rmdir /cluster/back 2>/dev/null || :",
    );
    assert_eq!(world.same("ls -A"), "");
}

/// Each line is done by a stranger in a new directory on the owner and from the other node: he gets the same.
#[test]
fn a_stranger_gets_what_he_would_get_on_the_owner() {
    let world = World::new(2, false);
    let acl = "0x02000000010006 00ffffffff 02000400e1100000 04000000ffffffff 10000400ffffffff 20000000ffffffff";
    let acl = acl.replace(' ', "");
    let prepare = format!(
        "umask 022; mkdir -m 755 w; cd w; echo p >private; chmod 600 private; \
         echo g >group; chgrp 4242 group; chmod 640 group; mkdir -m 700 closed; echo x >closed/x; mkdir -m 711 dark; echo y >dark/y; \
         mkdir -m 1777 sticky; echo s >sticky/s; \
         mkdir -m 777 open; echo mine >open/mine; chown 4321 open/mine; echo r >open/r; cp /bin/true open/xonly; \
         chmod 711 open/xonly; echo acl >acl; setfattr -n system.posix_acl_access -v {acl} acl; \
         cp /usr/bin/id open/setid; chmod 4755 open/setid; mknod -m 666 open/null c 1 3"
    );
    let lines = [
        "cat private",
        "echo x >private",
        "cat group",
        "cat acl",
        "echo x >acl",
        "ls closed",
        "cat closed/x",
        "ls dark",
        "cat dark/y",
        "rm dark/y",
        "touch new",
        "mkdir new",
        "rm private",
        "mv private open/private",
        "rm -f sticky/s",
        "mv sticky/s sticky/t",
        "touch sticky/own && rm sticky/own && echo done",
        "chmod 600 open/mine && stat -c %a open/mine",
        "chown 0 open/mine",
        "chmod 600 open/r",
        "touch -d @5 open/r",
        "touch -d @5 open/mine && stat -c %Y open/mine",
        "echo more >>open/mine && cat open/mine",
        "echo more >>open/r",
        "truncate -s 1 open/r",
        "ln open/r open/hard && stat -c %h open/r",
        "ln open/mine open/hard2 && stat -c %h open/mine",
        "cat open/xonly",
        "open/xonly && echo ran",
        "umask 077; echo u >open/u && stat -c '%a %u %g' open/u",
        "mkdir open/d && mv open/r open/d/r && cat open/d/r",
        "mknod open/dev c 1 3",
        "mkfifo open/pipe && stat -c %F open/pipe",
        "setfattr -n user.a -v b open/mine && getfattr --only-values -n user.a open/mine",
        "setfattr -n user.a -v b open/d/r",
        "setfattr -n trusted.a -v b open/mine",
        "rmdir open/d",
        "rm -r open/d && echo gone",
    ];
    for groups in ["--clear-groups", "--groups 7,4242"] {
        world.near_sh(&prepare);
        let run = |dir: String, node| {
            let mut script = format!("cd {dir}/w\n");
            for line in lines {
                // The words of the shells and programs, without where they were.
                let line = format!(
                    "{STRANGER} {groups} sh -c {line:?} 2>&1 | sed 's/.*: //'; echo \"= {line}\"\n",
                    line = line.replace('"', "'").replace('$', "\\$")
                );
                script.push_str(&line);
            }
            let told = world.cluster.node(node).sh_within(5 * LONG, &script).ok();
            world.near_sh("rm -rf w");
            told
        };
        let near = run(world.near.display().to_string(), 2);
        world.near_sh(&prepare);
        let far = run(world.far(), 1);
        let differ = near.lines().zip(far.lines());
        let differ = Vec::from_iter(differ.filter(|(near, far)| near != far));
        assert!(near.lines().count() == far.lines().count(), "{near}\n{far}");
        assert!(differ.is_empty(), "{differ:?}\n{near}\n{far}");
        assert!(near.contains("Permission denied") && near.contains("= cat group"));
    }
    // Without effect: devices, and bits that change the user.
    world.near_sh(&prepare);
    let shown = world.far_sh("stat -c '%F %a' w/open/setid w/open/null");
    assert_eq!(shown, "regular file 755\nregular empty file 666");
    let ran = format!("{STRANGER} --clear-groups w/open/setid -u");
    assert_eq!(world.far_sh(&ran), "4321");
    let device = world.far_sh("getfattr --only-values -n user.glu.device w/open/null");
    assert_eq!(device, "c 1:3");
    let opened = world
        .cluster
        .sh(1, &format!("cat {}/w/open/null", world.far()));
    assert!(opened.to_string().contains("Permission denied"), "{opened}");
    world.far_sh("chmod 6755 w/open/mine");
    assert_eq!(world.near_sh("stat -c %a w/open/mine"), "755");
}

#[test]
fn no_link_leads_out_of_what_is_exported() {
    let world = World::new(2, false);
    world.near_sh(
        "ln -s ../secret up; mkdir d; ln -s .. d/top; ln -s .. above; echo in >in; ln -s in link",
    );
    assert_eq!(world.far_sh("cat link d/top/in"), "in\nin");
    for path in ["up", "above/secret", "../secret"] {
        let out = world.cluster.sh(1, &format!("cat {}/{path}", world.far()));
        assert!(out.to_string().contains("No such file"), "{path}: {out}");
    }
    let around = world.far_sh("ls -A .. above; mkdir ../new 2>&1 || :");
    assert_eq!(around.matches("exported").count(), 2, "{around}");
    assert!(around.contains("Read-only"), "{around}");
    // What is mounted below is not shown.
    world.near_sh("mkdir mounted; mount -t tmpfs none mounted; touch mounted/hidden");
    let mounted = world.far_sh("ls -A; ls mounted 2>&1 || :");
    world.near_sh("umount mounted");
    assert!(
        !mounted.contains("hidden") && mounted.contains("No such file"),
        "{mounted}"
    );
    assert!(world.far_sh("ls -A").contains("mounted"));
}

#[test]
fn what_is_changed_beside_is_seen_at_once() {
    let world = World::new(2, false);
    let near = world.near.join("file");
    fs::write(&near, "0").expect("written");
    let mut held = world
        .open_far("file", OpenOptions::new().read(true).write(true))
        .expect("opened");
    for round in 1..200_u32 {
        let text = "x".repeat(usize::try_from(round).expect("small") * 37) + &round.to_string();
        fs::write(&near, &text).expect("written");
        // By the open file, by its name, and by its size.
        let mut seen = String::new();
        held.seek(SeekFrom::Start(0)).expect("sought");
        held.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, text);
        assert_eq!(held.metadata().expect("known").len(), text.len() as u64);
        let mut again = world
            .open_far("file", OpenOptions::new().read(true))
            .expect("opened");
        seen.clear();
        again.read_to_string(&mut seen).expect("read");
        assert_eq!(seen, text);
        // And the other way.
        held.write_at(b"!", 0).expect("written");
        assert_eq!(fs::read(&near).expect("read")[0], b'!');
        // Names come and go.
        let (old, new) = (format!("n{}", round - 1), format!("n{round}"));
        drop(fs::rename(world.near.join(&old), world.near.join(&new)));
        if round == 1 {
            fs::write(world.near.join(&new), "").expect("written");
        }
        let read = OpenOptions::new().read(true).to_owned();
        assert!(world.open_far(&new, &read).is_ok());
        assert!(world.open_far(&old, &read).is_err());
    }
    fs::set_permissions(&near, fs::Permissions::from_mode(0o604)).expect("set");
    assert_eq!(
        held.metadata().expect("known").permissions().mode() & 0o777,
        0o604
    );
    fs::remove_file(&near).expect("removed");
    assert!(held.metadata().expect("it is open").len() > 0);
    // Appends of both nodes stand one behind the other.
    world.near_sh(": >log");
    let append = "for i in $(seq 300); do echo $0$i >>log; done";
    let far = format!("cd {}; sh -c '{append}' far", world.far());
    let far = world.cluster.spawn(1, &far);
    world.near_sh(&format!("sh -c '{append}' near"));
    far.wait(LONG).ok();
    assert_eq!(world.same("sort -u log | wc -l"), "600");
    // Locks hold between a node and the owner.
    world.near_sh(": >lock");
    let holder = format!(
        "flock {}/lock sh -c 'touch {}/held; read x'",
        world.far(),
        world.far()
    );
    let holder = world.cluster.node(1).spawn(&format!(
        "(sleep 1000 & echo $! >/cluster/sleeper; wait) | {holder}"
    ));
    let held = world.near.join("held");
    wait_until("the lock to be taken", LONG, || held.exists());
    let near = world
        .cluster
        .sh(2, &format!("flock -n {}/lock true", world.near.display()));
    assert!(!near.status.success(), "it is taken");
    world.cluster.sh(1, "kill $(cat /cluster/sleeper)").ok();
    drop(holder.wait(LONG));
    world.near_sh("flock -n lock true");
}

#[test]
fn an_owner_that_is_cut_off_is_an_error_in_time() {
    let world = World::new(3, false);
    world.near_sh("echo before >file");
    let options = OpenOptions::new().read(true).write(true).to_owned();
    let mut file = world.open_far("file", &options).expect("opened");
    world.cluster.cut(2);
    let cut = Instant::now();
    let failed = file.read(&mut [0; 9]).expect_err("cut off");
    let errno = failed.raw_os_error();
    assert!(matches!(errno, Some(libc::EIO | libc::ENODEV)), "{failed}");
    let failed = file.write(b"lost").expect_err("cut off");
    assert!(
        matches!(failed.raw_os_error(), Some(libc::EIO | libc::ENODEV)),
        "{failed}"
    );
    let looked = world.open_far("file", &options).expect_err("cut off");
    assert_eq!(looked.raw_os_error(), Some(libc::EIO));
    assert!(cut.elapsed() < TERM, "{:?}", cut.elapsed());
    // The directory of the node is there, and the others work.
    world
        .cluster
        .sh(1, "test -d /cluster/node2/root && ls /cluster/node3/root")
        .ok();
    world.cluster.heal(2);
    let mut again = None;
    wait_until("the file is back", LONG, || {
        again = world.open_far("file", &options).ok();
        again.is_some()
    });
    let mut text = String::new();
    again
        .expect("opened")
        .read_to_string(&mut text)
        .expect("read");
    assert_eq!(text, "before\n", "nothing was done twice or late");
}

#[test]
fn what_is_exported_read_only_stays_as_it_is() {
    let world = World::new(2, true);
    world.near_sh("echo text >file; mkdir d");
    let before = world.near_sh("ls -lR --time-style=full-iso");
    for change in [
        "echo x >file",
        "rm file",
        "mkdir e",
        "mv file f",
        "touch file",
        "chmod 600 file",
        "ln file g",
        "rmdir d",
    ] {
        let out = world
            .cluster
            .sh(1, &format!("cd {}; {change}", world.far()));
        assert!(
            out.to_string().contains("Read-only file system"),
            "{change}: {out}"
        );
    }
    assert_eq!(world.far_sh("cat file"), "text");
    assert_eq!(world.near_sh("ls -lR --time-style=full-iso"), before);
}
