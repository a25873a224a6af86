//! Named places of the way of a move, at which a daemon of a debug build dies if a test says so: by the name of the place
//! in `/dev/shm/glu-fail-at`, which is root's to write. It is gone before the daemon is, so one word is one death.

/// Where the word is.
#[cfg(debug_assertions)]
const WORD: &str = "/dev/shm/glu-fail-at";

/// The daemon is at a place.
#[cfg(debug_assertions)]
pub(super) fn reached(place: &str) {
    let Ok(word) = std::fs::read_to_string(WORD) else {
        return;
    };
    if word.trim_end() != place {
        return;
    }
    tracing::error!(place, "a test has this daemon die here");
    std::fs::remove_file(WORD).ok();
    nix::sys::signal::raise(nix::sys::signal::SIGKILL).ok();
}

/// Nobody dies in a real build.
#[cfg(not(debug_assertions))]
pub(super) const fn reached(_place: &str) {}
