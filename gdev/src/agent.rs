//! A node's device agent: lets the others see and use the devices here.

use crate::carried::carried;
use crate::claims::Claim;
use crate::class::{Class, Rules};
use crate::dev::{Dev, Found, seen};
use crate::disks::{Disks, Guard};
use crate::open::Open;
use crate::path::DevPath;
use crate::rights::{self, Refusal};
use crate::session;
use crate::wire::session::{FromOwner, How, ToOwner};
use crate::wire::{DevReply, DevRequest, Device, GROUPS_MAX, IO_BYTES_MAX, User};
use async_trait::async_trait;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::meta::FileKind;
use consistency::wire::{decode, encode};
use gfs::error::Errno;
use gfs::net::{ByteStream, Service, frames};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// How many requests are served at a time; more wait for their turn, within the caller's deadline. Each may hold
/// [`IO_BYTES_MAX`], so this bounds the memory, and the threads that slow devices may block.
pub const REQUESTS_MAX: usize = 64;
/// How many devices may be open for all nodes at a time: each has four descriptors.
pub const SESSIONS_MAX: usize = 4096;
/// How long a node has to say what it opened a stream for.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// Is told of what is opened, in a line.
pub type Audit = Box<dyn Fn(&str) + Send + Sync>;

/// Answers [`DevRequest`]s and serves sessions out of the node's `/dev`.
pub struct DevAgent {
    node: NodeId,
    devices: Arc<Devices>,
    turns: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    audit: Option<Audit>,
}

/// The devices and who may use them. Methods block.
#[derive(Debug)]
struct Devices {
    dev: Dev,
    rules: Rules,
    disks: Arc<Disks>,
}

impl fmt::Debug for DevAgent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevAgent")
            .field("node", &self.node)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

impl DevAgent {
    /// Answers for `node` from the devices at `dev_path`, of which others may use what `rules` say.
    #[must_use]
    pub fn new(node: NodeId, dev_path: impl Into<PathBuf>, rules: Rules) -> Self {
        Self {
            node,
            devices: Arc::new(Devices {
                dev: Dev::new(dev_path.into()),
                rules,
                disks: Arc::new(Disks::new(None)),
            }),
            turns: Arc::new(Semaphore::new(REQUESTS_MAX)),
            sessions: Arc::new(Semaphore::new(SESSIONS_MAX)),
            audit: None,
        }
    }

    /// Has `audit` told of every open by another node, allowed or not, but of devices without state ([`Class::Memory`]).
    #[must_use]
    pub fn with_audit(mut self, audit: Audit) -> Self {
        self.audit = Some(audit);
        self
    }

    /// Keeps at `path` who has written which disk, so that it is known after a restart (DV6). To be called before it serves.
    #[must_use]
    pub fn with_record(mut self, path: PathBuf) -> Self {
        let devices = Arc::get_mut(&mut self.devices).expect("it does not serve yet");
        devices.disks = Arc::new(Disks::new(Some(path)));
        self
    }

    /// Returns the node this agent answers for.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// Answers a request of a node.
    pub async fn answer(&self, from: NodeId, request: DevRequest) -> DevReply {
        let answered = self.in_thread(move |devices| devices.serve(from, request));
        let answer = answered.await;
        answer.unwrap_or_else(|errno| DevReply::Failed(errno.0))
    }

    /// Opens what the first message of a session asks for.
    async fn open(&self, from: NodeId, first: ToOwner) -> Result<Arc<Open>, Errno> {
        let ToOwner::Open {
            path,
            device,
            who,
            how,
        } = first
        else {
            return Err(Errno::EINVAL);
        };
        if who.groups.len() > GROUPS_MAX || !(how.read || how.write) {
            return Err(Errno::EINVAL);
        }
        let (at, uid) = (path.clone(), who.uid);
        let turns = Arc::clone(&self.turns);
        let opened =
            self.in_thread(move |devices| devices.open(from, &at, device, &who, how, turns));
        let opened = opened.await;
        let told = from != self.node && Class::of(device) != Class::Memory;
        if let Some(audit) = self.audit.as_ref().filter(|_| told) {
            let way = match (how.read, how.write) {
                (true, true) => "read and write",
                (true, false) => "read",
                _ => "write",
            };
            let result = match &opened {
                Ok(_) => "opened",
                Err(_) => "refused",
            };
            let (owner, path) = (self.node, path.relative().display());
            audit(&format!(
                "node {owner} device {path} ({device}) {result} for node {from} user {uid} to {way}"
            ));
        }
        opened
    }

    async fn in_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Devices) -> T + Send + 'static,
    ) -> T {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let devices = Arc::clone(&self.devices);
        let work = move || {
            // Held by the work itself: what is stuck counts even after its caller has given up.
            let _turn = turn.expect("it is never closed");
            work(&devices)
        };
        tokio::task::spawn_blocking(work)
            .await
            .expect("using a device does not panic")
    }
}

#[async_trait]
impl Service for DevAgent {
    async fn call(&self, from: NodeId, body: Bytes) -> Option<Bytes> {
        let request = decode(&body)
            .inspect_err(|error| tracing::warn!(%from, %error, "refused a device request"))
            .ok()?;
        Some(encode(&self.answer(from, request).await).into())
    }

    async fn accept(&self, from: NodeId, mut stream: ByteStream) {
        let first = tokio::time::timeout(OPEN_DEADLINE, frames::receive(&mut stream.reader));
        let Ok(Ok(first)) = first.await else {
            tracing::warn!(%from, "a stream that opens no device");
            return;
        };
        let session = Arc::clone(&self.sessions).try_acquire_owned();
        let opened = match &session {
            Ok(_) => self.open(from, first).await,
            Err(_) => Err(Errno(libc::ENFILE)),
        };
        let told = match &opened {
            Ok(open) => FromOwner::Opened(open.access()),
            Err(errno) => FromOwner::Refused(errno.0),
        };
        let sent = frames::send(&mut stream.writer, &told).await;
        if let (Ok(open), Ok(())) = (opened, sent) {
            session::serve(open, stream).await;
        }
    }
}

impl Devices {
    fn serve(&self, from: NodeId, request: DevRequest) -> Result<DevReply, Errno> {
        match request {
            DevRequest::Stat(path) => self.dev.stat(&path).map(DevReply::Node),
            DevRequest::List { dir, after } => {
                let (entries, more) = self.dev.list(&dir, after.as_ref())?;
                Ok(DevReply::Listing { entries, more })
            }
            DevRequest::Open {
                path,
                device,
                who,
                read,
                write,
            } => {
                let (found, carried) = self.alone(&path, device, &who.into(), read, write)?;
                let opening = carried.open(&found.path(), read, write)?;
                Ok(DevReply::Opened(opening))
            }
            DevRequest::Read {
                path,
                device,
                who,
                size,
            } => {
                if size > IO_BYTES_MAX {
                    return Err(Errno::EINVAL);
                }
                let (found, carried) = self.alone(&path, device, &who.into(), true, false)?;
                Ok(DevReply::Data(carried.read(&found.path(), size as usize)?))
            }
            DevRequest::Write {
                path,
                device,
                who,
                data,
            } => {
                if data.len() > IO_BYTES_MAX as usize {
                    return Err(Errno::EINVAL);
                }
                let (found, carried) = self.alone(&path, device, &who.into(), false, true)?;
                let taken = carried.write(&found.path(), &data)?;
                let taken = u32::try_from(taken).expect("no more is taken than was given");
                Ok(DevReply::Written(taken))
            }
            DevRequest::Look(path) => Ok(DevReply::Seen(seen(self.dev.stat(&path)?))),
            DevRequest::Survey { dir, after } => {
                let (entries, more) = self.dev.list(&dir, after.as_ref())?;
                let entries = entries.into_iter().map(|(name, node)| (name, seen(node)));
                Ok(DevReply::Survey {
                    entries: entries.collect(),
                    more,
                })
            }
            DevRequest::Why { path, who } => self.why(from, &path, &who).map(DevReply::Why),
        }
    }

    /// Finds a device for a call that stands alone.
    fn alone(
        &self,
        path: &DevPath,
        device: Device,
        who: &User,
        read: bool,
        write: bool,
    ) -> Result<(Found, &'static dyn crate::carried::Carried), Errno> {
        let found = self.dev.device(path, device)?;
        let carried = carried(device).ok_or(Errno::ENOTSUP)?;
        let how = How {
            read,
            write,
            ..How::default()
        };
        self.check(&found, Class::of(device), who, how)
            .map_err(Refusal::errno)?;
        Ok((found, carried))
    }

    fn open(
        &self,
        from: NodeId,
        path: &DevPath,
        device: Device,
        who: &User,
        how: How,
        turns: Arc<Semaphore>,
    ) -> Result<Arc<Open>, Errno> {
        let found = self.dev.device(path, device)?;
        let class = Class::of(device);
        self.check(&found, class, who, how)
            .map_err(Refusal::errno)?;
        let claim = self.claim(from, device, how, &found)?;
        Open::new(&found.path(), class, how, who.uid == 0, claim, turns)
    }

    fn claim(
        &self,
        node: NodeId,
        device: Device,
        how: How,
        found: &Found,
    ) -> Result<Option<Guard>, Errno> {
        let claim = Claim {
            device,
            node,
            write: how.write,
            exclusive: how.exclusive,
        };
        if !device.block || !(how.write || how.exclusive) {
            return Ok(None);
        }
        self.disks.claim(claim, &found.path()).map(Some)
    }

    fn check(&self, found: &Found, class: Class, who: &User, how: How) -> Result<(), Refusal> {
        rights::check(&self.rules, class, &found.node, who, how, log_is_open())
    }

    /// Tells why a device cannot be opened to read, or to write.
    fn why(&self, from: NodeId, path: &DevPath, who: &User) -> Result<Option<String>, Errno> {
        let found = self.dev.look(path)?;
        let device = match found.node.kind {
            FileKind::Dir | FileKind::Symlink | FileKind::Socket => return Ok(None),
            FileKind::Fifo => {
                return Ok(Some("a named pipe joins processes of its own node".into()));
            }
            FileKind::File => return Ok(Some("this is a file, not a device".into())),
            FileKind::Char | FileKind::Block => found.node.device.ok_or(Errno::EIO)?,
        };
        let refused = |read, write| {
            let how = How {
                read,
                write,
                ..How::default()
            };
            let refused = self.check(&found, Class::of(device), who, how).err();
            let claim = Claim {
                device,
                node: from,
                write,
                exclusive: false,
            };
            refused.or_else(|| {
                let asks = write && device.block;
                asks.then(|| self.disks.in_the_way(claim, &found.path()))?
            })
        };
        Ok(match (refused(true, false), refused(false, true)) {
            (None, None) => None,
            (Some(both), Some(other)) if both == other => Some(both.to_string()),
            (read, write) => {
                let part = |way: &str, refusal: Option<Refusal>| {
                    refusal.map(|refusal| format!("to {way}: {refusal}"))
                };
                let parts = [part("read", read), part("write", write)];
                Some(Vec::from_iter(parts.into_iter().flatten()).join("; "))
            }
        })
    }
}

/// Tells whether all users of this node may read the kernel's log.
fn log_is_open() -> bool {
    let restricted = std::fs::read("/proc/sys/kernel/dmesg_restrict");
    restricted.is_ok_and(|text| text.starts_with(b"0"))
}
