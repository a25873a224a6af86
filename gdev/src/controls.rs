//! The ioctls that are carried: one row each, all others are ENOTTY.
//!
//! Only those can be carried whose number says how much goes which way, for that is all that FUSE tells a daemon. So
//! TCGETS, BLKGETSIZE and others of the early days are not here, nor those that carry an address, a value in place of one
//! (EVIOCGRAB), or more than their number says (HIDIOCGRDESC).
//!
//! What a stand-in for a line needs of the early days ([`EARLY`]: TIOCMGET, TIOCGWINSZ, TCSBRK) is carried under numbers
//! that say it, which no kernel knows: TIOCMGET, 0x5415, is 0x80045415 on its way.

use crate::class::Class;
use crate::wire::session::How;
use gfs::error::Errno;

/// Size of what an ioctl carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Is(u32),
    /// The caller says it, up to [`NAME_BYTES_MAX`].
    UpTo,
}

/// Who may do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    /// Whoever has it open.
    Nothing,
    /// Who has it open to write.
    Write,
    /// What Linux asks a capability for.
    Root,
}

/// Directions, as seen by the caller.
const IN: u32 = 1;
const OUT: u32 = 2;
const BOTH: u32 = IN | OUT;

/// Most that a caller may choose to carry.
const NAME_BYTES_MAX: u32 = 4096;
const INT: Size = Size::Is(4);
const LONG: Size = Size::Is(8);
const TERMIOS2: Size = Size::Is(44);
const RTC_TIME: Size = Size::Is(36);
const RTC_ALARM: Size = Size::Is(40);

/// Class, direction, type, numbers from and to, size, who, name.
type Row = (Class, u32, u8, u8, u8, Size, Needs, &'static str);

#[rustfmt::skip]
const CARRIED: &[Row] = &[
    (Class::Memory,   OUT,  b'R', 0x00, 0x00, INT,            Needs::Nothing, "RNDGETENTCNT"),
    (Class::Block,    OUT,  0x12, 112,  112,  LONG,           Needs::Nothing, "BLKBSZGET"),
    (Class::Block,    OUT,  0x12, 114,  114,  LONG,           Needs::Nothing, "BLKGETSIZE64"),
    (Class::Block,    OUT,  0x12, 128,  128,  LONG,           Needs::Nothing, "BLKGETDISKSEQ"),
    (Class::Block,    OUT,  0x12, 240,  240,  Size::Is(24),   Needs::Write,   "the claims of a disk: Glu's own"),
    (Class::Rtc,      OUT,  b'p', 0x08, 0x08, RTC_TIME,       Needs::Nothing, "RTC_ALM_READ"),
    (Class::Rtc,      OUT,  b'p', 0x09, 0x09, RTC_TIME,       Needs::Nothing, "RTC_RD_TIME"),
    (Class::Rtc,      IN,   b'p', 0x0a, 0x0a, RTC_TIME,       Needs::Root,    "RTC_SET_TIME"),
    (Class::Rtc,      OUT,  b'p', 0x0b, 0x0b, LONG,           Needs::Nothing, "RTC_IRQP_READ"),
    (Class::Rtc,      IN,   b'p', 0x0f, 0x0f, RTC_ALARM,      Needs::Root,    "RTC_WKALM_SET"),
    (Class::Rtc,      OUT,  b'p', 0x10, 0x10, RTC_ALARM,      Needs::Nothing, "RTC_WKALM_RD"),
    (Class::Rtc,      OUT,  b'p', 0x13, 0x13, INT,            Needs::Nothing, "RTC_VL_READ"),
    (Class::Terminal, OUT,  b'T', 0x2a, 0x2a, TERMIOS2,       Needs::Nothing, "TCGETS2"),
    (Class::Terminal, IN,   b'T', 0x2b, 0x2b, TERMIOS2,       Needs::Write,   "TCSETS2"),
    (Class::Terminal, IN,   b'T', 0x2c, 0x2c, TERMIOS2,       Needs::Write,   "TCSETSW2"),
    (Class::Terminal, IN,   b'T', 0x2d, 0x2d, TERMIOS2,       Needs::Write,   "TCSETSF2"),
    (Class::Terminal, OUT,  b'T', 0x30, 0x30, INT,            Needs::Nothing, "TIOCGPTN"),
    (Class::Terminal, IN,   b'T', 0x31, 0x31, INT,            Needs::Write,   "TIOCSPTLCK"),
    (Class::Terminal, OUT,  b'T', 0x32, 0x32, INT,            Needs::Nothing, "TIOCGDEV"),
    (Class::Terminal, OUT,  b'T', 0x38, 0x39, INT,            Needs::Nothing, "TIOCGPKT, TIOCGPTLCK"),
    (Class::Terminal, OUT,  b'T', 0x40, 0x40, INT,            Needs::Nothing, "TIOCGEXCL"),
    (Class::Input,    OUT,  b'E', 0x01, 0x01, INT,            Needs::Nothing, "EVIOCGVERSION"),
    (Class::Input,    OUT,  b'E', 0x02, 0x03, LONG,           Needs::Nothing, "EVIOCGID, EVIOCGREP"),
    (Class::Input,    IN,   b'E', 0x03, 0x03, LONG,           Needs::Write,   "EVIOCSREP"),
    (Class::Input,    OUT,  b'E', 0x06, 0x09, Size::UpTo,     Needs::Nothing, "EVIOCGNAME, -PHYS, -UNIQ, -PROP"),
    (Class::Input,    OUT,  b'E', 0x18, 0x1b, Size::UpTo,     Needs::Nothing, "EVIOCGKEY, -LED, -SND, -SW"),
    (Class::Input,    OUT,  b'E', 0x20, 0x3f, Size::UpTo,     Needs::Nothing, "EVIOCGBIT"),
    (Class::Input,    OUT,  b'E', 0x40, 0x7f, Size::Is(24),   Needs::Nothing, "EVIOCGABS"),
    (Class::Input,    IN,   b'E', 0xa0, 0xa0, INT,            Needs::Nothing, "EVIOCSCLOCKID"),
    (Class::Hidraw,   OUT,  b'H', 0x01, 0x01, INT,            Needs::Nothing, "HIDIOCGRDESCSIZE"),
    (Class::Hidraw,   OUT,  b'H', 0x03, 0x03, LONG,           Needs::Nothing, "HIDIOCGRAWINFO"),
    (Class::Hidraw,   OUT,  b'H', 0x04, 0x05, Size::UpTo,     Needs::Nothing, "HIDIOCGRAWNAME, -PHYS"),
    (Class::Hidraw,   BOTH, b'H', 0x06, 0x07, Size::UpTo,     Needs::Write,   "HIDIOCSFEATURE, HIDIOCGFEATURE"),
    (Class::Hidraw,   OUT,  b'H', 0x08, 0x08, Size::UpTo,     Needs::Nothing, "HIDIOCGRAWUNIQ"),
    (Class::Watchdog, OUT,  b'W', 0,    0,    Size::Is(40),   Needs::Nothing, "WDIOC_GETSUPPORT"),
    (Class::Watchdog, OUT,  b'W', 1,    3,    INT,            Needs::Nothing, "WDIOC_GETSTATUS, -BOOTSTATUS, -TEMP"),
    (Class::Watchdog, OUT,  b'W', 5,    5,    INT,            Needs::Write,   "WDIOC_KEEPALIVE"),
    (Class::Watchdog, BOTH, b'W', 6,    6,    INT,            Needs::Write,   "WDIOC_SETTIMEOUT"),
    (Class::Watchdog, OUT,  b'W', 7,    7,    INT,            Needs::Nothing, "WDIOC_GETTIMEOUT"),
    (Class::Watchdog, BOTH, b'W', 8,    8,    INT,            Needs::Write,   "WDIOC_SETPRETIMEOUT"),
    (Class::Watchdog, OUT,  b'W', 9,    10,   INT,            Needs::Nothing, "WDIOC_GETPRETIMEOUT, -TIMELEFT"),
];

/// How an ioctl of the early days is given what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Address,
    /// An int in the place of an address.
    Value,
}

/// Those of terminals that are carried under a number of our own: direction, number, size, how, who, name.
#[rustfmt::skip]
const EARLY: &[(u32, u8, u32, By, Needs, &str)] = &[
    (IN,   0x09, 4,  By::Value,   Needs::Write,   "TCSBRK"),
    (IN,   0x0a, 4,  By::Value,   Needs::Write,   "TCXONC"),
    (IN,   0x0b, 4,  By::Value,   Needs::Write,   "TCFLSH"),
    (0,    0x0c, 0,  By::Value,   Needs::Write,   "TIOCEXCL"),
    (0,    0x0d, 0,  By::Value,   Needs::Write,   "TIOCNXCL"),
    (OUT,  0x11, 4,  By::Address, Needs::Nothing, "TIOCOUTQ"),
    (OUT,  0x13, 8,  By::Address, Needs::Nothing, "TIOCGWINSZ"),
    (IN,   0x14, 8,  By::Address, Needs::Write,   "TIOCSWINSZ"),
    (OUT,  0x15, 4,  By::Address, Needs::Nothing, "TIOCMGET"),
    (IN,   0x16, 4,  By::Address, Needs::Write,   "TIOCMBIS"),
    (IN,   0x17, 4,  By::Address, Needs::Write,   "TIOCMBIC"),
    (IN,   0x18, 4,  By::Address, Needs::Write,   "TIOCMSET"),
    (OUT,  0x19, 4,  By::Address, Needs::Nothing, "TIOCGSOFTCAR"),
    (IN,   0x1a, 4,  By::Address, Needs::Write,   "TIOCSSOFTCAR"),
    (OUT,  0x1b, 4,  By::Address, Needs::Nothing, "FIONREAD"),
    (OUT,  0x24, 4,  By::Address, Needs::Nothing, "TIOCGETD"),
    (IN,   0x25, 4,  By::Value,   Needs::Write,   "TCSBRKP"),
    (0,    0x27, 0,  By::Value,   Needs::Write,   "TIOCSBRK"),
    (0,    0x28, 0,  By::Value,   Needs::Write,   "TIOCCBRK"),
    (OUT,  0x5d, 80, By::Address, Needs::Nothing, "TIOCGICOUNT"),
];

/// The ioctl that tells who has a disk of another node open for writing how that is claimed (DV6), as three `u64`; no kernel has it.
pub const DISK_CLAIMS: u32 = 0x8018_12f0;

/// An ioctl that may be done; the only way to get one is [`allow`] (DV4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    /// As the driver knows it.
    pub(crate) command: u32,
    pub(crate) by: By,
    /// How many bytes come back.
    pub(crate) out: usize,
}

/// Returns an ioctl if it is carried for such a device, so opened, by such a caller, with so much input.
pub(crate) fn allow(
    class: Class,
    command: u32,
    input: usize,
    how: How,
    root: bool,
) -> Result<Control, Errno> {
    let (direction, size) = (command >> 30, command >> 16 & 0x3fff);
    let [number, kind, ..] = command.to_le_bytes();
    let row = CARRIED
        .iter()
        .find(|(of, way, letter, from, to, carries, ..)| {
            let fits = match carries {
                Size::Is(bytes) => size == *bytes,
                Size::UpTo => (1..=NAME_BYTES_MAX).contains(&size),
            };
            (*of, *way, *letter) == (class, direction, kind)
                && (*from..=*to).contains(&number)
                && fits
        });
    let row = row.map(|(.., needs, _)| (command, By::Address, *needs));
    let early = EARLY.iter().find(|(way, early, bytes, ..)| {
        (class, kind) == (Class::Terminal, b'T')
            && (*way, *early, *bytes) == (direction, number, size)
    });
    let early = early.map(|(.., by, needs, _)| (command & 0xffff, *by, *needs));
    let (known, by, needs) = row.or(early).ok_or(Errno(libc::ENOTTY))?;
    let bytes = size as usize;
    if input != if direction & IN == 0 { 0 } else { bytes } {
        return Err(Errno::EINVAL);
    }
    match needs {
        Needs::Write if !how.write => Err(Errno(libc::EBADF)),
        Needs::Root if !root => Err(Errno::EPERM),
        Needs::Nothing | Needs::Write | Needs::Root => Ok(Control {
            command: known,
            by,
            out: if direction & OUT == 0 { 0 } else { bytes },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: How = How {
        read: true,
        write: false,
        exclusive: false,
        durable: false,
    };
    const WRITE: How = How {
        write: true,
        ..READ
    };

    const fn number(way: u32, size: u32, kind: u8, number: u32) -> u32 {
        way << 30 | size << 16 | (kind as u32) << 8 | number
    }

    #[test]
    fn what_is_carried() {
        let check = |class, command, input, how, root, expected: Result<usize, i32>| {
            let allowed = allow(class, command, input, how, root).map(|control| control.out);
            assert_eq!(allowed, expected.map_err(Errno), "{command:#x}");
        };
        let notty = Err(libc::ENOTTY);
        // The numbers of the kernel's headers.
        let (blkgetsize64, tcgets2, tcsets2, blkgetsize) =
            (0x8008_1272, 0x802c_542a, 0x402c_542b, 0x1260);
        check(Class::Block, blkgetsize64, 0, READ, false, Ok(8));
        check(Class::Terminal, blkgetsize64, 0, READ, false, notty);
        check(Class::Block, blkgetsize, 0, READ, true, notty);
        check(Class::Terminal, tcgets2, 0, READ, false, Ok(44));
        check(Class::Terminal, tcsets2, 44, WRITE, false, Ok(0));
        check(
            Class::Terminal,
            tcsets2,
            43,
            WRITE,
            false,
            Err(libc::EINVAL),
        );
        check(Class::Terminal, tcsets2, 44, READ, true, Err(libc::EBADF));
        let set_time = number(IN, 36, b'p', 0x0a);
        check(Class::Rtc, set_time, 36, WRITE, false, Err(libc::EPERM));
        check(Class::Rtc, set_time, 36, READ, true, Ok(0));
        for size in [1, 256, 4096] {
            let name = number(OUT, size, b'E', 0x06);
            check(Class::Input, name, 0, READ, false, Ok(size as usize));
        }
        for size in [0, 4097, 0x3fff] {
            let name = number(OUT, size, b'E', 0x06);
            check(Class::Input, name, 0, READ, false, notty);
        }
        check(Class::Other, number(OUT, 4, b'R', 0), 0, WRITE, true, notty);
    }

    #[test]
    fn what_is_carried_under_another_number() {
        let check = |command, input, how, expected: Result<(u32, By, usize), i32>| {
            let allowed = allow(Class::Terminal, command, input, how, false);
            let allowed = allowed.map(|control| (control.command, control.by, control.out));
            assert_eq!(allowed, expected.map_err(Errno), "{command:#x}");
        };
        let notty = Err(libc::ENOTTY);
        check(0x8004_5415, 0, READ, Ok((0x5415, By::Address, 4)));
        check(0x4004_5418, 4, WRITE, Ok((0x5418, By::Address, 0)));
        check(0x4004_5418, 4, READ, Err(libc::EBADF));
        check(0x4004_540b, 4, WRITE, Ok((0x540b, By::Value, 0)));
        check(0x5427, 0, WRITE, Ok((0x5427, By::Value, 0)));
        // Under its own number it does not say what it carries; nor are others of those days done.
        check(0x5415, 0, READ, notty);
        check(0x4004_5412, 4, WRITE, notty);
        check(0x540e, 0, WRITE, notty);
        let of_a_disk = allow(Class::Block, 0x5427, 0, WRITE, true);
        assert_eq!(of_a_disk, Err(Errno(libc::ENOTTY)));
    }

    #[test]
    fn rows_are_told_apart() {
        for (index, one) in EARLY.iter().enumerate() {
            let other = |other: &(u32, u8, u32, By, Needs, &str)| other.1 != one.1;
            assert!(EARLY[index + 1..].iter().all(other), "{}", one.5);
            let known = |row: &&Row| row.2 == b'T' && (row.3..=row.4).contains(&one.1);
            assert_eq!(CARRIED.iter().find(known), None, "{}", one.5);
        }
        for (index, one) in CARRIED.iter().enumerate() {
            assert!(one.3 <= one.4, "{}", one.7);
            for other in &CARRIED[index + 1..] {
                let same = (one.0, one.1, one.2) == (other.0, other.1, other.2);
                assert!(
                    !same || one.4 < other.3 || other.4 < one.3,
                    "{} and {}",
                    one.7,
                    other.7
                );
            }
        }
    }
}
