//! Random numbers that a seed repeats, with a liking for the ends of ranges.

use std::time::UNIX_EPOCH;

/// splitmix64.
pub(crate) struct Dice(u64);

/// Returns how many requests a test makes: some seconds' worth in a debug build, unless `FUZZ_CASES` says otherwise.
pub(crate) fn cases(default: u64) -> u64 {
    number("FUZZ_CASES").unwrap_or(default)
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|e| panic!("{name}={text}: {e}")),
    )
}

impl Dice {
    /// Takes `SEED`, or another seed each time; a failing test shows it.
    pub(crate) fn new(test: &str) -> Self {
        let time = UNIX_EPOCH.elapsed().unwrap_or_default();
        let seed = number("SEED").unwrap_or_else(|| u64::from(time.subsec_nanos()));
        println!("SEED={seed} ({test})");
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number from 0 to before `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// Returns true once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let at = usize::try_from(self.below(of.len() as u64)).expect("an index");
        of[at].clone()
    }

    /// Returns a length from 0 to before `end`.
    pub(crate) fn len(&mut self, end: u64) -> usize {
        usize::try_from(self.below(end)).expect("a length")
    }

    /// Returns any number, those where something ends above all.
    pub(crate) fn u64(&mut self) -> u64 {
        let ends = [
            0,
            1,
            511,
            512,
            4096,
            16 << 10,
            64 << 10,
            4 << 20,
            1 << 32,
            1 << 62,
            1 << 63,
            u64::MAX,
        ];
        match self.below(4) {
            0 => self.roll(),
            1 => self.below(100_000),
            _ => self.pick(&ends).wrapping_add(self.below(3)).wrapping_sub(1),
        }
    }

    /// As [`Self::u64`].
    #[allow(clippy::cast_possible_truncation, reason = "any number will do")]
    pub(crate) fn u32(&mut self) -> u32 {
        self.u64() as u32
    }

    /// Returns bytes, fewer than `end`.
    pub(crate) fn bytes(&mut self, end: u64) -> Vec<u8> {
        let len = self.len(end);
        (0..len).map(|_| self.roll().to_le_bytes()[0]).collect()
    }

    /// Changes, cuts or lengthens a message here and there.
    pub(crate) fn spoil(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            if bytes.is_empty() {
                return;
            }
            let at = self.len(bytes.len() as u64);
            match self.below(4) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.roll().to_le_bytes()[0]),
                // The marks of longer numbers, and the largest byte.
                2 => bytes[at] = 251 + self.roll().to_le_bytes()[0] % 5,
                _ => bytes[at] ^= 1 << self.below(8),
            }
        }
    }
}
