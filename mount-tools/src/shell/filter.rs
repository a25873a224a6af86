//! Which system calls the kernel holds: those that name a process which is not this node's.
//!
//! The filter looks at the number of the process, which is in a register: nothing can change it afterwards. Numbers
//! below the first node's range are those of this machine's kernel, as are 0, -1 and what is no process number at all.
//! pidfd_send_signal(2) has a descriptor instead, and is always held; so is waitid(2) of a descriptor.
//! Calls of another architecture (32-bit programs) are not held; their processes of other nodes do not exist.

use gproc::pids::RANGE_PIDS;
use libc::{
    BPF_ABS, BPF_ALU, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_NEG, BPF_RET, BPF_W,
    SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF, sock_filter,
};
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

// Offsets in `struct seccomp_data`; of an argument the lower half, which is all of it that these calls use.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGS: u32 = 16;
const ARG_BYTES: u32 = 8;

/// The first number that is negative as the kernel sees it.
const NEGATIVE: u32 = 1 << 31;

/// A call that names a process.
struct Held {
    number: libc::c_long,
    /// Which argument names it.
    arg: u32,
    /// A negative number is a group's.
    groups: bool,
}

const fn held(number: libc::c_long, arg: u32) -> Held {
    Held {
        number,
        arg,
        groups: false,
    }
}

const HELD: [Held; 12] = [
    Held {
        number: libc::SYS_kill,
        arg: 0,
        groups: true,
    },
    held(libc::SYS_pidfd_open, 0),
    held(libc::SYS_ptrace, 1),
    held(libc::SYS_tgkill, 0),
    held(libc::SYS_tkill, 0),
    held(libc::SYS_rt_sigqueueinfo, 0),
    held(libc::SYS_rt_tgsigqueueinfo, 0),
    held(libc::SYS_getpriority, 1),
    held(libc::SYS_setpriority, 1),
    held(libc::SYS_sched_getaffinity, 0),
    held(libc::SYS_sched_setaffinity, 0),
    held(libc::SYS_prlimit64, 0),
];

/// A call that names a process by a descriptor, which says nothing of whose it is.
const BY_DESCRIPTOR: libc::c_long = libc::SYS_pidfd_send_signal;

/// A call that does so if its first argument is `P_PIDFD`.
const MAYBE_BY_DESCRIPTOR: libc::c_long = libc::SYS_waitid;

/// Returns the program of a node that owns these numbers.
pub(super) fn program(own: &Range<i32>) -> Vec<sock_filter> {
    let allow = ret(SECCOMP_RET_ALLOW);
    let mut program = vec![
        load(ARCHITECTURE),
        jump(BPF_JEQ, ARCH, 1, 0),
        allow,
        load(NUMBER),
    ];
    for held in HELD {
        let block = block(&held, own);
        let skip = u8::try_from(block.len()).expect("a block is short");
        let number = u32::try_from(held.number).expect("a number of a system call");
        program.push(jump(BPF_JEQ, number, 0, skip));
        program.extend(block);
    }
    let number = |call| u32::try_from(call).expect("a number of a system call");
    let hold = ret(SECCOMP_RET_USER_NOTIF);
    program.extend([
        jump(BPF_JEQ, number(BY_DESCRIPTOR), 0, 1),
        hold,
        jump(BPF_JEQ, number(MAYBE_BY_DESCRIPTOR), 0, 3),
        load(ARGS),
        jump(BPF_JEQ, libc::P_PIDFD, 0, 1),
        hold,
        allow,
    ]);
    program
}

/// Decides about one call; never falls through.
fn block(held: &Held, own: &Range<i32>) -> Vec<sock_filter> {
    let mut block = vec![load(ARGS + held.arg * ARG_BYTES)];
    if held.groups {
        block.push(jump(BPF_JGE, NEGATIVE, 0, 1));
        block.push(statement(BPF_ALU | BPF_NEG, 0));
    }
    block.extend([
        jump(BPF_JGE, RANGE_PIDS.cast_unsigned(), 0, 3),
        // The smallest number has no opposite: it is still here.
        jump(BPF_JGE, NEGATIVE, 2, 0),
        jump(BPF_JGE, own.start.cast_unsigned(), 0, 2),
        jump(BPF_JGE, own.end.cast_unsigned(), 1, 0),
        ret(SECCOMP_RET_ALLOW),
        ret(SECCOMP_RET_USER_NOTIF),
    ]);
    block
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn ret(action: u32) -> sock_filter {
    statement(BPF_RET | BPF_K, action)
}

fn statement(code: u32, k: u32) -> sock_filter {
    instruction(code, k, 0, 0)
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    instruction(BPF_JMP | BPF_K | test, k, jt, jf)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = u16::try_from(code).expect("a code of the kernel");
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node 2.
    const OWN: Range<i32> = 131_072..196_608;

    /// Runs a program as the kernel does; returns whether it holds the call.
    fn holds(program: &[sock_filter], arch: u32, number: libc::c_long, args: [u64; 2]) -> bool {
        let mut data = Vec::new();
        data.extend(u32::try_from(number).expect("small").to_le_bytes());
        data.extend(arch.to_le_bytes());
        data.extend([0; 8]);
        data.extend(args.into_iter().flat_map(u64::to_le_bytes));
        let (mut at, mut a) = (0, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let code = u32::from(code);
            let taken = if code == BPF_LD | BPF_W | BPF_ABS {
                let word = data[k as usize..k as usize + 4].try_into();
                a = u32::from_le_bytes(word.expect("four bytes"));
                continue;
            } else if code == BPF_ALU | BPF_NEG {
                a = a.wrapping_neg();
                continue;
            } else if code == BPF_RET | BPF_K {
                assert!([SECCOMP_RET_ALLOW, SECCOMP_RET_USER_NOTIF].contains(&k));
                return k == SECCOMP_RET_USER_NOTIF;
            } else if code == BPF_JMP | BPF_K | BPF_JEQ {
                a == k
            } else {
                assert_eq!(code, BPF_JMP | BPF_K | BPF_JGE);
                a >= k
            };
            at += usize::from(if taken { jt } else { jf });
        }
    }

    #[track_caller]
    fn check(number: libc::c_long, pid: i64, expected: bool) {
        let program = program(&OWN);
        let pid = pid.cast_unsigned();
        let arg = HELD.iter().find(|held| held.number == number);
        let args = match arg.map(|held| held.arg) {
            Some(1) => [16, pid],
            _ => [pid, 9],
        };
        assert_eq!(holds(&program, ARCH, number, args), expected, "{pid:#x}");
        assert!(!holds(&program, 0x4000_0003, number, args), "a 32-bit call");
    }

    #[test]
    fn what_is_local_is_not_held() {
        for call in HELD.map(|held| held.number) {
            for pid in [
                0,
                1,
                -1,
                65_535,
                131_072,
                196_607,
                -65_535,
                i64::from(i32::MIN),
            ] {
                check(call, pid, false);
            }
            check(call, -131_072, false);
        }
        check(libc::SYS_pidfd_open, -70_000, false);
        check(libc::SYS_getpid, 70_000, false);
        check(libc::SYS_getpgid, 70_000, false);
    }

    #[test]
    fn what_is_of_other_nodes_is_held() {
        for call in HELD.map(|held| held.number) {
            for pid in [65_536, 131_071, 196_608, 4_194_305, i64::from(i32::MAX)] {
                check(call, pid, true);
            }
        }
        for group in [-65_536, -131_071, -196_608, -i64::from(i32::MAX)] {
            check(libc::SYS_kill, group, true);
        }
    }

    #[test]
    fn descriptors_are_always_looked_at() {
        let program = program(&OWN);
        assert!(holds(&program, ARCH, BY_DESCRIPTOR, [3, 9]));
        assert!(!holds(&program, ARCH, BY_DESCRIPTOR + 1, [3, 9]));
        let waits = |kind: libc::idtype_t| {
            holds(
                &program,
                ARCH,
                MAYBE_BY_DESCRIPTOR,
                [u64::from(kind), 70_000],
            )
        };
        assert!(waits(libc::P_PIDFD));
        assert!(
            ![libc::P_ALL, libc::P_PID, libc::P_PGID]
                .into_iter()
                .any(waits)
        );
    }

    #[test]
    fn the_upper_half_of_a_register_does_not_count() {
        check(libc::SYS_kill, 0x1_0000_0000 + 70_000, true);
        check(libc::SYS_kill, 0x7fff_ffff_0000_0000 + 131_072, false);
        // A group as a program passes it that does not extend the sign.
        check(
            libc::SYS_kill,
            i64::from((-70_000_i32).cast_unsigned()),
            true,
        );
    }
}
