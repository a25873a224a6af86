//! `stat` of a process.

/// What is used of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) name: Vec<u8>,
    pub(crate) state: char,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// Ticks of processor time, of user and system.
    pub(crate) ticks: u64,
    pub(crate) nice: i32,
    pub(crate) threads: u32,
    /// When it began, in ticks since its node booted.
    pub(crate) start: u64,
    pub(crate) virtual_bytes: u64,
    pub(crate) resident_pages: u64,
}

impl Stat {
    /// Reads the text of the file; a name may have anything in it.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let begin = text.iter().position(|&byte| byte == b'(')?;
        let end = text.iter().rposition(|&byte| byte == b')')?;
        let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
        let words: Vec<&str> = rest.split_ascii_whitespace().collect();
        fn at<N: std::str::FromStr>(words: &[&str], index: usize) -> Option<N> {
            words.get(index)?.parse().ok()
        }
        let ticks: u64 = at(&words, 11)?;
        Some(Self {
            name: text.get(begin + 1..end)?.to_vec(),
            state: at(&words, 0)?,
            parent: at(&words, 1)?,
            group: at(&words, 2)?,
            session: at(&words, 3)?,
            ticks: ticks.saturating_add(at(&words, 12)?),
            nice: at(&words, 16)?,
            threads: at(&words, 17)?,
            start: at(&words, 19)?,
            virtual_bytes: at(&words, 20)?,
            resident_pages: at(&words, 21)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_read() {
        let text = b"70000 (a) b\n(c) S 65540 70000 69000 0 -1 4194560 1 2 3 4 50 7 0 0 20 -5 3 0 99 8192 2 18446744073709551615";
        let stat = Stat::parse(text).expect("is read");
        let expected = Stat {
            name: b"a) b\n(c".to_vec(),
            state: 'S',
            parent: 65_540,
            group: 70_000,
            session: 69_000,
            ticks: 57,
            nice: -5,
            threads: 3,
            start: 99,
            virtual_bytes: 8192,
            resident_pages: 2,
        };
        assert_eq!(stat, expected);
        for bad in [&b""[..], b"1 (a", b") 1 (", b"1 (a) S 1", b"1 (a)"] {
            assert_eq!(Stat::parse(bad), None);
        }
    }
}
