//! Makes images of a job, with its pages where they are wanted. Where they cannot be there they are all among the images.

use super::super::group::Group;
use super::ahead::{self, Gone, Sink};
use super::engine::{Engine, Kind};
use super::pages::Served;
use super::wire::Image;
use std::io;

/// Where the pages are to be.
pub(super) enum Memory {
    /// All among the images.
    Here,
    /// The source keeps most (post-copy).
    AtSource,
    /// Those that have gone ahead count, and what has changed goes, too.
    Ahead(Gone, Sink),
}

/// Where they are.
#[derive(Debug)]
pub(super) enum Pages {
    Here,
    /// Those that are not among the images are served.
    AtSource(Served),
    /// Those that are not have gone ahead, in so many bytes in all.
    Ahead(u64),
}

/// Freezes a job and makes images of it. If that fails it goes on; else it stays frozen. Blocks.
pub(super) fn dump(
    engine: &Engine,
    group: &Group,
    pid: i32,
    kind: Kind,
    memory: Memory,
) -> io::Result<(Vec<Image>, Pages)> {
    let lacking = match memory {
        Memory::AtSource => {
            let dumped = engine.dump_partly(group, pid, kind);
            dumped.map(|(images, served)| (images, Pages::AtSource(served)))
        }
        Memory::Ahead(mut gone, send) => {
            let dumped = ahead::dump(engine, group, pid, kind, &mut gone, send);
            dumped.map(|images| (images, Pages::Ahead(gone.bytes)))
        }
        Memory::Here => return Ok((engine.dump(group, pid, kind)?, Pages::Here)),
    };
    lacking.or_else(|error| {
        tracing::warn!(pid, %error, "a job moves with all its pages");
        Ok((engine.dump(group, pid, kind)?, Pages::Here))
    })
}
