//! The functions of `glu.h`, which says what they do. They return -1 and set errno where the Rust API has an error.
#![allow(unsafe_code)]

use crate::{Cluster, Destination, Forked, Load, Node, job, rfork};
use libc::{c_char, c_int, size_t};
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;

/// `struct glu_node`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GluNode {
    node: c_int,
    state: c_int,
}

/// `struct glu_load`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GluLoad {
    load: u64,
    speed: u64,
    cpus: u64,
    util: u64,
    mem: u64,
    tmem: u64,
}

impl From<Node> for GluNode {
    fn from(Node { number, state }: Node) -> Self {
        Self {
            node: number.into(),
            state: state as c_int,
        }
    }
}

impl From<Load> for GluLoad {
    fn from(of: Load) -> Self {
        let Load {
            load,
            speed,
            cpus,
            util,
            mem,
            tmem,
        } = of;
        Self {
            load,
            speed,
            cpus,
            util,
            mem,
            tmem,
        }
    }
}

/// Turns a result into what C expects.
fn told<T: TryInto<c_int>>(result: io::Result<T>) -> c_int {
    let error = match result.map(TryInto::try_into) {
        Ok(Ok(number)) => return number,
        Ok(Err(_)) => libc::EOVERFLOW,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    // SAFETY: the C library returns the address of this thread's errno.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: it is an integer of this thread alone.
    unsafe { *errno = error };
    -1
}

fn node(number: c_int) -> io::Result<u16> {
    let node = number.try_into().ok();
    node.ok_or_else(|| io::Error::from_raw_os_error(libc::ENXIO))
}

/// `glu_version`
#[unsafe(no_mangle)]
pub extern "C" fn glu_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no NUL"),
        };
    VERSION.as_ptr()
}

/// `glu_nodes`
///
/// # Safety
/// There is room for `max` nodes at `nodes`, or `max` is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn glu_nodes(nodes: *mut GluNode, max: size_t) -> c_int {
    let all = Cluster::new().nodes();
    for (index, node) in all.iter().flatten().take(max).enumerate() {
        // SAFETY: the caller has room for `max` of them, and `index` is below that.
        let place = unsafe { nodes.add(index) };
        // SAFETY: as above; what was there needs no drop.
        unsafe { place.write((*node).into()) };
    }
    told(all.map(|all| all.len()))
}

/// `glu_node`
#[unsafe(no_mangle)]
pub extern "C" fn glu_node() -> c_int {
    told(Cluster::new().own_node())
}

/// `glu_load`
///
/// # Safety
/// There is room for `size` bytes at `load`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn glu_load(number: c_int, load: *mut GluLoad, size: size_t) -> c_int {
    told(node(number).and_then(|node| {
        let known = GluLoad::from(Cluster::new().load(node)?);
        let bytes = size.min(size_of::<GluLoad>());
        // SAFETY: the caller has room for `size` bytes.
        unsafe { load.cast::<u8>().write_bytes(0, size) };
        // SAFETY: both sides have that many, and `known` is here alone.
        unsafe { (&raw const known).cast::<u8>().copy_to(load.cast(), bytes) };
        Ok(0)
    }))
}

/// `glu_where_pid`
#[unsafe(no_mangle)]
pub extern "C" fn glu_where_pid(pid: libc::pid_t) -> c_int {
    told(Cluster::new().where_pid(pid))
}

/// `glu_kill`
#[unsafe(no_mangle)]
pub extern "C" fn glu_kill(pid: libc::pid_t, signal: c_int) -> c_int {
    told(Cluster::new().kill(pid, signal).map(|()| 0))
}

/// `glu_killpg`
#[unsafe(no_mangle)]
pub extern "C" fn glu_killpg(group: libc::pid_t, signal: c_int) -> c_int {
    told(Cluster::new().killpg(group, signal).map(|()| 0))
}

/// `glu_my_npid`
#[unsafe(no_mangle)]
pub extern "C" fn glu_my_npid() -> libc::pid_t {
    told(job::npid())
}

/// `glu_my_vnn`
#[unsafe(no_mangle)]
pub extern "C" fn glu_my_vnn() -> c_int {
    told(job::vnn())
}

/// `glu_count`
#[unsafe(no_mangle)]
pub extern "C" fn glu_count() -> c_int {
    told(job::count())
}

/// `glu_barrier`
#[unsafe(no_mangle)]
pub extern "C" fn glu_barrier() -> c_int {
    told(job::barrier().map(|()| 0))
}

/// `glu_spawn`
///
/// # Safety
/// `nodes` is null or a string; `argv` are strings, and null after the last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn glu_spawn(
    count: c_int,
    nodes: *const c_char,
    argv: *const *const c_char,
) -> libc::pid_t {
    // SAFETY: the caller passes a string where it is not null.
    let nodes =
        (!nodes.is_null()).then(|| OsStr::from_bytes(unsafe { CStr::from_ptr(nodes) }.to_bytes()));
    // SAFETY: as the caller has it.
    let words = unsafe { words(argv) };
    let valid = u32::try_from(count)
        .ok()
        .filter(|count| *count > 0 && !words.is_empty());
    let valid = valid.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL));
    told(valid.and_then(|count| Ok(job::spawn(count, nodes, words)?.id())))
}

/// `glu_cospawn`
///
/// # Safety
/// `argv` are strings, and null after the last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn glu_cospawn(npid: libc::pid_t, argv: *const *const c_char) -> libc::pid_t {
    // SAFETY: as the caller has it.
    let words = unsafe { words(argv) };
    told(match words.is_empty() {
        true => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        false => job::cospawn(npid, words).map(|child| child.id()),
    })
}

/// `glu_migrate`
#[unsafe(no_mangle)]
pub extern "C" fn glu_migrate(pid: libc::pid_t, node: c_int) -> c_int {
    let to = match node {
        0 => Ok(Destination::Home),
        -1 => Ok(Destination::Best),
        number => self::node(number).map(Destination::Node),
    };
    told(to.and_then(|to| Cluster::new().migrate(pid, to).map(|()| 0)))
}

/// `glu_nmigs`
#[unsafe(no_mangle)]
pub extern "C" fn glu_nmigs(pid: libc::pid_t) -> c_int {
    told(Cluster::new().moves(pid))
}

/// `glu_rexec`
///
/// # Safety
/// `argv` are strings, and null after the last.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn glu_rexec(node: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: as the caller has it.
    let words = unsafe { words(argv) };
    let node = match node {
        0 => Ok(None),
        number => self::node(number).map(Some),
    };
    told::<c_int>(node.and_then(|node| Err(job::rexec(node, words))))
}

/// `glu_rfork`
///
/// # Safety
/// As of [`rfork`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn glu_rfork(node: c_int) -> libc::pid_t {
    let node = match node {
        0 => Ok(None),
        number => self::node(number).map(Some),
    };
    // SAFETY: as the caller has it.
    told(
        node.and_then(|node| unsafe { rfork(node) })
            .map(|forked| match forked {
                Forked::Parent(pid) => pid,
                Forked::Child => 0,
            }),
    )
}

/// Returns the words of a command.
///
/// # Safety
/// `argv` are strings that outlive the words, and null after the last.
unsafe fn words<'a>(argv: *const *const c_char) -> Vec<&'a OsStr> {
    let mut words = Vec::new();
    let mut next = argv;
    loop {
        // SAFETY: up to the null that ends it, there is another.
        let word = unsafe { *next };
        if word.is_null() {
            return words;
        }
        // SAFETY: it is a string.
        let word = unsafe { CStr::from_ptr(word) };
        words.push(OsStr::from_bytes(word.to_bytes()));
        // SAFETY: the one before was not the last.
        next = unsafe { next.add(1) };
    }
}
