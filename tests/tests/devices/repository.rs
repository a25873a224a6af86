//! A file system on the disk of another node: a real repository, and what is left of it when that node dies.

use super::{Disk, LONG, TERM, open_classes};
use std::fs;
use std::time::Instant;
use tests::{Cluster, wait_until};

/// Mounts the disk at `$at` through a loop device `$near`, and takes both away at the end, however that is.
fn mounted(remote: &str, script: &str) -> String {
    format!(
        "set -e; at=$(mktemp -d /tmp/glu-mnt-XXXXXX); near=$(losetup --find --show {remote})
         trap 'cd /; umount $at 2>/dev/null || umount -l $at; losetup -d $near; rmdir $at' EXIT
         mount $near $at; {script}"
    )
}

#[test]
fn a_repository_on_the_disk_of_another_node() {
    let cluster = Cluster::up(2);
    open_classes(&cluster, 2, &["block"]);
    let disk = Disk::new(&cluster, "repository", 256 << 20);
    let remote = disk.remote();
    let image = disk.backing.display();
    let run = |node, script: &str| cluster.node(node).sh_within(5 * LONG, script).ok();
    // The project's own, or one of its sources where they came without.
    let project = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let source = cluster.state().join("source");
    let source = source.display();
    let git = "git -c user.name=a -c user.email=a@b -c safe.directory='*'";
    run(
        2,
        &format!(
            "{git} clone -q --bare --no-local --single-branch {project} {source} 2>/dev/null || {{
             rm -rf {source}; set -e
             cp -r {project}/gdev {source}; cd {source}; {git} init -q; {git} add .; {git} commit -qm one; }}"
        ),
    );
    run(1, &format!("mkfs.ext4 -q -F {remote}"));
    let clone = format!(
        "{git} clone -q --no-local --single-branch {source} $at/clone; cd $at/clone; {git} fsck --strict 2>&1
         {git} status --porcelain; {git} rev-parse HEAD; {git} ls-files -s | sha256sum"
    );
    let cloned = run(1, &mounted(&remote, &clone));
    // What each node reads of the disk, and what lies under it.
    run(1, &format!("fsck.ext4 -fn {remote} >/dev/null 2>&1"));
    run(1, &format!("cmp {remote} {image}"));
    run(
        2,
        &format!(
            "cmp {} {image} && fsck.ext4 -fn {image} >/dev/null 2>&1",
            disk.device
        ),
    );
    let again = format!(
        "cd $at/clone; {git} fsck --strict 2>&1; {git} status --porcelain; {git} rev-parse HEAD
         {git} ls-files -s | sha256sum"
    );
    let near = mounted(&format!("-r {image}"), &again).replace("mount $near", "mount -o ro $near");
    assert_eq!(run(2, &near), cloned);
}

#[test]
fn what_was_synced_in_a_file_system_outlives_its_node() {
    let cluster = Cluster::up(2);
    open_classes(&cluster, 2, &["block"]);
    let disk = Disk::new(&cluster, "killed", 64 << 20);
    let remote = disk.remote();
    let run = |node, script: &str| cluster.node(node).sh_within(5 * LONG, script).ok();
    run(1, &format!("mkfs.ext4 -q -F {remote}"));
    // Each name that is told is that of a file which was synced, with its directory.
    let writes = "for i in $(seq 100000); do
          letter=$(printf \"\\\\$(printf %o $((i % 26 + 97)))\")
          head -c $((i % 7 * 3000 + 1)) /dev/zero | tr '\\0' $letter >$at/$i || break
          sync $at/$i $at || break; echo $i
        done 2>/dev/null; true";
    let writer = cluster.spawn(1, &mounted(&remote, writes));
    let told = || writer.stdout().lines().count();
    wait_until("thirty files", LONG, || told() >= 30);
    cluster.kill(2);
    let died = Instant::now();
    let synced = writer.wait(LONG).to_string();
    // The loop device of the other node tries on for a moment; the error itself comes within the term.
    assert!(died.elapsed() < 2 * TERM, "{:?}", died.elapsed());
    let synced = synced
        .lines()
        .filter_map(|line| line.trim_start_matches("stdout: ").parse::<u32>().ok());
    let synced = Vec::from_iter(synced);
    assert!(synced.len() >= 30, "{synced:?}");
    cluster.start(2);
    let check = synced.iter().map(|number| {
        let (size, letter) = (number % 7 * 3000 + 1, char::from(b'a' + u8::try_from(number % 26).expect("small")));
        format!("test \"$(tr -d {letter} <$at/{number} | wc -c) $(stat -c %s $at/{number})\" = '0 {size}'")
    });
    let check = Vec::from_iter(check).join("\n");
    let image = disk.backing.display();
    run(
        2,
        &format!("fsck.ext4 -fp {image} >/dev/null 2>&1 || test $? -le 1"),
    );
    let script = cluster.state().join("check.sh");
    fs::write(&script, check).expect("written");
    run(
        2,
        &mounted(&image.to_string(), &format!(". {}", script.display())),
    );
}
