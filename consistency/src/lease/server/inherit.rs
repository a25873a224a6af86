//! What a leader takes over of its predecessor's own session (L10): as the voters have noted it, not as it is.
//!
//! The notes may say too much: what was given up last they do not know of. They never say too little.
//!
//! | noted grant of the session | event | next |
//! | --- | --- | --- |
//! | noted m | it tells to hold m' | told, min(m, m') |
//! | noted m | another session tells to hold m' | noted, at most what m' allows others |
//! | noted m | the session is granted something by this leader | told |
//! | noted m | ack | noted, min(m, kept, offered) |
//! | noted m | the session has told everything, or ends | none |
//! | told m | any of these | as for every session |

use super::{LockNotes, Server};
use crate::lease::mutant::Mutant;
use crate::wire::lease::Mode;
use crate::{InodeNo, SessionId};
use std::collections::BTreeSet;

#[derive(Debug)]
pub(super) struct Inherited {
    session: SessionId,
    /// What nobody but the voters says of it.
    noted: BTreeSet<InodeNo>,
}

impl Server {
    /// Takes what voters have noted of the session of the last leader's node: it holds at most this, so nobody else has
    /// to wait for it to tell. To be called before anything else.
    pub fn inherit(&mut self, session: SessionId, held: &[(InodeNo, Mode)]) {
        if !self.unknown.contains(&session) {
            return;
        }
        let held = || held.iter().filter(|(ino, _)| !LockNotes::has(*ino));
        for &(ino, mode) in held() {
            let lease = self.fresh_lease();
            self.grants.insert(ino, session, lease, mode);
        }
        let noted = held().map(|&(ino, _)| ino).collect();
        self.inherited = Some(Inherited { session, noted });
        self.end_grace_of(session);
    }

    /// A session tells what it holds: that is true, whatever is noted.
    pub(super) fn correct_notes(&mut self, ino: InodeNo, session: SessionId, mode: Mode) {
        if self.mutation.is(Mutant::TrustNotes) {
            return;
        }
        let Some(inherited) = &mut self.inherited else {
            return;
        };
        if !inherited.noted.contains(&ino) {
            return;
        }
        let most = if inherited.session == session {
            inherited.noted.remove(&ino);
            mode
        } else {
            match mode {
                Mode::Known => return,
                Mode::Shared => Mode::Shared,
                Mode::Exclusive => Mode::Known,
            }
        };
        if let Some(held) = self.grants.get_mut(ino, inherited.session) {
            held.mode = held.mode.min(most);
        }
    }

    /// A grant of this reign is no note.
    pub(super) fn granted(&mut self, ino: InodeNo, session: SessionId) {
        if let Some(inherited) = &mut self.inherited
            && inherited.session == session
        {
            inherited.noted.remove(&ino);
        }
    }

    /// The session has told everything: what else is noted it has given up.
    pub(super) fn drop_notes(&mut self, session: SessionId) {
        if let Some(inherited) = self
            .inherited
            .take_if(|inherited| inherited.session == session)
        {
            for ino in inherited.noted {
                self.revoke(ino, session);
            }
        }
    }
}
