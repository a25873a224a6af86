//! What the recipes of one `glumake` tell it: where each runs, and which had to run here. Pure but for [`Teller`] and [`Desk`].
//!
//! Each recipe is a process of its own below make (`glumake-sh`), so they tell by datagrams to a socket of the `glumake`
//! that the user has started. What is lost costs a moment of the progress line; faults are told with patience.

use consistency::NodeId;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread::JoinHandle;

/// Where the recipes of a build tell of themselves: the path of a socket.
pub(super) const EVENTS_ENV: &str = "GLUMAKE_EVENTS";

/// Larger than any event.
const EVENT_BYTES_MAX: usize = 64;

/// What a recipe tells; recipes are told apart by their pids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It runs on a node.
    Runs(u32, NodeId),
    /// It has ended there.
    Ended(u32),
    /// It could not run in the cluster, and runs here.
    Here(u32),
    /// make has ended.
    Over,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runs(pid, node) => write!(f, "runs {pid} {node}"),
            Self::Ended(pid) => write!(f, "ended {pid}"),
            Self::Here(pid) => write!(f, "here {pid}"),
            Self::Over => f.write_str("over"),
        }
    }
}

impl FromStr for Event {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<&str> = text.split(' ').collect();
        let pid = |text: &str| text.parse().map_err(drop);
        match words[..] {
            ["runs", recipe, node] => Ok(Self::Runs(
                pid(recipe)?,
                NodeId(node.parse().map_err(drop)?),
            )),
            ["ended", recipe] => Ok(Self::Ended(pid(recipe)?)),
            ["here", recipe] => Ok(Self::Here(pid(recipe)?)),
            ["over"] => Ok(Self::Over),
            _ => Err(()),
        }
    }
}

/// How far the recipes are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    running: BTreeMap<u32, NodeId>,
    ended: u64,
    /// Recipes that ran here for a fault of the cluster.
    pub(super) here: u64,
}

impl Tally {
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Runs(recipe, node) => {
                self.running.insert(recipe, node);
            }
            // One whose beginning was lost is one, too.
            Event::Ended(recipe) => {
                self.running.remove(&recipe);
                self.ended += 1;
            }
            Event::Here(recipe) => {
                self.running.remove(&recipe);
                self.here += 1;
            }
            Event::Over => self.running.clear(),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "glumake: {} done, {} running",
            self.ended,
            self.running.len()
        )?;
        let mut nodes = BTreeMap::<NodeId, usize>::new();
        for node in self.running.values() {
            *nodes.entry(*node).or_default() += 1;
        }
        for (at, (node, count)) in nodes.iter().enumerate() {
            let before = if at == 0 { ':' } else { ',' };
            write!(f, "{before} node{node} {count}")?;
        }
        if self.here > 0 {
            write!(f, "; {} ran here", self.here)?;
        }
        Ok(())
    }
}

/// A recipe's end of the socket; without one nothing is told.
#[derive(Debug)]
pub(super) struct Teller(Option<UnixDatagram>);

impl Teller {
    pub(super) fn from_env() -> Self {
        let connect = |path| {
            let socket = UnixDatagram::unbound()?;
            socket.connect(PathBuf::from(path))?;
            io::Result::Ok(socket)
        };
        // A glumake that has gone is told nothing.
        Self(std::env::var_os(EVENTS_ENV).and_then(|path| connect(path).ok()))
    }

    /// Returns whether somebody listens.
    pub(super) const fn hears(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn tell(&self, event: Event) {
        let Some(socket) = &self.0 else {
            return;
        };
        // A recipe does not wait for a line on a screen.
        let patient = matches!(event, Event::Here(_));
        let set = socket.set_nonblocking(!patient);
        set.and_then(|()| socket.send(event.to_string().as_bytes()))
            .ok();
    }
}

/// glumake's end of the socket.
#[derive(Debug)]
pub(super) struct Desk {
    directory: tempfile::TempDir,
    thread: JoinHandle<Tally>,
}

impl Desk {
    /// Listens, and has each state of the recipes shown.
    ///
    /// # Errors
    /// There is no room for a socket.
    pub(super) fn open(mut show: impl FnMut(&Tally) + Send + 'static) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("glumake-").tempdir()?;
        let socket = UnixDatagram::bind(directory.path().join("events"))?;
        let thread = std::thread::Builder::new().name("recipes".into());
        let thread = thread.spawn(move || {
            let mut tally = Tally::default();
            let mut bytes = [0; EVENT_BYTES_MAX];
            while let Ok(count) = socket.recv(&mut bytes) {
                let event = str::from_utf8(&bytes[..count])
                    .ok()
                    .and_then(|text| text.parse().ok());
                // What is no event is from nobody that glumake has started.
                let Some(event) = event else { continue };
                tally.take(event);
                if event == Event::Over {
                    break;
                }
                show(&tally);
            }
            tally
        })?;
        Ok(Self { directory, thread })
    }

    /// Returns where recipes are to tell.
    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("events")
    }

    /// Returns what has become of the recipes, when make has ended.
    pub(super) fn close(self) -> Tally {
        let told = UnixDatagram::unbound()
            .and_then(|socket| socket.send_to(Event::Over.to_string().as_bytes(), self.path()));
        match told {
            Ok(_) => self.thread.join().expect("it does not panic"),
            // Somebody has removed it; then nothing was told.
            Err(_) => Tally::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_they_are_written() {
        for event in [
            Event::Runs(7, NodeId(2)),
            Event::Ended(7),
            Event::Here(8),
            Event::Over,
        ] {
            assert_eq!(event.to_string().parse(), Ok(event));
        }
        for text in ["", "runs 7", "runs x 2", "ended 7 2", "over it"] {
            assert_eq!(text.parse::<Event>(), Err(()), "{text:?}");
        }
    }

    #[test]
    fn a_tally_tells_who_runs_where() {
        let mut tally = Tally::default();
        for (pid, node) in [(1, 2), (2, 3), (3, 2), (4, 1)] {
            tally.take(Event::Runs(pid, NodeId(node)));
        }
        tally.take(Event::Ended(4));
        assert_eq!(
            tally.to_string(),
            "glumake: 1 done, 3 running: node2 2, node3 1"
        );
        tally.take(Event::Here(3));
        tally.take(Event::Ended(99));
        assert_eq!(
            tally.to_string(),
            "glumake: 2 done, 2 running: node2 1, node3 1; 1 ran here"
        );
        tally.take(Event::Over);
        assert_eq!((tally.running.len(), tally.here), (0, 1));
    }

    #[test]
    fn a_desk_hears_what_recipes_tell() {
        let desk = Desk::open(|_| {}).expect("a socket");
        let socket = UnixDatagram::unbound().expect("a socket");
        socket.connect(desk.path()).expect("it listens");
        let teller = Teller(Some(socket));
        for pid in 0..100 {
            teller.tell(Event::Here(pid));
        }
        assert_eq!(desk.close().here, 100);
    }
}
