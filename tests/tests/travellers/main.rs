//! What moves between real nodes, and what is told to stay: a function of `moves.py` or `stays.py` for each row of the table
//! in docs/processes.md. `TRAVELLER_MIB` says how much memory the program in C has.

use std::fs;
use std::time::Duration;
use tests::moves;

/// What a script may take.
const LONG: Duration = Duration::from_secs(300);

/// Runs the rows of a script.
#[track_caller]
fn travel(rows: &str) {
    let cluster = moves::cluster_that_moves(3);
    let dir = cluster.path(1);
    for (name, text) in [
        ("traveller.c", include_str!("traveller.c")),
        ("check.h", include_str!("../check.h")),
    ] {
        fs::write(dir.join(name), text).expect("written");
    }
    let compile = "cd /cluster && cc -std=c99 -Wall -Wextra -Werror -O1 -o traveller traveller.c";
    cluster.sh(1, compile).ok();
    let mib = std::env::var("TRAVELLER_MIB").unwrap_or_else(|_| "64".into());
    let script = format!(
        "import os; os.environ['TRAVELLER_MIB'] = '{}'\n{rows}{}",
        mib.parse::<u32>().expect("a number"),
        include_str!("rows.py")
    );
    print!("{}", moves::drive(&cluster, LONG, &script));
}

#[test]
fn what_moves() {
    travel(include_str!("moves.py"));
}

#[test]
fn what_stays() {
    travel(include_str!("stays.py"));
}
