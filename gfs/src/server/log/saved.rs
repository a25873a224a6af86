//! How far a snapshot is on the disk, for the log to purge no more than that.
//!
//! openraft has what an installed snapshot covers purged at once, beside the installation. A crash in between, or a disk that
//! fails, would leave a log that begins behind every snapshot there is.

use super::raft::LogId;
use std::io;
use tokio::sync::watch;

/// The newest snapshot that is durable; an error ends it.
#[derive(Debug)]
pub(super) struct Saved(watch::Sender<Result<Option<LogId>, String>>);

impl Saved {
    /// Begins with what was found.
    pub(super) fn upto(last: Option<LogId>) -> Self {
        Self(watch::Sender::new(Ok(last)))
    }

    /// Takes the outcome of saving a snapshot.
    pub(super) fn note(&self, last: Option<LogId>, outcome: &io::Result<()>) {
        self.0.send_modify(|saved| match (outcome, &mut *saved) {
            (Err(error), _) => *saved = Err(error.to_string()),
            (Ok(()), Ok(upto)) => *upto = last.max(*upto),
            (Ok(()), Err(_)) => {}
        });
    }

    /// R6: waits until a snapshot is durable that covers the log up to an entry.
    ///
    /// # Errors
    /// None will be: saving one has failed.
    pub(super) async fn reaches(&self, entry: LogId) -> io::Result<()> {
        let mut changes = self.0.subscribe();
        let is_decided = |saved: &Result<Option<LogId>, String>| match saved {
            Ok(upto) => *upto >= Some(entry),
            Err(_) => true,
        };
        let saved = changes.wait_for(is_decided).await;
        let saved = saved.expect("the sender is borrowed by this call");
        match &*saved {
            Ok(_) => Ok(()),
            Err(why) => Err(io::Error::other(format!("no snapshot was saved: {why}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use openraft::CommittedLeaderId;

    fn entry(index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(1, 1), index)
    }

    #[test]
    fn r6_nothing_is_purged_before_its_snapshot_is_durable() {
        let saved = Saved::upto(Some(entry(25)));
        assert!(matches!(
            saved.reaches(entry(25)).now_or_never(),
            Some(Ok(()))
        ));
        let mut purge = Box::pin(saved.reaches(entry(39)));
        assert!((&mut purge).now_or_never().is_none());
        // One that was made here meanwhile.
        saved.note(Some(entry(30)), &Ok(()));
        assert!((&mut purge).now_or_never().is_none());
        saved.note(Some(entry(39)), &Ok(()));
        assert!(matches!(purge.now_or_never(), Some(Ok(()))));

        let purge = Box::pin(saved.reaches(entry(50)));
        saved.note(Some(entry(50)), &Err(io::ErrorKind::StorageFull.into()));
        assert!(matches!(purge.now_or_never(), Some(Err(_))));
    }
}
