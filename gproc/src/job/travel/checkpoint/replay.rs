//! The input that a job has been sent since its checkpoints: one that starts from there is sent it again (CK7).

use bytes::Bytes;
use std::collections::VecDeque;

/// So much is kept for each job. One that has been sent more since its last checkpoint cannot start from that.
const REPLAY_BYTES_MAX: usize = 16 << 20;

/// What was sent since one checkpoint; nothing: more than is kept.
#[derive(Debug)]
struct Log(Option<(VecDeque<Bytes>, usize)>);

impl Log {
    fn note(&mut self, bytes: &Bytes) {
        self.0 = self.0.take().and_then(|(mut sent, len)| {
            let len = len + bytes.len();
            sent.push_back(bytes.clone());
            (len <= REPLAY_BYTES_MAX).then_some((sent, len))
        });
    }
}

/// Since the newest checkpoint, and since the one that is being written.
#[derive(Debug, Default)]
pub(in super::super) struct Replay {
    kept: Option<Log>,
    writing: Option<Log>,
}

impl Replay {
    /// Takes note of what is sent for the first time.
    pub(in super::super) fn note(&mut self, bytes: &Bytes) {
        for log in self.kept.iter_mut().chain(&mut self.writing) {
            log.note(bytes);
        }
    }

    /// Images have been made of a job that had this not read yet.
    pub(in super::super) fn imaged(&mut self, unread: impl IntoIterator<Item = Bytes>) {
        let mut log = Log(Some((VecDeque::new(), 0)));
        for bytes in unread {
            log.note(&bytes);
        }
        self.writing = Some(log);
    }

    /// They are a checkpoint, or never will be.
    pub(in super::super) fn written(&mut self, whole: bool) {
        let log = self.writing.take();
        if whole {
            self.kept = log;
        }
    }

    /// Returns what was sent since the newest checkpoint; nothing: more than is kept.
    pub(in super::super) fn since_kept(&self) -> Option<&VecDeque<Bytes>> {
        let Log(sent) = self.kept.as_ref()?;
        sent.as_ref().map(|(sent, _)| sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(replay: &Replay) -> Option<Vec<u8>> {
        let sent = replay.since_kept()?.iter();
        Some(sent.flat_map(|bytes| bytes.iter().copied()).collect())
    }

    #[test]
    fn ck7_what_was_sent_since_the_newest_whole_one() {
        let mut replay = Replay::default();
        let note = |replay: &mut Replay, text: &'static str| replay.note(&text.into());
        note(&mut replay, "a");
        assert_eq!(sent(&replay), None, "there is no checkpoint");
        replay.imaged(["b".into()]);
        note(&mut replay, "c");
        assert_eq!(sent(&replay), None, "it is not whole");
        replay.written(true);
        note(&mut replay, "d");
        assert_eq!(sent(&replay).as_deref(), Some(&b"bcd"[..]));
        replay.imaged([]);
        note(&mut replay, "e");
        replay.written(false);
        assert_eq!(sent(&replay).as_deref(), Some(&b"bcde"[..]));
        replay.imaged([]);
        note(&mut replay, "f");
        replay.written(true);
        assert_eq!(sent(&replay).as_deref(), Some(&b"f"[..]));
    }

    #[test]
    fn ck7_too_much_is_not_kept_in_part() {
        let mut replay = Replay::default();
        replay.imaged([]);
        replay.written(true);
        replay.note(&vec![0; REPLAY_BYTES_MAX].into());
        assert!(replay.since_kept().is_some());
        replay.note(&Bytes::from_static(b"x"));
        assert!(replay.since_kept().is_none());
        replay.imaged([]);
        replay.note(&Bytes::from_static(b"y"));
        replay.written(true);
        assert_eq!(sent(&replay).as_deref(), Some(&b"y"[..]));
    }
}
