//! What operations claim of inodes, which claims may run together, and what a claim demands of the grants of
//! others. Pure functions.

use crate::InodeNo;
use crate::wire::lease::{Mode, Scope};

/// What an operation needs of one inode while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which inode.
    pub ino: InodeNo,
    /// What for.
    pub need: Need,
}

/// What an operation does with an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Sees the present state. Waits only for another session's exclusive grant, which becomes shared.
    Peek,
    /// Loads content for a shared grant, in turn with changes and exclusive loads. Waits for an exclusive grant
    /// as well.
    Share,
    /// Loads for an exclusive grant, in turn; other sessions forget everything and keep the inode known.
    Exclusive,
    /// Changes the inode at the leader, in turn; other sessions forget what is changed.
    Change(Scope),
    /// Writes back under the session's own exclusive grant. Waits for nothing, as others wait for the ack that
    /// follows it; until it is finished nobody else runs on the inode (L8). Without that grant it is void, which
    /// the driver sees by [`Server::mode`](super::Server::mode) when the operation is ready.
    Flush,
}

/// What a holder has to do before a claim may run: forget a scope and keep at most a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) scope: Scope,
    pub(super) keep: Mode,
}

/// Returns whether two claims of different operations on one inode may run at the same time. Disjoint changes may,
/// so that the log can commit them together.
pub(in crate::lease) fn compatible(a: &Need, b: &Need) -> bool {
    match (a, b) {
        (Need::Peek | Need::Flush, _) | (_, Need::Peek | Need::Flush) => true,
        (Need::Share, Need::Share) => true,
        (Need::Change(a), Need::Change(b)) => disjoint(a, b),
        (Need::Share | Need::Exclusive | Need::Change(_), _) => false,
    }
}

fn disjoint(a: &Scope, b: &Scope) -> bool {
    match (a, b) {
        (Scope::All | Scope::Data, _) | (_, Scope::All | Scope::Data) => false,
        (Scope::Names(a), Scope::Names(b)) => a.iter().all(|name| !b.contains(name)),
        // Attributes change with every change of names, and the log orders the two.
        (Scope::Attr, Scope::Attr | Scope::Names(_)) | (Scope::Names(_), Scope::Attr) => true,
        (Scope::Flush, _) | (_, Scope::Flush) => true,
    }
}

/// Returns what a claim demands of another session's grant. Whether names that are fought for are worth a grant the
/// holder decides: it knows what else it would give up.
pub(super) fn demand(need: &Need, held: Mode) -> Option<Demand> {
    let (scope, keep) = match (need, held) {
        (Need::Flush, _) | (_, Mode::Known) | (Need::Peek | Need::Share, Mode::Shared) => {
            return None;
        }
        (Need::Peek | Need::Share, Mode::Exclusive) => (Scope::Flush, Mode::Shared),
        (Need::Exclusive | Need::Change(Scope::Data), Mode::Shared | Mode::Exclusive) => {
            (Scope::Data, Mode::Known)
        }
        (Need::Change(Scope::All), Mode::Exclusive) => (Scope::Data, Mode::Known),
        (Need::Change(Scope::All), Mode::Shared) => (Scope::All, Mode::Known),
        (Need::Change(Scope::Attr | Scope::Flush), Mode::Exclusive) => (Scope::Data, Mode::Shared),
        // The holder of a directory flushes what it has made there, whatever the scope.
        (Need::Change(scope @ Scope::Names(_)), Mode::Shared | Mode::Exclusive)
        | (Need::Change(scope @ (Scope::Attr | Scope::Flush)), Mode::Shared) => {
            (scope.clone(), Mode::Shared)
        }
    };
    Some(Demand { scope, keep })
}

impl Demand {
    /// Returns whether a holder that does this has also done `other`.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let scope = match (&self.scope, &other.scope) {
            (Scope::Attr | Scope::Data | Scope::Names(_) | Scope::All, Scope::Attr) => true,
            (Scope::Data, Scope::Data | Scope::Flush) | (Scope::Flush, Scope::Flush) => true,
            (Scope::All, Scope::Names(_) | Scope::All) => true,
            (Scope::Names(a), Scope::Names(b)) => b.iter().all(|name| a.contains(name)),
            (_, _) => false,
        };
        scope && self.keep <= other.keep
    }
}

impl Need {
    /// Returns one need that stands for two of the same operation.
    pub(super) fn merge(self, other: Self) -> Self {
        match (self, other) {
            (Self::Change(Scope::Names(mut a)), Self::Change(Scope::Names(b))) => {
                a.extend(b);
                Self::Change(Scope::Names(a))
            }
            (a, b) if a.rank() < b.rank() => b,
            (a, _) => a,
        }
    }

    /// Returns whether this need waits its turn and holds up others.
    pub(super) fn queues(&self) -> bool {
        match self {
            Self::Peek | Self::Flush => false,
            Self::Share | Self::Exclusive | Self::Change(_) => true,
        }
    }

    /// Returns whether the state differs afterwards.
    pub(super) fn changes(&self) -> bool {
        match self {
            Self::Change(_) | Self::Flush => true,
            Self::Peek | Self::Share | Self::Exclusive => false,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Peek => 0,
            Self::Share => 1,
            Self::Flush => 2,
            Self::Change(Scope::Flush | Scope::Attr) => 3,
            Self::Change(Scope::Names(_)) => 4,
            Self::Change(Scope::All) => 5,
            Self::Change(Scope::Data) => 6,
            Self::Exclusive => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Need::{Change, Exclusive, Flush, Peek, Share};
    use super::*;
    use crate::wire::meta::Name;

    fn names(list: &[&str]) -> Scope {
        let name = |name: &&str| Name::new(name.as_bytes().to_vec()).expect("valid");
        Scope::Names(list.iter().map(name).collect())
    }

    #[test]
    fn compatibility() {
        #[track_caller]
        fn check(a: Need, b: Need, expected: bool) {
            assert_eq!(compatible(&a, &b), expected, "{a:?} with {b:?}");
            assert_eq!(compatible(&b, &a), expected, "{b:?} with {a:?}");
        }
        for need in [Share, Exclusive, Change(Scope::Data), Change(Scope::All)] {
            check(Peek, need.clone(), true);
            check(Flush, need, true);
        }
        check(Share, Share, true);
        check(Share, Exclusive, false);
        check(Share, Change(Scope::Attr), false);
        check(Exclusive, Exclusive, false);
        check(Exclusive, Change(Scope::Attr), false);
        check(Change(Scope::Attr), Change(Scope::Attr), true);
        check(Change(Scope::Attr), Change(names(&["a"])), true);
        check(Change(names(&["a"])), Change(names(&["b"])), true);
        check(Change(names(&["a", "b"])), Change(names(&["b"])), false);
        check(Change(Scope::All), Change(names(&["a"])), false);
        check(Change(Scope::All), Change(Scope::Attr), false);
        check(Change(Scope::Data), Change(Scope::Attr), false);
    }

    #[test]
    fn demands() {
        #[track_caller]
        fn check(need: Need, held: Mode, expected: Option<(Scope, Mode)>) {
            let expected = expected.map(|(scope, keep)| Demand { scope, keep });
            assert_eq!(demand(&need, held), expected, "{need:?} of {held:?}");
        }
        let (known, shared, exclusive) = (Mode::Known, Mode::Shared, Mode::Exclusive);
        check(Exclusive, known, None);
        check(Change(Scope::All), known, None);
        check(Peek, shared, None);
        check(Share, shared, None);
        check(Peek, exclusive, Some((Scope::Flush, shared)));
        check(Share, exclusive, Some((Scope::Flush, shared)));
        check(Exclusive, shared, Some((Scope::Data, known)));
        check(Exclusive, exclusive, Some((Scope::Data, known)));
        let attr = || Change(Scope::Attr);
        check(attr(), shared, Some((Scope::Attr, shared)));
        check(attr(), exclusive, Some((Scope::Data, shared)));
        let a = || names(&["a"]);
        check(Change(a()), shared, Some((a(), shared)));
        check(Change(a()), exclusive, Some((a(), shared)));
        let all = || Change(Scope::All);
        check(all(), shared, Some((Scope::All, known)));
        check(all(), exclusive, Some((Scope::Data, known)));
        let data = Change(Scope::Data);
        check(data, shared, Some((Scope::Data, known)));
        check(Flush, exclusive, None);
    }

    #[test]
    fn covering() {
        #[track_caller]
        fn check(a: (Scope, Mode), b: (Scope, Mode), expected: bool) {
            let demand = |(scope, keep)| Demand { scope, keep };
            let (a, b) = (demand(a), demand(b));
            assert_eq!(a.covers(&b), expected, "{a:?} covers {b:?}");
        }
        let (known, shared) = (Mode::Known, Mode::Shared);
        check((Scope::Attr, shared), (Scope::Attr, shared), true);
        check((Scope::Attr, shared), (Scope::Data, known), false);
        check((Scope::Data, shared), (Scope::Data, known), false);
        check((Scope::Data, known), (Scope::Data, shared), true);
        check((Scope::Data, known), (Scope::Attr, shared), true);
        check((Scope::Data, known), (Scope::Flush, shared), true);
        check((Scope::Flush, shared), (Scope::Data, shared), false);
        check((Scope::Flush, shared), (Scope::Attr, shared), false);
        check((names(&["a", "b"]), shared), (names(&["b"]), shared), true);
        check((names(&["a"]), shared), (names(&["a", "b"]), shared), false);
        check((names(&["a"]), shared), (Scope::Attr, shared), true);
        check((Scope::All, known), (names(&["a"]), shared), true);
        check((names(&["a"]), shared), (Scope::All, known), false);
    }

    #[test]
    fn merging() {
        let merged = Change(names(&["a"])).merge(Change(names(&["b"])));
        assert_eq!(merged, Change(names(&["a", "b"])));
        assert_eq!(
            Change(names(&["a"])).merge(Change(Scope::Attr)),
            Change(names(&["a"]))
        );
        assert_eq!(Peek.merge(Share), Share);
    }
}
