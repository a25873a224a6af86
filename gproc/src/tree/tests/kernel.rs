use super::*;
use crate::text;

/// Returns the kernel threads of this machine.
fn threads_here() -> BTreeSet<i32> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let entries = std::fs::read_dir("/proc").expect("mounted");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_thread = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        let flags = stat.ok().and_then(|stat| {
            let behind_name = stat.rsplit_once(") ")?.1;
            behind_name.split(' ').nth(6)?.parse::<u64>().ok()
        });
        flags.is_some_and(|flags| flags & PF_KTHREAD != 0)
    };
    pids.filter(is_thread).collect()
}

/// This machine stands for two nodes: each has kernel threads of its own, under numbers of its own.
#[tokio::test]
async fn kernel_threads_are_shown_once_for_each_node() {
    let net = MemNet::default();
    let nodes = [1, 2].map(|id| {
        let agent = Arc::new(ProcAgent::new(NodeId(id), "/proc"));
        let (transport, router) = net.join(NodeId(id));
        router.register(ServiceId::Process, Arc::<ProcAgent>::clone(&agent));
        (agent, transport, router)
    });
    let (agent, transport, _) = &nodes[0];
    let tree = ProcTree::new(Arc::<MemTransport>::clone(transport), Arc::clone(agent));
    let before = threads_here();
    let names = tree.ls(READER, ProcTree::ROOT, 100_000).await;
    let names = names.expect("listed");
    for thread in before.intersection(&threads_here()) {
        for node in [1, 2] {
            let pid = ClusterPid::of(NodeId(node), *thread).expect("a pid");
            let shown = names.iter().filter(|name| **name == pid.to_string());
            assert_eq!(shown.count(), 1, "{pid}");
            let read = async |file| tree.cat(READER, &format!("{pid}/{file}")).await;
            let stat = read("stat").await.expect("read");
            let comm = text::comm(stat.as_bytes()).expect("a name");
            assert!(!comm.is_empty(), "{stat}");
            let parent = stat.rsplit_once(") ").expect("a name").1;
            let parent: i32 = parent[2..]
                .split(' ')
                .next()
                .map_or(-1, |it| it.parse().expect("a pid"));
            // The first is kthreadd, which has none.
            let parents = ClusterPid::of(NodeId(node), 2).map(i32::from);
            assert!(parent == 0 || Some(parent) == parents, "{stat}");
            // What has no command line is shown by its name in brackets.
            assert_eq!(read("cmdline").await.expect("read"), "", "{stat}");
        }
    }
}
