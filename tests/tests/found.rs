//! A cluster as `glu init` founds it, with the daemon as systemd starts it.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use tests::{DEADLINE, binary, scratch_dir, wait_until};

/// A daemon in namespaces of its own, which ends with it.
struct Daemon(Child);

impl Daemon {
    fn start(config: &Path, notify: &Path) -> Self {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]);
        unshare.arg(binary("glud")).arg("--config").arg(config);
        Self(
            unshare
                .env("NOTIFY_SOCKET", notify)
                .spawn()
                .expect("unshare runs"),
        )
    }

    /// Returns the pid of the daemon itself.
    fn glud(&self) -> u32 {
        let unshare = self.0.id();
        let path = format!("/proc/{unshare}/task/{unshare}/children");
        let children = fs::read_to_string(path).expect("it lives");
        children.trim().parse().expect("it has one child")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The paths that differ from /etc/glu, /var/lib/glu and so on, as nothing outside the checkout is touched.
fn elsewhere(etc: &Path, dir: &Path) -> PathBuf {
    let path = etc.join("glud.toml");
    let text = fs::read_to_string(&path).expect("glu init has written it");
    let of = |name: &str| dir.join(name).display().to_string();
    let tls = |name: &str| etc.join(name).display().to_string();
    let text = format!(
        "state_dir = {:?}\nmount_point = {:?}\ncontrol_socket = {:?}\njobs_socket = {:?}\n{text}\n\
         [tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
        of("state"),
        of("cluster"),
        of("glud.sock"),
        of("jobs.sock"),
        tls("ca.pem"),
        tls("node.pem"),
        tls("node.key"),
    );
    fs::write(&path, text).expect("written");
    path
}

#[test]
fn a_founded_node_serves_and_systemd_is_told() {
    let dir = scratch_dir().join(format!("found-{}", std::process::id()));
    fs::create_dir_all(dir.join("cluster")).expect("made");
    let port = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let node = format!("solo={}", port.expect("a free port"));
    let said = run(Command::new(binary("glu"))
        .args(["init", "lab"])
        .arg(dir.join("lab"))
        .arg(&node));
    assert!(said.contains("copy it to solo as /etc/glu"), "{said}");
    let config = elsewhere(&dir.join("lab/solo"), &dir);

    let notify = dir.join("notify");
    let systemd = UnixDatagram::bind(&notify).expect("bound");
    systemd.set_read_timeout(Some(DEADLINE)).expect("set");
    let mut daemon = Daemon::start(&config, &notify);
    let mut told = [0; 64];
    let len = systemd.recv(&mut told).expect("systemd is told in time");
    assert_eq!(&told[..len], b"READY=1\n");

    let status = ["status", "--socket"];
    let said = run(Command::new(binary("glu"))
        .args(status)
        .arg(dir.join("glud.sock")));
    assert!(
        said.starts_with("node 1, serving; leader 1; voters 1"),
        "{said}"
    );
    let glud = daemon.glud();
    let tree = PathBuf::from(format!(
        "/proc/{glud}/root{}",
        dir.join("cluster").display()
    ));
    fs::write(tree.join("f"), "kept").expect("written");
    assert_eq!(fs::read(tree.join("f")).expect("read"), b"kept");

    run(Command::new("kill").args(["-TERM", &glud.to_string()]));
    wait_until("the end of the daemon", DEADLINE, || {
        daemon.0.try_wait().expect("waits").is_some()
    });
    assert!(daemon.0.wait().expect("waits").success());
    fs::remove_dir_all(dir).expect("removed");
}
