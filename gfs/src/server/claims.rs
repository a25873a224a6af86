//! What an operation claims from the lease core, read off the state.

use super::state::MetaState;
use consistency::InodeNo;
use consistency::lease::{Claim, Need};
use consistency::wire::lease::Mode;
use consistency::wire::meta::{FsError, Op};

/// Returns the claims of an operation that changes nothing.
pub(super) fn looks(state: &MetaState, op: &Op) -> Vec<Claim> {
    let peek = |ino: InodeNo| Claim {
        ino,
        need: Need::Peek,
    };
    match op {
        Op::Lookup { parent, name } => {
            let child = state.lookup(*parent, name).ok().flatten();
            std::iter::once(peek(*parent))
                .chain(child.map(|attr| peek(attr.ino)))
                .collect()
        }
        Op::GetAttr { ino } | Op::GetXattrs { ino } | Op::ReadDir { ino, .. } => vec![peek(*ino)],
        Op::Load {
            ino,
            mode: Mode::Exclusive,
        } => vec![Claim {
            ino: *ino,
            need: Need::Exclusive,
        }],
        Op::Load {
            ino,
            mode: Mode::Shared | Mode::Known,
        } => vec![Claim {
            ino: *ino,
            need: Need::Share,
        }],
        Op::ReadLink { .. } | Op::StatFs { .. } => Vec::new(),
        Op::Create { .. }
        | Op::Link { .. }
        | Op::Unlink { .. }
        | Op::Rename { .. }
        | Op::SetAttr { .. }
        | Op::SetXattr { .. }
        | Op::RemoveXattr { .. }
        | Op::Flush(_)
        | Op::Make(_)
        | Op::Names(_)
        | Op::AllocateChunks { .. }
        | Op::Accessed(_) => unreachable!("{op:?} changes the tree"),
    }
}

/// Returns the claims of an operation that changes the tree.
pub(super) fn changes(state: &MetaState, op: &Op) -> Result<Vec<Claim>, FsError> {
    let plan = state.plan(op)?;
    let mut claims: Vec<Claim> = plan
        .claims
        .into_iter()
        .map(|(ino, scope)| Claim {
            ino,
            need: Need::Change(scope),
        })
        .collect();
    // An open of what is there shows its attributes, which may have a master elsewhere.
    if let Op::Create {
        parent,
        name: Some(name),
        ..
    } = op
        && let Ok(Some(there)) = state.lookup(*parent, name)
    {
        claims.push(Claim {
            ino: there.ino,
            need: Need::Peek,
        });
    }
    if let Op::Flush(files) = op {
        claims.extend(files.iter().map(|file| Claim {
            ino: file.ino,
            need: Need::Flush,
        }));
    }
    if let Some(held) = super::ops::held_by_session(op) {
        claims.extend(held.into_iter().map(|ino| Claim {
            ino,
            need: Need::Flush,
        }));
    }
    Ok(claims)
}

/// Returns what an operation that would be refused looks at: another node may have made names there of which the state
/// does not know yet.
pub(super) fn refused(op: &Op) -> Vec<Claim> {
    let dirs = match op {
        Op::Create { parent, .. } | Op::Link { parent, .. } | Op::Unlink { parent, .. } => {
            vec![*parent]
        }
        Op::Rename {
            parent, new_parent, ..
        } => vec![*parent, *new_parent],
        _ => Vec::new(),
    };
    let peek = |ino| Claim {
        ino,
        need: Need::Peek,
    };
    dirs.into_iter().map(peek).collect()
}

/// Returns whether an operation that holds `held` may do what `needed` asks for.
pub(super) fn covers(held: &[Claim], needed: &[Claim]) -> bool {
    needed.iter().all(|claim| held.contains(claim))
}
