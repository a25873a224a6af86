//! One fsync of a directory for everybody who waits for one.
//!
//! A new name is durable after an fsync of its directory that *began* after the name was made. So who comes while
//! one runs waits for the next one, and all who came meanwhile share it.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex};

/// Shares the fsyncs of one directory. Its mutex is never held during one.
#[derive(Debug, Default)]
pub(super) struct SharedSync {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many fsyncs have begun.
    begun: u64,
    /// The last one of them is running.
    running: bool,
    /// The first error. The kernel reports a lost write only once, so a later fsync that succeeds proves nothing.
    broken: Option<String>,
}

impl SharedSync {
    /// Makes durable what was done in `dir` before the call. Waits as long as the disk takes.
    ///
    /// # Errors
    /// If `dir` cannot be opened; else the first error of an fsync, for ever: only opening the store anew shows
    /// what is there.
    pub(super) fn sync(&self, dir: &Path) -> Result<(), String> {
        let handle = File::open(dir).map_err(|error| format!("open the directory: {error}"))?;
        self.sync_at_least(self.next(), || handle.sync_all())
    }

    /// Returns the number of the first fsync that covers what has been done by now.
    fn next(&self) -> u64 {
        self.state.lock().expect("no holder panics").begun + 1
    }

    /// Waits until the fsync `needed` has ended; begins it if nobody else does.
    fn sync_at_least(
        &self,
        needed: u64,
        fsync: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), String> {
        let mut state = self.state.lock().expect("no holder panics");
        while state.running && state.begun <= needed {
            state = self.ended.wait(state).expect("no holder panics");
        }
        if state.begun < needed {
            state.begun += 1;
            state.running = true;
            drop(state);
            let result = fsync();
            state = self.state.lock().expect("no holder panics");
            state.running = false;
            if let Err(error) = result {
                state
                    .broken
                    .get_or_insert_with(|| format!("fsync of the directory: {error}; it takes no more chunks until glud is restarted"));
            }
            self.ended.notify_all();
        }
        state.broken.clone().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn who_comes_during_a_sync_shares_the_next_one() {
        let (shared, syncs) = (&SharedSync::default(), &AtomicU64::new(0));
        let count = || {
            syncs.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let (begin, begun) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                shared.sync_at_least(shared.next(), move || {
                    begin.send(()).expect("the test waits");
                    ended.recv().map_err(io::Error::other)
                })
            });
            begun.recv().expect("the first sync begins");
            let needed = [(); 8].map(|()| shared.next());
            let others =
                needed.map(|needed| scope.spawn(move || shared.sync_at_least(needed, count)));
            end.send(()).expect("the first sync waits");
            assert_eq!(first.join().expect("no panic"), Ok(()));
            for other in others {
                assert_eq!(other.join().expect("no panic"), Ok(()));
            }
        });
        assert_eq!(syncs.load(Ordering::SeqCst), 1, "eight share one");
        assert_eq!(shared.sync_at_least(shared.next(), count), Ok(()));
        assert_eq!(
            syncs.load(Ordering::SeqCst),
            2,
            "who comes later needs another one"
        );
    }

    #[test]
    fn a_failed_sync_is_never_forgotten() {
        let shared = SharedSync::default();
        let sync = |result| shared.sync_at_least(shared.next(), || result);
        assert_eq!(sync(Ok(())), Ok(()));
        let error = Err(
            "fsync of the directory: lost; it takes no more chunks until glud is restarted"
                .to_owned(),
        );
        assert_eq!(sync(Err(io::Error::other("lost"))), error);
        assert_eq!(sync(Ok(())), error);
    }
}
