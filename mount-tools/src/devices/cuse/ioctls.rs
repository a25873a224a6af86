//! The ioctls of a terminal that are carried to a line of another node: one row each, all others are ENOTTY.
//!
//! The file of the line in the tree takes those alone whose number says how much they carry. Those of the early days do
//! not; the line's node knows them under a number that does (`gdev::controls`, [`early`]), and TCGETS and TCSETS are done
//! by TCGETS2 and TCSETS2.

/// How much is carried which way, as the caller has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    Nothing,
    /// A number in the place of an address.
    Number,
    In(u32),
    Out(u32),
}

/// What is done at the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Do {
    /// This one, with all that is carried.
    As(u32),
    /// The first bytes of what TCGETS2 tells.
    GetModes,
    /// This variant of TCSETS2, with the first bytes changed.
    SetModes(u32),
}

pub(super) const TCGETS2: u32 = 0x802c_542a;
pub(super) const TCSETS2: u32 = 0x402c_542b;
const TCSETSW2: u32 = 0x402c_542c;
const TCSETSF2: u32 = 0x402c_542d;
/// `struct termios` of the kernel, and `struct termios2`, which has the speeds as numbers behind it.
const MODES_BYTES: u32 = 36;
pub(super) const MODES2_BYTES: u32 = 44;

use Carries::{In, Nothing, Number, Out};
use Do::{As, GetModes, SetModes};

#[rustfmt::skip]
const CARRIED: &[(u32, Carries, Do, &str)] = &[
    (0x5401,      Out(MODES_BYTES),  GetModes,              "TCGETS"),
    (0x5402,      In(MODES_BYTES),   SetModes(TCSETS2),     "TCSETS"),
    (0x5403,      In(MODES_BYTES),   SetModes(TCSETSW2),    "TCSETSW"),
    (0x5404,      In(MODES_BYTES),   SetModes(TCSETSF2),    "TCSETSF"),
    (TCGETS2,     Out(MODES2_BYTES), As(TCGETS2),           "TCGETS2"),
    (TCSETS2,     In(MODES2_BYTES),  As(TCSETS2),           "TCSETS2"),
    (TCSETSW2,    In(MODES2_BYTES),  As(TCSETSW2),          "TCSETSW2"),
    (TCSETSF2,    In(MODES2_BYTES),  As(TCSETSF2),          "TCSETSF2"),
    (0x5409,      Number,            early(0x09, Number),   "TCSBRK"),
    (0x540a,      Number,            early(0x0a, Number),   "TCXONC"),
    (0x540b,      Number,            early(0x0b, Number),   "TCFLSH"),
    (0x540c,      Nothing,           early(0x0c, Nothing),  "TIOCEXCL"),
    (0x540d,      Nothing,           early(0x0d, Nothing),  "TIOCNXCL"),
    (0x5411,      Out(4),            early(0x11, Out(4)),   "TIOCOUTQ"),
    (0x5413,      Out(8),            early(0x13, Out(8)),   "TIOCGWINSZ"),
    (0x5414,      In(8),             early(0x14, In(8)),    "TIOCSWINSZ"),
    (0x5415,      Out(4),            early(0x15, Out(4)),   "TIOCMGET"),
    (0x5416,      In(4),             early(0x16, In(4)),    "TIOCMBIS"),
    (0x5417,      In(4),             early(0x17, In(4)),    "TIOCMBIC"),
    (0x5418,      In(4),             early(0x18, In(4)),    "TIOCMSET"),
    (0x5419,      Out(4),            early(0x19, Out(4)),   "TIOCGSOFTCAR"),
    (0x541a,      In(4),             early(0x1a, In(4)),    "TIOCSSOFTCAR"),
    (0x541b,      Out(4),            early(0x1b, Out(4)),   "FIONREAD"),
    (0x5424,      Out(4),            early(0x24, Out(4)),   "TIOCGETD"),
    (0x5425,      Number,            early(0x25, Number),   "TCSBRKP"),
    (0x5427,      Nothing,           early(0x27, Nothing),  "TIOCSBRK"),
    (0x5428,      Nothing,           early(0x28, Nothing),  "TIOCCBRK"),
    (0x545d,      Out(80),           early(0x5d, Out(80)),  "TIOCGICOUNT"),
    (0x8004_5440, Out(4),            As(0x8004_5440),       "TIOCGEXCL"),
];

/// Returns an ioctl of the early days under the number that says what it carries.
const fn early(number: u32, carries: Carries) -> Do {
    let (direction, bytes) = match carries {
        Nothing => (0, 0),
        Number => (1, 4),
        In(bytes) => (1, bytes),
        Out(bytes) => (2, bytes),
    };
    As(direction << 30 | bytes << 16 | 0x5400 | number)
}

/// Returns how an ioctl is done, if it is carried.
pub(super) fn carried(command: u32) -> Option<(Carries, Do)> {
    let row = CARRIED.iter().find(|(carried, ..)| *carried == command);
    row.map(|(_, carries, what, _)| (*carries, *what))
}

/// Returns whether it waits until all that was written is sent.
pub(super) fn waits(what: Do) -> bool {
    let waiting = [0x09, 0x25].map(|number| early(number, Number));
    match what {
        As(command) => waiting.contains(&what) || [TCSETSW2, TCSETSF2].contains(&command),
        SetModes(command) => command != TCSETS2,
        GetModes => false,
    }
}

/// Returns settings with the first of them changed, as TCSETS does.
pub(super) fn with_modes(mut now: Vec<u8>, modes: &[u8]) -> Vec<u8> {
    let len = modes.len().min(now.len());
    now[..len].copy_from_slice(&modes[..len]);
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_early_days() {
        let check = |command, expected| {
            let (_, what) = carried(command).expect("carried");
            assert_eq!(what, As(expected), "{command:#x}");
        };
        check(0x5415, 0x8004_5415);
        check(0x5418, 0x4004_5418);
        check(0x5413, 0x8008_5413);
        check(0x5409, 0x4004_5409);
        check(0x5427, 0x5427);
        check(0x545d, 0x8050_545d);
        assert_eq!(carried(0x540e), None, "TIOCSCTTY");
        assert_eq!(carried(0x5412), None, "TIOCSTI");
    }

    #[test]
    fn rows_are_told_apart() {
        for (index, (one, ..)) in CARRIED.iter().enumerate() {
            assert!(CARRIED[index + 1..].iter().all(|(other, ..)| other != one));
        }
    }

    #[test]
    fn who_waits() {
        let waiting = CARRIED.iter().filter(|(.., what, _)| waits(*what));
        let names = Vec::from_iter(waiting.map(|(.., name)| *name));
        let expected = [
            "TCSETSW", "TCSETSF", "TCSETSW2", "TCSETSF2", "TCSBRK", "TCSBRKP",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn modes() {
        let now = vec![1; 44];
        let set = with_modes(now, &[2; 36]);
        assert_eq!(set, [vec![2; 36], vec![1; 8]].concat());
    }
}
