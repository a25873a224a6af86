//! Whether pages get there sooner when they are packed (LZ4). It is measured as they go, and decided anew all the time: by how
//! fast the way takes bytes, and what packing takes and saves.

use super::super::wire::{Content, Piece};
use std::io;
use std::time::{Duration, Instant};

/// So much goes between two decisions, in bytes of pages.
const ROUND_BYTES: u64 = 4 << 20;
/// Of pages that do not go packed every so many pieces one is packed, to see what comes of it.
const SAMPLE_EVERY: u64 = 16;

#[derive(Debug, Default)]
pub(super) struct Packing {
    on: bool,
    pieces: u64,
    round: Round,
}

/// What was seen since the last decision.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    bytes: u64,
    /// What the way has taken, and how long that took.
    sent: u64,
    sending: Duration,
    /// What was packed, what came of it, and how long that took.
    taken: u64,
    packed: u64,
    packing: Duration,
}

impl Round {
    /// Returns whether a byte goes sooner packed than not.
    fn pays(&self) -> bool {
        if self.taken == 0 || self.sent == 0 {
            return false;
        }
        let per_byte = |time: Duration, bytes: u64| time.as_secs_f64() / bytes as f64;
        let way = per_byte(self.sending, self.sent);
        let packed = self.packed as f64 / self.taken as f64;
        way * packed + per_byte(self.packing, self.taken) < way
    }
}

impl Packing {
    /// Sends a piece, packed if that pays; returns its bytes on the way.
    pub(super) fn send(
        &mut self,
        piece: Piece,
        send: impl FnOnce(Piece) -> io::Result<()>,
    ) -> io::Result<u64> {
        let plain_len = piece.content.len() as u64;
        let sample = self.pieces.is_multiple_of(SAMPLE_EVERY);
        self.pieces += 1;
        let piece = match self.on || sample {
            true => self.pack(piece),
            false => piece,
        };
        let len = piece.content.len() as u64;
        let begun = Instant::now();
        send(piece)?;
        self.round.sending += begun.elapsed();
        self.round.sent += len;
        self.round.bytes += plain_len;
        if self.round.bytes >= ROUND_BYTES {
            self.on = self.round.pays();
            self.round = Round::default();
        }
        Ok(len)
    }

    fn pack(&mut self, piece: Piece) -> Piece {
        let Content::Plain(bytes) = &piece.content else {
            return piece;
        };
        let begun = Instant::now();
        let packed = lz4_flex::block::compress(bytes);
        self.round.packing += begun.elapsed();
        self.round.taken += bytes.len() as u64;
        self.round.packed += packed.len().min(bytes.len()) as u64;
        if packed.len() >= bytes.len() {
            return piece;
        }
        let pages = piece.pages();
        let content = Content::Packed(pages, packed.into());
        Piece { content, ..piece }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(way_ms: u64, packed: u64, packing_ms: u64) -> Round {
        Round {
            bytes: 1 << 20,
            sent: 1 << 20,
            sending: Duration::from_millis(way_ms),
            taken: 1 << 20,
            packed,
            packing: Duration::from_millis(packing_ms),
        }
    }

    #[test]
    fn packed_is_what_gets_there_sooner() {
        assert!(round(80, 300 << 10, 2).pays(), "a slow way");
        assert!(!round(1, 300 << 10, 2).pays(), "a fast way");
        assert!(!round(80, 1 << 20, 2).pays(), "nothing is saved");
        assert!(!Round::default().pays(), "nothing is known");
    }
}
