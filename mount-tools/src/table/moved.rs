//! What the newest move of a process has cost.

use serde::Serialize;

/// What `moved` of a process says: `1 2 812 90 4096 post-copy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Moved {
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) took_ms: u64,
    pub(crate) pause_ms: u64,
    pub(crate) bytes: u64,
    /// How its memory went: whole, pre-copy or post-copy.
    pub(crate) memory: String,
}

impl Moved {
    pub(crate) fn read(moved: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(moved).ok()?;
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let [from, to, took_ms, pause_ms, bytes, how] = words[..] else {
            return None;
        };
        Some(Self {
            from: from.parse().ok()?,
            to: to.parse().ok()?,
            took_ms: took_ms.parse().ok()?,
            pause_ms: pause_ms.parse().ok()?,
            bytes: bytes.parse().ok()?,
            memory: how.to_owned(),
        })
    }
}
