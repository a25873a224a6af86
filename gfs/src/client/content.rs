//! What a file's bytes are: the committed content and up to two layers of changes above it.

use super::dirty::{Dirty, Span};
use bytes::Bytes;
use consistency::wire::meta::{Content, Extent, FlushContent};
use consistency::{ChunkId, NodeId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A run of bytes and where to get them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Bytes(Bytes),
    Zero(u64),
    Chunk(ChunkPart),
}

/// Bytes of a committed chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChunkPart {
    pub(super) chunk: ChunkId,
    pub(super) replicas: Vec<NodeId>,
    pub(super) offset: u32,
    pub(super) len: u32,
}

impl ChunkPart {
    /// Returns the bytes `[from, to)` of it.
    pub(super) fn slice(&self, from: u64, to: u64) -> Self {
        let within = |at| u32::try_from(at).expect("inside a chunk of at most 4 MiB");
        Self {
            chunk: self.chunk,
            replicas: self.replicas.clone(),
            offset: self.offset + within(from),
            len: within(to - from),
        }
    }

    /// Returns this and what follows it as one, if they lie together in their chunk.
    pub(super) fn joined(&self, next: &Self) -> Option<Self> {
        let together = self.chunk == next.chunk
            && self.replicas == next.replicas
            && self.offset + self.len == next.offset;
        together.then(|| Self {
            len: self.len + next.len,
            ..self.clone()
        })
    }
}

impl From<Extent> for ChunkPart {
    fn from(extent: Extent) -> Self {
        Self {
            chunk: extent.chunk,
            replicas: extent.replicas,
            offset: extent.chunk_offset,
            len: extent.len,
        }
    }
}

impl Segment {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Zero(len) => *len,
            Self::Chunk(part) => u64::from(part.len),
        }
    }
}

/// Committed content.
#[derive(Clone, Debug)]
pub(super) enum Base {
    /// All bytes; zero behind their end.
    Inline(Bytes),
    /// By offset, not overlapping; zero between them.
    Extents(BTreeMap<u64, Extent>),
}

impl Base {
    pub(super) fn new(content: Content) -> Self {
        match content {
            Content::Inline(bytes) => Self::Inline(bytes),
            Content::Extents(extents) => {
                Self::Extents(extents.into_iter().map(|e| (e.offset, e)).collect())
            }
        }
    }

    /// Returns the memory it is charged for, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Inline(bytes) => bytes.len(),
            Self::Extents(extents) => extents.len() * size_of::<Extent>() * 2,
        }
    }

    /// Returns how many extents there are.
    pub(super) fn extents(&self) -> usize {
        match self {
            Self::Inline(_) => 0,
            Self::Extents(extents) => extents.len(),
        }
    }

    fn allocated(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Extents(extents) => extents.values().map(|e| u64::from(e.len)).sum(),
        }
    }

    /// Appends where the bytes of `[offset, offset + len)` are.
    pub(super) fn segments(&self, offset: u64, len: u64, out: &mut Vec<Segment>) {
        let end = offset.saturating_add(len);
        match self {
            Self::Inline(bytes) => {
                let from = offset.min(bytes.len() as u64);
                let to = end.min(bytes.len() as u64);
                if from < to {
                    out.push(Segment::Bytes(bytes.slice(index(from)..index(to))));
                }
                push_zero(out, (end - offset) - (to - from));
            }
            Self::Extents(extents) => {
                let first = extents.range(..=offset).next_back().map(|(&at, _)| at);
                let mut at = offset;
                for extent in extents.range(first.unwrap_or(offset)..end).map(|(_, e)| e) {
                    let extent_end = extent.offset + u64::from(extent.len);
                    if extent_end <= at {
                        continue;
                    }
                    push_zero(out, extent.offset.saturating_sub(at));
                    let part = slice(extent, at.max(extent.offset), extent_end.min(end));
                    at = part.offset + u64::from(part.len);
                    out.push(Segment::Chunk(part.into()));
                }
                push_zero(out, end - at);
            }
        }
    }

    /// Applies what a flush committed.
    fn apply(&mut self, flushed: &FlushContent) {
        match flushed {
            FlushContent::Same => {}
            FlushContent::Inline(bytes) => *self = Self::Inline(bytes.clone()),
            FlushContent::Extents { cut, add, .. } => {
                let mut extents = match std::mem::replace(self, Self::Inline(Bytes::new())) {
                    Self::Inline(_) => BTreeMap::new(),
                    Self::Extents(extents) => extents,
                };
                if let Some(cut) = *cut {
                    clear(&mut extents, cut, u64::MAX);
                }
                for extent in add {
                    let end = extent.offset + u64::from(extent.len);
                    clear(&mut extents, extent.offset, end);
                    extents.insert(extent.offset, extent.clone());
                }
                *self = Self::Extents(extents);
            }
        }
    }
}

/// Removes what the extents say about `[start, end)`.
fn clear(extents: &mut BTreeMap<u64, Extent>, start: u64, end: u64) {
    let first = extents.range(..start).next_back().map(|(&at, _)| at);
    let from = first.unwrap_or(start);
    let hit: Vec<u64> = extents.range(from..end).map(|(&at, _)| at).collect();
    for at in hit {
        let extent = extents.remove(&at).expect("listed above");
        let extent_end = at + u64::from(extent.len);
        let mut keep = |from: u64, to: u64| {
            if from < to {
                extents.insert(from, slice(&extent, from, to));
            }
        };
        keep(at, start.min(extent_end));
        keep(end.max(at), extent_end);
    }
}

/// Returns the part `[from, to)` of an extent.
fn slice(extent: &Extent, from: u64, to: u64) -> Extent {
    let skip = u32::try_from(from - extent.offset).expect("inside an extent of at most 4 MiB");
    Extent {
        offset: from,
        len: u32::try_from(to - from).expect("inside an extent of at most 4 MiB"),
        chunk: extent.chunk,
        chunk_offset: extent.chunk_offset + skip,
        replicas: extent.replicas.clone(),
    }
}

fn push_zero(out: &mut Vec<Segment>, len: u64) {
    match out.last_mut() {
        _ if len == 0 => {}
        Some(Segment::Zero(last)) => *last += len,
        _ => out.push(Segment::Zero(len)),
    }
}

/// Returns where the bytes of `[offset, offset + len)` are, with the layers, topmost first, over the base.
pub(super) fn overlay(layers: &[&Dirty], base: &Base, offset: u64, len: u64) -> Vec<Segment> {
    let mut out = Vec::new();
    stack(layers, base, offset, len, &mut out);
    out
}

fn stack(layers: &[&Dirty], base: &Base, offset: u64, len: u64, out: &mut Vec<Segment>) {
    let Some((top, below)) = layers.split_first() else {
        base.segments(offset, len, out);
        return;
    };
    let mut at = offset;
    for span in top.spans(offset, len) {
        let len = match span {
            Span::Bytes(bytes) => {
                let len = bytes.len() as u64;
                out.push(Segment::Bytes(bytes));
                len
            }
            Span::Zero(len) => {
                push_zero(out, len);
                len
            }
            Span::Chunk(part) => {
                let len = u64::from(part.len);
                out.push(Segment::Chunk(part));
                len
            }
            Span::Below(len) => {
                stack(below, base, at, len, out);
                len
            }
        };
        at += len;
    }
}

/// Returns a position in memory.
pub(super) fn index(at: u64) -> usize {
    usize::try_from(at).expect("positions in memory fit")
}

/// Content of a file as this node sees it.
#[derive(Debug)]
pub(super) struct FileContent {
    /// Shared with a flush that plans over it.
    base: Arc<Base>,
    /// Bytes that the base occupies.
    allocated: u64,
    /// Being flushed.
    flushing: Option<Dirty>,
    /// Changed since.
    pub(super) dirty: Dirty,
}

impl FileContent {
    pub(super) fn new(content: Content) -> Self {
        let base = Arc::new(Base::new(content));
        Self {
            allocated: base.allocated(),
            base,
            flushing: None,
            dirty: Dirty::default(),
        }
    }

    /// Takes committed content anew; local changes stay on top of it.
    pub(super) fn rebase(&mut self, content: Content) {
        self.base = Arc::new(Base::new(content));
        self.allocated = self.base.allocated();
    }

    pub(super) const fn base(&self) -> &Arc<Base> {
        &self.base
    }

    /// Tells whether bytes were changed that the leader has not seen.
    pub(super) fn is_dirty(&self) -> bool {
        self.flushing.is_some() || !self.dirty.is_empty()
    }

    /// Returns what stat(2) shows as allocated while there are changes, in 512-byte units: as much as a flush would
    /// leave behind if nothing was written twice.
    pub(super) fn blocks(&self, size: u64) -> u64 {
        size.min(self.allocated + self.changed_bytes())
            .div_ceil(512)
    }

    /// Returns the bytes that changes will occupy once they are flushed, at most.
    pub(super) fn changed_bytes(&self) -> u64 {
        self.dirty_bytes() + self.shared_bytes()
    }

    /// Returns the bytes of changes that lie in chunks of other files.
    pub(super) fn shared_bytes(&self) -> u64 {
        self.dirty.shared() + self.flushing.as_ref().map_or(0, Dirty::shared)
    }

    /// Returns the bytes of memory that changes occupy.
    pub(super) fn dirty_bytes(&self) -> u64 {
        self.dirty.bytes() + self.flushing.as_ref().map_or(0, Dirty::bytes)
    }

    /// Returns where the bytes of `[offset, offset + len)` are; the caller has clipped the range to the size.
    pub(super) fn segments(&self, offset: u64, len: u64) -> Vec<Segment> {
        match &self.flushing {
            Some(flushing) => overlay(&[&self.dirty, flushing], &self.base, offset, len),
            None => overlay(&[&self.dirty], &self.base, offset, len),
        }
    }

    /// Moves the changes into the layer that is flushed, and returns a copy of it.
    pub(super) fn begin_flush(&mut self) -> Dirty {
        assert!(self.flushing.is_none(), "one flush of a file at a time");
        self.dirty.freeze();
        let dirty = std::mem::take(&mut self.dirty);
        self.flushing = Some(dirty.clone());
        dirty
    }

    /// The flush was committed.
    pub(super) fn flushed(&mut self, content: &FlushContent) {
        self.flushing = None;
        Arc::make_mut(&mut self.base).apply(content);
        self.allocated = self.base.allocated();
    }

    /// The flush failed: its changes are as dirty as before.
    pub(super) fn flush_failed(&mut self) {
        if let Some(mut below) = self.flushing.take() {
            below.absorb(std::mem::take(&mut self.dirty));
            self.dirty = below;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(offset: u64, len: u32, chunk: u64) -> Extent {
        Extent {
            offset,
            len,
            chunk: ChunkId(chunk),
            chunk_offset: 0,
            replicas: Vec::new(),
        }
    }

    fn show(segments: &[Segment]) -> String {
        let show = |segment: &Segment| match segment {
            Segment::Bytes(bytes) => format!("{:?}", String::from_utf8_lossy(bytes)),
            Segment::Zero(len) => format!("0*{len}"),
            Segment::Chunk(part) => format!("{:?}+{}*{}", part.chunk, part.offset, part.len),
        };
        segments.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(content: &FileContent, offset: u64, len: u64, expected: &str) {
        assert_eq!(show(&content.segments(offset, len)), expected);
    }

    #[test]
    fn extents_and_holes() {
        let content = FileContent::new(Content::Extents(vec![extent(10, 10, 1), extent(30, 5, 2)]));
        check(&content, 0, 40, "0*10 c1+0*10 0*10 c2+0*5 0*5");
        check(&content, 12, 4, "c1+2*4");
        check(&content, 15, 17, "c1+5*5 0*10 c2+0*2");
        check(&content, 50, 5, "0*5");
    }

    #[test]
    fn layers_cover_what_is_below() {
        let mut content = FileContent::new(Content::Extents(vec![extent(0, 100, 1)]));
        content.dirty.write(10, Bytes::from_static(b"ab"));
        content.begin_flush();
        content.dirty.write(11, Bytes::from_static(b"X"));
        content.dirty.truncate(50);
        check(&content, 0, 60, r#"c1+0*10 "a" "X" c1+12*38 0*10"#);
        content.flush_failed();
        check(&content, 0, 60, r#"c1+0*10 "a" "X" c1+12*38 0*10"#);
    }

    #[test]
    fn parts_of_other_files_are_part_of_a_layer() {
        let mut content = FileContent::new(Content::Extents(vec![extent(0, 100, 1)]));
        let part = ChunkPart::from(extent(0, 60, 7));
        content.dirty.share(20, part.slice(10, 50));
        check(&content, 0, 100, "c1+0*20 c7+10*40 c1+60*40");
        assert_eq!((content.dirty_bytes(), content.shared_bytes()), (0, 40));
        assert_eq!(content.blocks(1000), 1);
        content.begin_flush();
        content.dirty.write(30, Bytes::from_static(b"ab"));
        content.dirty.zero(55, 10);
        check(
            &content,
            0,
            100,
            r#"c1+0*20 c7+10*10 "ab" c7+22*23 0*10 c1+65*35"#,
        );
        assert_eq!(content.shared_bytes(), 40);
        content.flush_failed();
        assert_eq!(content.shared_bytes(), 33);
        content.dirty.truncate(25);
        check(&content, 15, 20, "c1+15*5 c7+10*5 0*10");
        assert_eq!(content.changed_bytes(), 5);
    }

    #[test]
    fn a_flush_becomes_the_base() {
        let mut content = FileContent::new(Content::Extents(vec![extent(0, 100, 1)]));
        content.dirty.truncate(50);
        content.dirty.write(20, Bytes::from_static(b"abc"));
        content.begin_flush();
        content.flushed(&FlushContent::Extents {
            cut: Some(50),
            add: vec![extent(20, 3, 2)],
            chunks: Vec::new(),
        });
        assert!(!content.is_dirty());
        check(&content, 0, 60, "c1+0*20 c2+0*3 c1+23*27 0*10");
    }

    #[test]
    fn inline_bytes_end_in_zeros() {
        let content = FileContent::new(Content::Inline(Bytes::from_static(b"abc")));
        check(&content, 1, 5, r#""bc" 0*3"#);
        check(&content, 9, 5, "0*5");
    }
}
