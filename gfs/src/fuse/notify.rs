//! What the kernel is told to forget (the implementation of [`Kernel`]).
//!
//! A notification about what the kernel does not have, or for a mount that is gone, has nothing left to do: both
//! are success.

use super::abi::notify;
use super::asker::Place;
use super::crossing::Crossings;
use super::device::Device;
use super::reply::Fields;
use super::waits::Waits;
use crate::tree::Kernel;
use consistency::InodeNo;
use consistency::wire::meta::Name;
use std::io;
use std::sync::Arc;

/// Largest piece of content that one [`Notifier::store`] takes in bytes.
pub const STORE_BYTES_MAX: usize = 1 << 20;

/// Sends notifications to one mount.
#[derive(Debug)]
pub struct Notifier {
    device: Arc<Device>,
    epochs: bool,
    crossings: Arc<Crossings>,
    waits: Arc<Waits>,
}

impl Notifier {
    /// Finds out what this kernel can do. The connection must have been negotiated.
    pub(super) fn probe(
        device: Arc<Device>,
        place: Arc<Place>,
        waits: Arc<Waits>,
    ) -> io::Result<Self> {
        let mut notifier = Self {
            device,
            epochs: true,
            crossings: Arc::new(Crossings::new(place)),
            waits,
        };
        match notifier.forget_all_names() {
            Ok(()) => Ok(notifier),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                notifier.epochs = false;
                Ok(notifier)
            }
            Err(error) => Err(error),
        }
    }

    /// Returns when this kernel was told to forget attributes (K2).
    pub(super) fn crossings(&self) -> Arc<Crossings> {
        Arc::clone(&self.crossings)
    }

    /// Tells whether [`Kernel::forget_all_names`] works (Linux 6.16 and newer).
    #[must_use]
    pub fn epoch_supported(&self) -> bool {
        self.epochs
    }

    /// Puts content into the kernel's pages and grows its idea of the size where they go beyond it. Without that a
    /// mapping of a file that grew on another node gets SIGBUS behind the old end. May wait like
    /// [`Kernel::forget_data`].
    ///
    /// # Errors
    /// What the kernel reports, and InvalidInput above [`STORE_BYTES_MAX`].
    pub fn store(&self, ino: InodeNo, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > STORE_BYTES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fields = Fields::with_capacity(24);
        fields.u64(ino.0);
        fields.u64(offset);
        fields.u32(size);
        fields.u32(0);
        self.send(notify::STORE, &[&fields.0, bytes])
    }

    /// Wakes those who poll an open file.
    pub(super) fn wake_pollers(&self, waiter: u64) -> io::Result<()> {
        self.send(notify::POLL, &[&waiter.to_ne_bytes()])
    }

    fn forget_inode(&self, ino: InodeNo, offset: i64) -> io::Result<()> {
        let mut fields = Fields::with_capacity(24);
        fields.u64(ino.0);
        fields.i64(offset);
        fields.i64(0);
        let send = || self.send(notify::INVAL_INODE, &[&fields.0]);
        self.crossings.tell(ino, send)
    }

    fn send(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        match self.device.notify(code, parts) {
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTCONN | libc::ENODEV) => Ok(()),
                _ => Err(error),
            },
            done => done,
        }
    }
}

impl Kernel for Notifier {
    fn forget_attr(&self, ino: InodeNo) -> io::Result<()> {
        // A negative offset leaves the pages alone.
        self.forget_inode(ino, -1)
    }

    fn forget_data(&self, ino: InodeNo) -> io::Result<()> {
        self.forget_inode(ino, 0)
    }

    fn forget_name(&self, parent: InodeNo, name: &Name) -> io::Result<()> {
        let name = name.as_bytes();
        let len = u32::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fields = Fields::with_capacity(16);
        fields.u64(parent.0);
        fields.u32(len);
        // Never EXPIRE_ONLY: the reply to a lookup that revalidates the name would then stick.
        fields.u32(0);
        self.send(notify::INVAL_ENTRY, &[&fields.0, name, &[0]])
    }

    fn may_hold(&self, dir: InodeNo) -> bool {
        self.waits.may_hold(dir)
    }

    fn forget_all_names(&self) -> io::Result<()> {
        if !self.epochs {
            return Err(io::ErrorKind::Unsupported.into());
        }
        self.send(notify::INC_EPOCH, &[])
    }
}
