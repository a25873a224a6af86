//! Sessions, as the log tells of them.

use super::*;
use consistency::lease::Need;

const NODE: NodeId = NodeId(2);
const FILE: InodeNo = InodeNo(7);

fn reign() -> Barriers {
    let barriers = Barriers::new(Duration::from_millis(60_000), Duration::from_millis(60_000));
    barriers.start_reign(Epoch(1), NodeId(1), &[], None, &[]);
    barriers
}

fn holds(barriers: &Barriers, session: SessionId) -> Option<Mode> {
    let mode = barriers.with_core(|core| Ok(core.mode(session, FILE)));
    mode.expect("there is a reign")
}

/// The world of seed 42: it lost its leases and did not know.
#[tokio::test]
async fn a_late_copy_of_its_opening_takes_nothing_from_a_session() {
    let barriers = reign();
    let session = SessionId(1);
    assert_eq!(barriers.open_session(NODE, session, true), Ok(()));
    let claim = Claim {
        ino: FILE,
        need: Need::Exclusive,
    };
    let begun = barriers.begin(session, OpSeq(1), vec![claim]).await;
    let mut barrier = begun.expect("nothing is in the way");
    let granted =
        barriers.with_core(|core| Ok(core.finish(&mut barrier, &[(FILE, Mode::Exclusive)])));
    assert!(granted.expect("it lives")[0].is_some());

    assert_eq!(barriers.open_session(NODE, session, false), Ok(()));
    assert_eq!(holds(&barriers, session), Some(Mode::Exclusive));
}

#[tokio::test]
async fn no_session_comes_back() {
    let barriers = reign();
    let (old, new) = (SessionId(1), SessionId(2));
    assert_eq!(barriers.open_session(NODE, old, true), Ok(()));
    assert_eq!(barriers.open_session(NODE, new, true), Ok(()));
    // Told late, and a late copy.
    assert_eq!(barriers.open_session(NODE, old, true), Err(Ended::Session));
    assert_eq!(barriers.open_session(NODE, old, false), Err(Ended::Session));
    assert_eq!(barriers.sessions(), BTreeSet::from([new]));
}
