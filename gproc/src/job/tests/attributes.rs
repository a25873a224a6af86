//! As whom, where and in what a program runs, and how it is found.

use super::*;
use crate::job::admission::{Admission, Admitted};
use crate::job::limits::Limits;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_has_its_owners_attributes() {
    let cluster = Cluster::new();
    let text = "pwd; umask; id -u; id -g; id -G; ulimit -Sn; ulimit -Hn; nice; echo $A";
    let mut request = script(THERE, text);
    request.cwd = Bytes::from_static(b"/usr/bin");
    request.umask = 0o27;
    request.env.push(Bytes::from_static(b"A=some thing"));
    let mut job = cluster.start_vouched(vouched(request)).await;
    assert_eq!(job.end().await, End::Exited(0));
    assert_eq!(
        job.text(),
        "/usr/bin\n0027\n12345\n23456\n23456 34567 45678\n100\n200\n5\nsome thing\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_may_do_what_its_user_may() {
    let cluster = Cluster::new();
    let mut job = cluster
        .start_vouched(vouched(script(THERE, "cat /etc/shadow")))
        .await;
    assert_eq!(job.end().await, End::Exited(1));
    let dir = cluster.dir.path().join("private");
    std::fs::create_dir(&dir).expect("makes a directory");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&dir, private).expect("closes it");
    let mut request = script(THERE, "true");
    request.cwd = Bytes::from(dir.display().to_string());
    let mut job = cluster.start_vouched(vouched(request)).await;
    let (kind, message) = failed(job.end().await);
    assert_eq!(kind, Failure::Cluster);
    assert!(message.contains("Permission denied"), "{message}");
}

fn limits(mem_bytes: Option<u64>, cpus: Option<u32>) -> Vec<Extra> {
    vec![Extra::Limits(Limits { mem_bytes, cpus })]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j7_what_uses_too_much_memory_is_ended() {
    let cluster = Cluster::new();
    for node in [HERE, THERE] {
        // tail keeps a line to its end.
        let takes = |mib: u32| {
            let text = format!("head -c {mib}M /dev/zero | tail -n 1 | wc -c");
            script(node, &text)
        };
        let within = || limits(Some(64 << 20), None);
        let mut job = cluster.start_with(takes(10), within()).await;
        match job.end().await {
            End::Failed { kind, message } => {
                // Only where no controller can be had is this the right answer.
                assert_eq!(kind, Failure::Cluster);
                let told = format!("node {node} does not take the job: it cannot keep --mem: ");
                assert!(message.starts_with(&told), "{message}");
                let why = message.contains("controller") || message.contains("cgroups");
                assert!(why, "{message}");
                continue;
            }
            end => assert_eq!(end, End::Exited(0)),
        }
        assert_eq!((&*job.text(), job.ended_for_memory), ("10485760\n", 0));

        let mut job = cluster.start_with(takes(200), within()).await;
        assert_eq!(job.end().await, End::Exited(0), "the shell goes on");
        let found = (job.text(), job.ended_for_memory);
        assert_eq!(found, ("0\n".into(), 1), "on {node}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j7_a_job_has_the_time_of_so_many_processors() {
    let cluster = Cluster::new();
    let busy = "do { $i++ for 1..9999; ($u, $s) = times } while $u + $s < 0.4";
    let text = format!("perl -e 'for (1, 2) {{ fork or do {{ {busy}; exit }} }} 1 while wait > 0'");
    let text = &*text;
    for node in [HERE, THERE] {
        let start = Instant::now();
        let mut job = cluster
            .start_with(script(node, text), limits(None, Some(1)))
            .await;
        match job.end().await {
            End::Failed { message, .. } => assert!(message.contains("--cpus"), "{message}"),
            end => {
                assert_eq!(end, End::Exited(0));
                let took = start.elapsed();
                let least = Duration::from_millis(700);
                assert!(took > least, "0.8 s of one processor took {took:?}");
            }
        }
    }
}

/// Node 2 says whom it is for; home has never heard of it.
struct Choosy(Admitted);

#[async_trait]
impl Admission for Choosy {
    async fn admits(&self, _: NodeId, _: &Credentials, guest: bool) -> Result<Admitted, String> {
        assert!(guest, "it comes from node 1");
        Ok(self.0.clone())
    }

    async fn stay(&self, _: NodeId) -> Result<bool, String> {
        Ok(false)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j5_a_node_refuses_whom_it_is_not_for_whatever_home_believes() {
    for (says, why) in [
        (Admitted::Yes, None),
        (Admitted::Closed, Some("node 2 is closed to user 12345")),
        (
            Admitted::Reserved("demo".into()),
            Some("node 2 is reserved for others than user 12345 (`demo`)"),
        ),
        (
            Admitted::Blocked,
            Some("node 2 takes no processes of other nodes"),
        ),
        (
            Admitted::InUse,
            Some("while somebody works at it: /cluster/proc/cluster/node2/in_use is 1"),
        ),
        (
            Admitted::NoRoot,
            Some("node 2 takes no processes of other nodes' root"),
        ),
        (
            Admitted::NoAccount,
            Some("node 2 has no account for user 12345"),
        ),
    ] {
        let cluster = Cluster::new();
        cluster.agents[1].ask_for_rights(Arc::new(Choosy(says)));
        let mut job = cluster.start_vouched(vouched(script(THERE, "true"))).await;
        match why {
            None => assert_eq!(job.end().await, End::Exited(0)),
            Some(why) => {
                let (kind, message) = failed(job.end().await);
                assert_eq!(kind, Failure::Cluster);
                assert!(message.contains(why), "{message}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_tells_who_asks() {
    let cluster = Cluster::new();
    let own = std::process::Command::new("id").arg("-G").output();
    let own = String::from_utf8(own.expect("id runs").stdout).expect("numbers");
    let mut job = cluster.start(script(THERE, "id -G; ulimit -Hn")).await;
    assert_eq!(job.end().await, End::Exited(0));
    let (_, files) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("own limit");
    assert_eq!(job.text(), format!("{own}{files}\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_run_is_told() {
    let cluster = Cluster::new();
    let dir = cluster.dir.path().to_owned();
    std::fs::write(dir.join("data"), "no program").expect("writes");
    let at = |name: &str| dir.join(name).display().to_string();
    for node in [HERE, THERE] {
        for (argv0, expected, message) in [
            ("no-such-program", Failure::NotFound, "No such file"),
            ("/no/such/program", Failure::NotFound, "No such file"),
            ("", Failure::NotFound, "no program"),
            (&*at("data"), Failure::NotExecutable, "Permission denied"),
            ("/etc", Failure::NotExecutable, "Permission denied"),
        ] {
            let mut job = cluster.start(program(node, &[argv0])).await;
            let (kind, text) = failed(job.end().await);
            assert_eq!(kind, expected, "{argv0}");
            assert!(text.contains(message), "{text}");
        }
    }
    let mut request = script(THERE, "true");
    request.cwd = Bytes::from_static(b"/no/such/directory");
    let (kind, text) = failed(cluster.start(request).await.end().await);
    assert_eq!(kind, Failure::Cluster);
    assert!(
        text.starts_with("cannot enter /no/such/directory on node 2: No such"),
        "{text}"
    );
    let mut job = cluster.start(script(NodeId(9), "true")).await;
    let (kind, text) = failed(job.end().await);
    assert_eq!(kind, Failure::Cluster);
    assert!(text.contains("node 9 is not in the cluster"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_found_in_the_jobs_own_path() {
    let cluster = Cluster::new();
    let tool = cluster.dir.path().join("tool");
    // Without an interpreter: the shell runs it, as it would here.
    std::fs::write(&tool, "echo tool $1; exit 6").expect("writes");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&tool, executable).expect("makes it executable");
    let mut request = program(THERE, &["tool", "arg"]);
    request.env = vec![Bytes::from_static(b"PATH=/no/such:")];
    request.cwd = Bytes::from(cluster.dir.path().display().to_string());
    let mut job = cluster.start(request).await;
    assert_eq!(job.end().await, End::Exited(6));
    assert_eq!(job.text(), "tool arg\n");
}
