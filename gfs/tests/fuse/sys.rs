//! Signals to threads, which have no safe wrapper.
#![allow(unsafe_code)]

use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

extern "C" fn nothing(_: libc::c_int) {}

/// Makes SIGUSR1 a signal that this process survives and that restarts no system call.
pub fn survive_usr1() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(
        SigHandler::Handler(nothing),
        SaFlags::empty(),
        SigSet::empty(),
    );
    // SAFETY: the handler does nothing, so it may run anywhere.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("SIGUSR1 can be handled");
}

/// Sends SIGUSR1 to a thread of this process that has not been joined.
pub fn send_usr1<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle is not joined, so its thread's id is still valid.
    let sent = unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGUSR1) };
    assert_eq!(sent, 0, "SIGUSR1 can be sent to a thread");
}
