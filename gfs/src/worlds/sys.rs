//! What a world takes the place of in the operating system: clocks and random bits, for the thread that it runs on.
//!
//! The standard library calls `clock_gettime` and `getrandom` by their names, so the functions here are the ones it
//! gets; on a thread without a world they ask the kernel.
#![allow(unsafe_code)]

use nix::unistd::{ForkResult, Pid, fork};
use std::cell::Cell;
use tests::Dice;

thread_local! {
    /// The monotonic clock and the time of day, in nanoseconds.
    static CLOCK: Cell<Option<(u64, u64)>> = const { Cell::new(None) };
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Sets the clocks of this thread, where they stay.
pub(super) fn set_clock(monotonic: u64, of_day: u64) {
    CLOCK.set(Some((monotonic, of_day)));
}

/// Makes the random bits of this thread follow from a number.
pub(super) fn seed(seed: u64) {
    RANDOM.set(Some(seed));
}

// SAFETY: it has the contract of the C library's function of this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(id: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let Some((monotonic, of_day)) = CLOCK.get() else {
        // SAFETY: the caller keeps to the contract, which is the same.
        let result = unsafe { libc::syscall(libc::SYS_clock_gettime, id, time) };
        return libc::c_int::try_from(result).unwrap_or(-1);
    };
    let nanos = match id {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => of_day,
        _ => monotonic,
    };
    let now = libc::timespec {
        tv_sec: (nanos / 1_000_000_000) as libc::time_t,
        tv_nsec: (nanos % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the caller gives room for a timespec.
    unsafe { time.write(now) };
    0
}

// SAFETY: it has the contract of the C library's function of this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    len: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    let Some(seed) = RANDOM.get() else {
        // SAFETY: the caller keeps to the contract, which is the same.
        let result = unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) };
        return libc::ssize_t::try_from(result).unwrap_or(-1);
    };
    let mut dice = Dice::new(seed);
    for at in 0..len {
        // SAFETY: the caller gives room for `len` bytes.
        let byte = unsafe { buffer.cast::<u8>().add(at) };
        // SAFETY: as above.
        unsafe { byte.write(dice.below(u8::MAX)) };
    }
    RANDOM.set(Some(dice.below(u64::MAX)));
    len as libc::ssize_t
}

/// Runs something in a copy of this process, which ends with that.
pub(super) fn in_child(work: impl FnOnce()) -> Pid {
    // SAFETY: the caller is the only thread of a process that runs nothing but worlds.
    match unsafe { fork() }.expect("one more process") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            work();
            // SAFETY: it has no conditions. Nothing of the harness that was copied is to be ended in order.
            unsafe { libc::_exit(0) }
        }
    }
}
