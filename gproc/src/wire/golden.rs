//! The bytes of every variant of every message of the process service (V1), in `golden.txt`.
//!
//! A new variant does not compile until it stands in its list here, and the test fails until there is a sample of it and
//! a line of `golden.txt`, which the failure shows. A line never changes: an older program has sent it.

use super::{
    Birth, Cell, Identity, MachineFile, Namespace, ProcFile, ProcReply, ProcRequest, Record, Who,
};
use crate::pids::ClusterPid;
use bytes::Bytes;
use consistency::NodeId;
use consistency::wire::node::NodeLoad;
use consistency::wire::{decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// A message with variants, in the order of their numbers.
trait Variants: Serialize + DeserializeOwned + PartialEq + Debug {
    const TYPE: &'static str;
    const NAMES: &'static [&'static str];

    fn name(&self) -> &'static str;
}

macro_rules! variants {
    ($type:ident: $($name:ident)*) => {
        impl Variants for $type {
            const TYPE: &'static str = stringify!($type);
            const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            fn name(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => stringify!($name),)*
                }
            }
        }
    };
}

variants!(ProcRequest: Snapshot Identify Read Load Signal SignalGroup Column Wait Machine Lock Metrics);
variants!(ProcReply: Snapshot Identity Content Load Failed Done Column Machine);
variants!(ProcFile: Stat Status Cmdline Statm Environ Io Limits Wchan Cgroup Maps Smaps SmapsRollup Mounts Mountinfo
    Schedstat OomScore OomScoreAdj Loginuid Sessionid Exe Cwd Root Namespace Fd FdInfo Fds Tasks Lock);
variants!(Namespace: Cgroup Ipc Mnt Net Pid PidForChildren Time TimeForChildren User Uts);
variants!(MachineFile: Stat Loadavg Meminfo Uptime Cpuinfo Vmstat Diskstats NetDev Version Filesystems Swaps Cmdline
    Osrelease Ostype KernelVersion Hostname PidMax LastPid LastCap BootId);

const BIRTH: Birth = Birth(7);
const WHO: Who = Who { uid: 5, gid: 6 };

fn pid() -> ClusterPid {
    ClusterPid::of(NodeId(1), 65_536).expect("a pid")
}

fn identity() -> Identity {
    Identity {
        pid: pid(),
        birth: BIRTH,
        uid: 8,
        gid: 9,
        hidden: Some(10),
    }
}

fn requests() -> Vec<ProcRequest> {
    let (pid, birth, who) = (pid(), BIRTH, WHO);
    vec![
        ProcRequest::Snapshot { after: Some(pid) },
        ProcRequest::Identify(pid),
        ProcRequest::Read {
            pid,
            birth,
            thread: Some(pid),
            file: ProcFile::Cmdline,
            who,
        },
        ProcRequest::Load,
        ProcRequest::Signal {
            pid,
            birth,
            number: 15,
            who,
        },
        ProcRequest::SignalGroup {
            group: pid,
            birth: None,
            number: 15,
            who,
        },
        ProcRequest::Column {
            file: ProcFile::Environ,
            who,
            after: Some(pid),
        },
        ProcRequest::Wait { pid, birth, who },
        ProcRequest::Machine(MachineFile::Filesystems),
        ProcRequest::Lock {
            pid,
            birth,
            lock: true,
            who,
        },
        ProcRequest::Metrics,
    ]
}

fn replies() -> Vec<ProcReply> {
    let bytes = Bytes::from_static(b"b");
    let record = Record {
        identity: identity(),
        stat: bytes.clone(),
        status: bytes.clone(),
        cmdline: Some(bytes.clone()),
    };
    let load = NodeLoad {
        runnable: 1.0,
        guests: 2,
        cpus: 3,
        speed: 4,
        mem_total_kib: 5,
        mem_available_kib: 6,
    };
    let cell = Cell {
        pid: pid(),
        birth: BIRTH,
        content: Err(3),
    };
    vec![
        ProcReply::Snapshot {
            records: vec![record],
            more: true,
        },
        ProcReply::Identity(Some(identity())),
        ProcReply::Content(Ok(bytes.clone())),
        ProcReply::Load(load),
        ProcReply::Failed,
        ProcReply::Done(Err(1)),
        ProcReply::Column {
            cells: vec![cell],
            more: Some(pid()),
        },
        ProcReply::Machine(bytes),
    ]
}

/// Returns one of each variant of a type whose variants have nothing in them but a number, if that.
fn each<T: DeserializeOwned>() -> Vec<T> {
    let decoded = (0..).map(|number: u8| decode(&[number]).or_else(|_| decode(&[number, 3])));
    decoded.map_while(Result::ok).collect()
}

/// Adds a line for each sample; each variant has one, and its number is its place in the list.
fn write<T: Variants>(lines: &mut Vec<String>, samples: &[T]) {
    for (number, name) in T::NAMES.iter().enumerate() {
        let sample = samples.iter().find(|sample| sample.name() == *name);
        let sample = sample.unwrap_or_else(|| panic!("no sample of {}::{name}", T::TYPE));
        let bytes = encode(sample);
        assert_eq!(usize::from(bytes[0]), number, "{}::{name}", T::TYPE);
        assert_eq!(&decode::<T>(&bytes).expect("decodes"), sample);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(format!("{}::{name} {hex}", T::TYPE));
    }
}

#[test]
fn golden_bytes_of_every_variant() {
    let mut lines = Vec::new();
    write(&mut lines, &requests());
    write(&mut lines, &replies());
    write(&mut lines, &each::<ProcFile>());
    write(&mut lines, &each::<Namespace>());
    write(&mut lines, &each::<MachineFile>());
    let golden: Vec<&str> = include_str!("golden.txt").lines().collect();
    assert_eq!(lines, golden);
}
