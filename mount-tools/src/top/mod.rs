//! `glu top`: nodes, processes, leases and traffic of the cluster, live.
//!
//! Looks and signals are a thread's own: they may wait for a node that does not answer, while keys are obeyed. Keys, the
//! results of looks and signals to this process come over one channel ([`Input`]).

mod model;
mod rows;
mod sample;
mod view;

use crate::daemon::SOCKET_DEFAULT;
use crate::dev::UsageError;
use crate::nodes::{self, NodeSet};
use crate::table;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use model::{Act, Model, Sort};
use nix::sys::signal::{SigSet, Signal};
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use sample::{Id, Place, Sample};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// Between the two looks that the first figures come from.
const FIRST_LOOKS: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Print lines instead of a screen, for programs; without end unless -n is given.
    #[arg(short, long)]
    batch: bool,

    /// Print once: -b -n 1.
    #[arg(long)]
    once: bool,

    /// So many times.
    #[arg(short = 'n', long, value_name = "COUNT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    iterations: Option<u64>,

    /// Between two looks.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2.0, value_parser = delay)]
    delay: f64,

    /// What processes are sorted by.
    #[arg(short = 'o', long, value_enum, default_value_t = Sort::Cpu)]
    sort: Sort,

    /// Only processes of this user.
    #[arg(short, long, value_name = "NAME", default_value = "")]
    user: String,

    #[arg(short = 'w', long, value_name = "NODES", help = nodes::HELP)]
    nodes: Option<NodeSet>,

    /// The daemon's control socket.
    #[arg(long, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
}

/// What the view waits for.
#[derive(Debug)]
enum Input {
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    Looked(Result<Sample>),
    /// What came of a signal.
    Signalled(String),
    /// The terminal is gone, or this process was told to end.
    End,
}

/// What the worker is to do.
#[derive(Debug)]
enum Work {
    Look,
    Signal(Id, i32),
}

impl Top {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut model = Model::new(self.sort, self.user.clone());
        let place = Place {
            root: table::root(),
            socket: self.socket.clone(),
            only: self.nodes.clone(),
        };
        if self.batch || self.once {
            self.print(&place, &mut model)?;
        } else if io::stdout().is_terminal() && io::stdin().is_terminal() {
            self.show(place, &mut model)?;
        } else {
            bail!(UsageError("this is no terminal: use --once".into()));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, place: &Place, model: &mut Model) -> Result<()> {
        let count = if self.once { Some(1) } else { self.iterations };
        model.take(place.look()?);
        let mut pause = FIRST_LOOKS;
        for number in 1.. {
            thread::sleep(pause);
            pause = self.pause();
            model.take(place.look()?);
            let newline = if number == 1 { "" } else { "\n" };
            let mut out = io::stdout().lock();
            match write!(out, "{newline}{}", rows::all(model)).and_then(|()| out.flush()) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            if Some(number) == count {
                break;
            }
        }
        Ok(())
    }

    fn show(&self, place: Place, model: &mut Model) -> Result<()> {
        // An error that is there from the beginning is better read outside of the view.
        model.take(place.look()?);
        let (input, inputs) = mpsc::channel();
        listen_for_signals(input.clone())?;
        let work = start_worker(place, input.clone())?;
        let mut terminal = ratatui::try_init().context("the terminal")?;
        let result =
            start_keys(input).and_then(|()| self.converse(&mut terminal, model, &work, &inputs));
        ratatui::try_restore().context("the terminal")?;
        result
    }

    fn converse(
        &self,
        terminal: &mut ratatui::DefaultTerminal,
        model: &mut Model,
        work: &Sender<Work>,
        inputs: &Receiver<Input>,
    ) -> Result<()> {
        let ended = || anyhow!("what looks at the cluster has ended");
        let mut first = 0;
        let mut left = self.iterations;
        // A look is under way if there is no time for the next one.
        let mut next = Some(Instant::now() + FIRST_LOOKS.min(self.pause()));
        loop {
            terminal.draw(|frame| view::draw(frame, model, &mut first))?;
            let received = match next {
                Some(next) => inputs.recv_timeout(next.saturating_duration_since(Instant::now())),
                None => inputs.recv().map_err(RecvTimeoutError::from),
            };
            let act = match received {
                Ok(Input::Key(key)) => model.key(key),
                Ok(Input::Resized) => None,
                Ok(Input::Signalled(word)) => {
                    model.word = word;
                    Some(Act::Look)
                }
                Ok(Input::Looked(sample)) => {
                    model.take(sample?);
                    next = Some(Instant::now() + self.pause());
                    left = left.map(|left| left - 1);
                    (left == Some(0)).then_some(Act::Quit)
                }
                Ok(Input::End) | Err(RecvTimeoutError::Disconnected) => Some(Act::Quit),
                Err(RecvTimeoutError::Timeout) => Some(Act::Look),
            };
            match act {
                Some(Act::Quit) => return Ok(()),
                Some(Act::Look) if next.take().is_some() => {
                    work.send(Work::Look).map_err(|_| ended())?;
                }
                Some(Act::Signal(id, number)) => {
                    work.send(Work::Signal(id, number)).map_err(|_| ended())?;
                }
                Some(Act::Look) | None => {}
            }
        }
    }

    fn pause(&self) -> Duration {
        Duration::from_secs_f64(self.delay)
    }
}

/// Reads a delay: more often would be busy with looking alone.
fn delay(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok();
    let seconds = seconds.filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| format!("`{text}` is no number of seconds from 0.1 to 86400"))
}

fn start_worker(place: Place, input: Sender<Input>) -> Result<Sender<Work>> {
    let (work, works) = mpsc::channel();
    let run = move || {
        for work in works {
            let done = match work {
                Work::Look => Input::Looked(place.look()),
                Work::Signal(id, number) => Input::Signalled(match place.signal(id, number) {
                    Ok(()) => format!("signal {number} was sent to {}", id.pid),
                    Err(error) => format!("{}: {}", id.pid, error.desc()),
                }),
            };
            // Refused when the view has ended.
            drop(input.send(done));
        }
    };
    thread::Builder::new().name("look".into()).spawn(run)?;
    Ok(work)
}

/// Has the terminal's keys come; its thread ends with the process.
fn start_keys(input: Sender<Input>) -> Result<()> {
    let run = move || {
        loop {
            let next = match event::read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => Input::Key(key),
                Ok(Event::Resize(..)) => Input::Resized,
                Ok(_) => continue,
                Err(_) => Input::End,
            };
            let last = matches!(next, Input::End);
            if input.send(next).is_err() || last {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".into()).spawn(run)?;
    Ok(())
}

/// Has signals that end this process come as inputs, so that the terminal is left as it was. To be called before there
/// are other threads.
fn listen_for_signals(input: Sender<Input>) -> Result<()> {
    let signals = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT];
    let signals = SigSet::from_iter(signals);
    signals.thread_block()?;
    let run = move || {
        signals.wait().ok();
        drop(input.send(Input::End));
    };
    thread::Builder::new().name("signals".into()).spawn(run)?;
    Ok(())
}
