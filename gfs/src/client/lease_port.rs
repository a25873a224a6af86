//! Lease state of one session: what it may cache. Same interface as `consistency::lease::Client`.

use consistency::wire::lease::{Break, BreakAck, Grant, Mode};
use consistency::{Duration, InodeNo, Instant, LeaseId, SessionId};
use std::collections::BTreeMap;

/// Clocks of two nodes drift apart by at most one part in this many.
const DRIFT: u64 = 100;

/// Remembers which breaks came before a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u64);

#[derive(Debug)]
pub struct Client {
    session: Option<SessionId>,
    valid_until: Instant,
    leases: BTreeMap<InodeNo, Lease>,
    /// Stamp of the last break of an inode.
    breaks: BTreeMap<InodeNo, u64>,
    tick: u64,
    /// Stamps of requests in flight, with their number.
    requests: BTreeMap<u64, u32>,
}

#[derive(Debug)]
struct Lease {
    id: LeaseId,
    mode: Mode,
    breaking: bool,
}

impl Client {
    pub fn new() -> Self {
        Self {
            session: None,
            valid_until: Instant(0),
            leases: BTreeMap::new(),
            breaks: BTreeMap::new(),
            tick: 0,
            requests: BTreeMap::new(),
        }
    }

    pub fn session_opened(&mut self, sent_at: Instant, session: SessionId, term: Duration) {
        self.drop_all();
        self.session = Some(session);
        self.renewed(sent_at, term);
    }

    pub fn renewed(&mut self, sent_at: Instant, term: Duration) {
        // L3
        let until = sent_at + term.less_one_in(DRIFT);
        self.valid_until = self.valid_until.max(until);
    }

    pub fn session(&self) -> Option<SessionId> {
        self.session
    }

    pub fn valid_until(&self) -> Instant {
        self.valid_until
    }

    pub fn begin_request(&mut self) -> Stamp {
        *self.requests.entry(self.tick).or_default() += 1;
        Stamp(self.tick)
    }

    pub fn end_request(&mut self, stamp: Stamp) {
        if let Some(count) = self.requests.get_mut(&stamp.0) {
            *count -= 1;
            if *count == 0 {
                self.requests.remove(&stamp.0);
            }
        }
        match self.requests.keys().next() {
            Some(&oldest) => self.breaks.retain(|_, at| *at > oldest),
            None => self.breaks.clear(),
        }
    }

    pub fn install(&mut self, now: Instant, stamp: Stamp, ino: InodeNo, grant: Grant) -> bool {
        let held = self.leases.get(&ino);
        if held.is_some_and(|lease| lease.id > grant.lease) {
            return false;
        }
        // L2
        let crossed = self.breaks.get(&ino).is_some_and(|&at| at > stamp.0);
        let breaking = held.is_some_and(|lease| lease.breaking);
        let mode = match held {
            Some(lease) if breaking => lease.mode,
            Some(lease) if crossed => lease.mode.min(grant.mode),
            None if crossed => Mode::Known,
            Some(_) | None => grant.mode,
        };
        let lease = Lease {
            id: grant.lease,
            mode,
            breaking,
        };
        self.leases.insert(ino, lease);
        !crossed && !breaking && grant.mode >= Mode::Shared && now < self.valid_until
    }

    pub fn mode(&self, now: Instant, ino: InodeNo) -> Option<Mode> {
        let lease = self.leases.get(&ino).filter(|_| now < self.valid_until)?;
        Some(if lease.breaking {
            Mode::Known
        } else {
            lease.mode
        })
    }

    pub fn held(&self, ino: InodeNo) -> Option<Mode> {
        self.leases.get(&ino).map(|lease| lease.mode)
    }

    pub fn handle_break(&mut self, request: &Break) {
        self.tick += 1;
        if !self.requests.is_empty() {
            self.breaks.insert(request.ino, self.tick);
        }
        if let Some(lease) = self.leases.get_mut(&request.ino) {
            lease.breaking = true;
        }
    }

    pub fn finish_break(&mut self, request: &Break, kept: Mode) -> BreakAck {
        let kept = kept.min(request.keep);
        if let Some(lease) = self.leases.get_mut(&request.ino) {
            lease.mode = lease.mode.min(kept);
            lease.breaking = false;
        }
        BreakAck {
            ino: request.ino,
            lease: request.lease,
            kept,
        }
    }

    pub fn forget(&mut self, ino: InodeNo) -> Option<LeaseId> {
        self.leases.remove(&ino).map(|lease| lease.id)
    }

    pub fn leases(&self) -> Vec<(InodeNo, Mode)> {
        let leases = self.leases.iter();
        leases.map(|(&ino, lease)| (ino, lease.mode)).collect()
    }

    pub fn reclaimed(&mut self, answers: &[(InodeNo, Option<LeaseId>)]) {
        for (ino, id) in answers {
            match (id, self.leases.get_mut(ino)) {
                (Some(id), Some(lease)) => lease.id = *id,
                (None, _) => {
                    self.leases.remove(ino);
                }
                (Some(_), None) => {}
            }
        }
    }

    pub fn drop_all(&mut self) {
        self.session = None;
        self.valid_until = Instant(0);
        self.leases.clear();
        self.breaks.clear();
    }
}
