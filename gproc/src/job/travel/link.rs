//! The stream between home and a host of a job, at both ends. One that is silent for [`SILENCE_MAX`] has ended.

use super::super::frame::{Alive, FrameReader, FrameSender, FrameWriter};
use super::super::protocol::{FRAME_BYTES_MAX, SILENCE_MAX};
use super::wire::{FromGuest, ToGuest};
use consistency::NodeId;
use gfs::net::{ServiceId, Transport};
use tokio::io::AsyncRead;
use tokio::time::{Instant, timeout_at};

/// A connection to a host.
pub(super) struct Link {
    reader: FrameReader<Box<dyn AsyncRead + Send + Unpin>>,
    pub(super) sender: FrameSender,
    _alive: Alive,
    _writer: FrameWriter,
    pub(super) heard: Instant,
    node: NodeId,
    is_new: bool,
}

/// The version of the protocol from which on hosts know [`ToGuest::Keep`], [`ToGuest::For`], [`ToGuest::Private`],
/// [`ToGuest::Terminal`], [`ToGuest::Limits`], [`ToGuest::InputFile`], and pages that come later.
pub(super) const NEW_SINCE: u32 = 12;

impl Link {
    /// Connects to a host.
    pub(super) async fn open(transport: &dyn Transport, node: NodeId) -> Result<Self, String> {
        let stream = transport.open(node, ServiceId::Job).await;
        let stream = stream.map_err(|error| error.to_string())?;
        let writer = FrameWriter::new(stream.writer);
        Ok(Self {
            reader: FrameReader::new(stream.reader),
            sender: writer.sender(),
            _alive: Alive::new(writer.sender(), ToGuest::Ping),
            _writer: writer,
            heard: Instant::now(),
            node,
            is_new: transport
                .version_of(node)
                .is_none_or(|version| version >= NEW_SINCE),
        })
    }

    pub(super) const fn node(&self) -> NodeId {
        self.node
    }

    /// Returns whether the host makes images that are to be kept.
    pub(super) const fn keeps(&self) -> bool {
        self.is_new
    }

    /// Returns whether the host takes jobs with a terminal.
    pub(super) const fn knows_terminals(&self) -> bool {
        self.is_new
    }

    /// Returns whether the host gives and takes pages after the images.
    pub(super) const fn knows_pages(&self) -> bool {
        self.is_new
    }

    /// Returns whether the host wants to know whose a job is.
    pub(super) const fn knows_users(&self) -> bool {
        self.is_new
    }

    /// Returns whether the host can have a job with something to itself.
    pub(super) const fn knows_private(&self) -> bool {
        self.is_new
    }

    /// Returns whether the host tells how far a job has read in a file.
    pub(super) const fn knows_input_files(&self) -> bool {
        self.is_new
    }

    /// Returns whether the host can keep a job within limits.
    pub(super) const fn knows_limits(&self) -> bool {
        self.is_new
    }

    /// Returns what comes next, or why nothing will. Cancel-safe.
    async fn next(&mut self) -> Result<FromGuest, String> {
        let next = self.reader.next(FRAME_BYTES_MAX);
        let frame = timeout_at(self.heard + SILENCE_MAX, next).await;
        self.heard = Instant::now();
        let why = match frame {
            Ok(Ok(Some(frame))) => return Ok(frame),
            Ok(Ok(None)) => "its daemon has ended, or its Glu is older".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("nothing came from it for {SILENCE_MAX:?}"),
        };
        Err(format!("node {} was lost with the job: {why}", self.node))
    }
}

/// What a link has brought.
pub(super) type Heard = Result<FromGuest, String>;

/// Returns what comes next by a link; waits for ever if there is none. Cancel-safe.
pub(super) async fn next_of(link: &mut Option<Link>) -> Heard {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// Home has gone, or has broken the protocol.
pub(super) struct HomeLost;

/// The stream from home.
pub(super) struct FromHome<R> {
    reader: FrameReader<R>,
    heard: Instant,
}

impl<R: AsyncRead + Unpin> FromHome<R> {
    pub(super) fn new(reader: FrameReader<R>) -> Self {
        Self {
            reader,
            heard: Instant::now(),
        }
    }

    /// Returns what comes next. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<ToGuest, HomeLost> {
        let next = self.reader.next(FRAME_BYTES_MAX);
        let frame = timeout_at(self.heard + SILENCE_MAX, next).await;
        self.heard = Instant::now();
        match frame {
            Ok(Ok(Some(frame))) => Ok(frame),
            _ => Err(HomeLost),
        }
    }

    pub(super) async fn gone(&mut self) {
        while self.next().await.is_ok() {}
    }
}
