//! A build with make.

use super::{Bench, Row, installed, shell, time};
use std::fs;
use std::path::{Path, PathBuf};

impl Bench {
    pub(super) fn build(&mut self) {
        let (one, two, local) = (
            self.cluster.path(1),
            self.cluster.path(2),
            self.local.clone(),
        );
        let sources = sources();
        for dir in [&one, &local] {
            let tree = dir.join("lua");
            fs::create_dir_all(tree.join("obj")).expect("mkdir");
            fs::create_dir_all(tree.join("src")).expect("mkdir");
            shell(&format!(
                "cp '{}'/*.[ch] '{}/src/'",
                sources.display(),
                tree.display()
            ));
            let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/demo");
            fs::copy(format!("{demo}/main.c"), tree.join("src/main.c")).expect("copy");
            fs::copy(format!("{demo}/lua.mk"), tree.join("Makefile")).expect("copy");
        }
        self.row(
            "cold build, make -j2 on one node",
            "<= 1.12 x the time",
            3,
            1,
            |dir| {
                shell(&format!(
                    "cd '{}/lua' && rm -f lua obj/* && make -s -j2 lua",
                    dir.display()
                ));
            },
            &one,
            &local,
        );
        self.glumake();
        self.row(
            "no-op make, node that built",
            "<= 1.5 x the time",
            15,
            1,
            |dir| {
                shell(&format!("cd '{}/lua' && make -q lua", dir.display()));
            },
            &one,
            &local,
        );
        self.row(
            "no-op make, other node",
            "<= 1.5 x the time",
            15,
            1,
            |dir| {
                shell(&format!("cd '{}/lua' && make -q lua", dir.display()));
            },
            &two,
            &local,
        );
    }
}

impl Bench {
    /// Recipes on all nodes, which share the machine's processors: what is above 1 x is what sending them costs.
    fn glumake(&mut self) {
        let cluster = &self.cluster;
        let build = |dir: &Path, make: &str| {
            let dir = dir.display();
            let script = format!("cd '{dir}/lua' && rm -f lua obj/* && {make} lua");
            assert!(cluster.sh(1, &script).status.success(), "{script}");
        };
        let (tree, local) = (Path::new("/cluster"), &*self.local);
        let mut controls = vec![
            (
                "cold build, glumake -j4; control: make -j4 on one node",
                "<= 1.12 x the time",
                tree,
                "make -s -j4",
            ),
            (
                "cold build, glumake -j4; control: make -j4, local files",
                "",
                local,
                "make -s -j4",
            ),
        ];
        // A server on this machine has the processors that the nodes share.
        let distcc = "DISTCC_HOSTS=127.0.0.1/4,lzo make -s -j4 CC='distcc gcc'";
        let _server = installed("distccd").then(|| {
            controls.push(("cold build, glumake -j4; control: distcc, -j4, local files", "", local, distcc));
            let serve = "distccd --no-detach --daemon --allow 127.0.0.1 --listen 127.0.0.1 --jobs 4 --log-stderr";
            cluster.spawn(1, serve)
        });
        let mut rows = Vec::new();
        for (name, goal, dir, make) in controls {
            let (mut here, mut control) = (Vec::new(), Vec::new());
            for _ in 0..3 {
                here.push(time(|| build(tree, "glumake -s -j4")));
                control.push(time(|| build(dir, make)));
            }
            rows.push(Row {
                name,
                goal,
                here,
                control,
                ops: 1,
            });
        }
        for row in rows {
            self.add(row);
        }
    }
}

/// Returns the directory of the demo's sources, out of the registry.
pub(super) fn sources() -> PathBuf {
    let root = tests::sources("scripts/demo/Cargo.toml", "lua-src");
    let versions = fs::read_dir(&root)
        .expect("readdir")
        .map(|entry| entry.expect("entry").path());
    versions
        .into_iter()
        .find(|path| path.to_string_lossy().contains("lua-5.4."))
        .expect("Lua 5.4")
}
