//! What state a node is in.

use super::facts::Facts;
use serde::Serialize;
use std::fmt;

/// The load from which a node is busy: programs want to run on half of its processors.
const BUSY_LOAD: u64 = 50;

/// A node as it is shown.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Node {
    pub(crate) node: u16,
    pub(crate) state: State,
    pub(crate) reason: String,
    pub(crate) load: Option<u64>,
    pub(crate) cpus: Option<u64>,
    /// In bytes, as is the next.
    pub(crate) memory: Option<u64>,
    pub(crate) memory_free: Option<u64>,
    pub(crate) users: Option<u64>,
}

/// Its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Idle,
    Busy,
    InUse,
    Drain,
    Down,
    Unreachable,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::InUse => "inuse",
            Self::Drain => "drain",
            Self::Down => "down",
            Self::Unreachable => "unreachable",
        })
    }
}

impl From<Facts> for Node {
    fn from(facts: Facts) -> Self {
        let (state, reason) = judge(&facts);
        Self {
            node: facts.node.0,
            state,
            reason,
            load: facts.load.as_ref().map(|load| load.load),
            cpus: facts.load.as_ref().and_then(|load| load.cpus),
            memory: facts.load.as_ref().and_then(|load| load.memory),
            memory_free: facts.load.as_ref().and_then(|load| load.memory_free),
            // Of a node that does not answer nobody knows.
            users: facts.load.is_some().then_some(facts.users),
        }
    }
}

fn judge(facts: &Facts) -> (State, String) {
    let Some(load) = &facts.load else {
        let why = facts.trouble.as_deref().unwrap_or("it does not answer");
        return match &facts.told {
            Some(told) if told.up => {
                let reason = format!("{why}; the leader hears it");
                (State::Unreachable, reason)
            }
            Some(_) => (State::Down, format!("{why}; it has no session")),
            None if facts.trouble.is_some() => (State::Unreachable, why.into()),
            None => (State::Down, why.into()),
        };
    };
    if let Some(told) = facts.told.as_ref().filter(|told| told.draining) {
        let reason = match told.chunks {
            0 => "its file data has been moved away".into(),
            chunks => format!("its file data is being moved away, {chunks} chunks are left"),
        };
        return (State::Drain, reason);
    }
    // The leader's word is newer.
    if facts.told.is_none() && facts.drains {
        return (State::Drain, "its file data is moved away".into());
    }
    if facts.in_use {
        let reason = "somebody works at it: it takes no programs of other nodes";
        return (State::InUse, reason.into());
    }
    let load = load.load;
    if load >= BUSY_LOAD {
        let reason = format!("programs want more than half of its processors: load {load}");
        (State::Busy, reason)
    } else {
        let reason = format!("it can take more programs: load {load}");
        (State::Idle, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stat::facts::{Load, Told};

    #[track_caller]
    fn check(
        load: Option<u64>,
        told: Option<(bool, bool, u64)>,
        trouble: Option<&str>,
        expected: State,
        reason: &str,
    ) {
        let node = Node::from(Facts {
            load: load.map(|load| Load {
                load,
                ..Load::default()
            }),
            told: told.map(|(up, draining, chunks)| Told {
                up,
                draining,
                chunks,
            }),
            trouble: trouble.map(String::from),
            ..Facts::of(consistency::NodeId(1))
        });
        assert_eq!(node.state, expected);
        assert!(node.reason.contains(reason), "{}", node.reason);
        assert_eq!(node.users.is_some(), load.is_some());
    }

    #[test]
    fn states_and_their_reasons() {
        let up = Some((true, false, 9));
        let lost = Some((false, false, 9));
        check(Some(0), up, None, State::Idle, "load 0");
        check(Some(49), None, None, State::Idle, "load 49");
        check(Some(50), up, None, State::Busy, "load 50");
        check(
            Some(99),
            Some((true, true, 9)),
            None,
            State::Drain,
            "9 chunks",
        );
        check(
            Some(0),
            Some((true, true, 0)),
            None,
            State::Drain,
            "has been",
        );
        let drains = Facts {
            load: Some(Load::default()),
            drains: true,
            ..Facts::of(consistency::NodeId(1))
        };
        assert_eq!(Node::from(drains).state, State::Drain);
        let in_use = Facts {
            load: Some(Load::default()),
            in_use: true,
            ..Facts::of(consistency::NodeId(1))
        };
        assert_eq!(Node::from(in_use).state, State::InUse);
        // It answers: that the leader has not heard of it yet does not matter.
        check(Some(0), lost, None, State::Idle, "load 0");
        check(None, None, None, State::Down, "does not answer");
        check(None, lost, None, State::Down, "no session");
        check(None, lost, Some("refused"), State::Down, "refused; it has");
        check(None, up, None, State::Unreachable, "leader hears it");
        check(None, up, Some("cut"), State::Unreachable, "cut; the leader");
        check(None, None, Some("cut"), State::Unreachable, "cut");
    }
}
