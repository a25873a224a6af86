//! What the processors of a node offer to programs. A program looks once, when it begins, which instructions there are, and uses
//! them from then on; so a node that lacks one ends it (SIGILL), perhaps much later. Names are those of `/proc/cpuinfo`.
//!
//! MV12 **What a program may use is there.** A job goes only where the processors offer all that those of the nodes do on which its
//! programs have begun.

use super::super::protocol::{Asked, Told};
use super::pipes::members;
use super::{Known, Travel, ask, guest};
use consistency::NodeId;
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a program may take to begin.
const BEGINS_WITHIN: Duration = Duration::from_secs(1);
/// Pause between looks at what cannot be waited for otherwise.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Instructions of x86 that programs ask for by `cpuid`. Other flags are the kernel's matter, or tell only what is fast.
const INSTRUCTIONS: [&str; 52] = [
    "3dnowprefetch",
    "abm",
    "adx",
    "aes",
    "bmi1",
    "bmi2",
    "cldemote",
    "clflush",
    "clflushopt",
    "clwb",
    "clzero",
    "cmov",
    "cx16",
    "cx8",
    "enqcmd",
    "f16c",
    "fma",
    "fma4",
    "fpu",
    "fsgsbase",
    "fxsr",
    "gfni",
    "lahf_lm",
    "mmx",
    "movbe",
    "movdir64b",
    "movdiri",
    "mwaitx",
    "pclmulqdq",
    "pku",
    "pni",
    "popcnt",
    "rdpid",
    "rdrand",
    "rdseed",
    "rdtscp",
    "rtm",
    "serialize",
    "sha_ni",
    "sse",
    "sse2",
    "sse4_1",
    "sse4_2",
    "sse4a",
    "ssse3",
    "tbm",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "xop",
    "xsave",
    "xsavec",
];

/// Those of families that grow.
const FAMILIES: [&str; 2] = ["amx_", "avx"];

/// Returns what all processors have, by `/proc/cpuinfo`.
fn offered(cpuinfo: &str) -> BTreeSet<&str> {
    let of_one = cpuinfo.lines().filter_map(|line| {
        let (field, flags) = line.split_once(':')?;
        let flags = flags.split_whitespace();
        match field.trim_end() {
            "flags" => Some(flags.filter(|flag| is_instruction(flag)).collect()),
            // All of them are for programs (elf_hwcaps.rst).
            "Features" => Some(flags.collect()),
            _ => None,
        }
    });
    let all = of_one.reduce(|all: BTreeSet<&str>, one| &all & &one);
    all.unwrap_or_default()
}

fn is_instruction(flag: &str) -> bool {
    INSTRUCTIONS.contains(&flag) || FAMILIES.iter().any(|family| flag.starts_with(family))
}

/// Where the programs of a job have begun, and so what they may use.
#[derive(Debug, Default)]
pub(super) struct Programs(HashMap<u128, BTreeSet<String>>);

impl Programs {
    /// Takes note of the programs that a job is of now; returns what they may use. Those that were not there when it was last
    /// looked have begun where it is.
    fn look(&mut self, now: &[u128], offered: &[String]) -> BTreeSet<String> {
        let offered: BTreeSet<String> = offered.iter().cloned().collect();
        self.0.retain(|program, _| now.contains(program));
        for program in now {
            self.0.entry(*program).or_insert_with(|| offered.clone());
        }
        self.used()
    }

    /// Returns what they may use as far as that was seen.
    pub(super) fn used(&self) -> BTreeSet<String> {
        self.0.values().flatten().cloned().collect()
    }
}

/// Returns the programs of a job. One is known by the random bytes that the kernel gives to each (`AT_RANDOM` of getauxval(3)): its
/// children have the same, and a copy elsewhere.
fn programs(dir: &Path, pid: i32) -> io::Result<Vec<u128>> {
    let members = members(dir, pid)?;
    // What has just ended has none.
    let programs: BTreeSet<u128> = members.into_iter().filter_map(program).collect();
    Ok(programs.into_iter().collect())
}

fn program(pid: i32) -> Option<u128> {
    let deadline = Instant::now() + BEGINS_WITHIN;
    loop {
        let auxv = fs::read(format!("/proc/{pid}/auxv")).ok()?;
        let random = value_of(libc::AT_RANDOM, &auxv);
        // One that is about to begin has no values yet; one that has ended not even their end.
        if random.is_some() || auxv.is_empty() || Instant::now() > deadline {
            let mut bytes = [0; size_of::<u128>()];
            let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
            memory.read_exact_at(&mut bytes, random?).ok()?;
            return Some(u128::from_ne_bytes(bytes));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Returns one of the values that the kernel gives to a program when it begins (getauxval(3)).
fn value_of(key: libc::c_ulong, auxv: &[u8]) -> Option<libc::c_ulong> {
    let (words, _) = auxv.as_chunks::<{ size_of::<libc::c_ulong>() }>();
    let words = words.iter().map(|word| libc::c_ulong::from_ne_bytes(*word));
    let words: Vec<libc::c_ulong> = words.collect();
    let (pairs, _) = words.as_chunks::<2>();
    let pair = pairs.iter().find(|[of, _]| *of == key)?;
    Some(pair[1])
}

impl Travel {
    /// Returns what the processors of this node offer.
    async fn offered(&self) -> Vec<String> {
        let read = || {
            guest::blocking(|| {
                let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                offered(&text).into_iter().map(ToOwned::to_owned).collect()
            })
        };
        self.offered.get_or_init(read).await.clone()
    }

    /// Answers [`Asked::Processors`].
    pub(super) async fn processors(&self, known: Option<&Known>, pid: i32) -> Told {
        let original = known.and_then(|known| known.group.get()?.dir().map(ToOwned::to_owned));
        let programs = match self.levels.dir_of(pid).or(original) {
            Some(dir) => guest::blocking(move || programs(&dir, pid).unwrap_or_default()).await,
            None => Vec::new(),
        };
        Told::Processors {
            offered: self.offered().await,
            programs,
        }
    }

    /// Looks what a job may use; nothing, if the node does not say where it runs: it is older, or cannot be reached.
    pub(super) async fn look(&self, known: &Known, pid: i32) -> BTreeSet<String> {
        let at = known.status.borrow().at;
        let told = self.processors_of(at, Some(known), pid).await;
        // What begins before it stands still is taken for one that begins where it goes: nobody knows better.
        told.map_or_else(BTreeSet::new, |(offered, programs)| {
            known.programs().look(&programs, &offered)
        })
    }

    /// Returns what the processors of a node lack of that. Of one that does not say nothing is known; if it cannot be reached that shows
    /// when the job is to go there.
    pub(super) async fn lacks(&self, used: &BTreeSet<String>, to: NodeId) -> Vec<String> {
        if used.is_empty() {
            return Vec::new();
        }
        let there = self.processors_of(to, None, 0).await;
        there.map_or_else(Vec::new, |(there, _)| {
            let lacks = used.iter().filter(|one| !there.contains(one));
            lacks.cloned().collect()
        })
    }

    async fn processors_of(
        &self,
        node: NodeId,
        known: Option<&Known>,
        pid: i32,
    ) -> Option<(Vec<String>, Vec<u128>)> {
        let told = match node == self.node {
            true => self.processors(known, pid).await,
            false => {
                let asked = ask(&**self.transport().ok()?, node, pid, Asked::Processors);
                asked.await.ok()?
            }
        };
        match told {
            Told::Processors { offered, programs } => Some((offered, programs)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_that_all_processors_have() {
        #[track_caller]
        fn check(cpuinfo: &str, expected: &str) {
            let offered: Vec<&str> = offered(cpuinfo).into_iter().collect();
            assert_eq!(offered.join(" "), expected);
        }
        let one = "processor\t: 0\nflags\t\t: sse sse2 avx avx512f ht constant_tsc\nbugs\t\t: spectre_v1\n";
        check(one, "avx avx512f sse sse2");
        let other = "processor\t: 1\nflags\t\t: sse sse2 avx sse4_1\n";
        check(&format!("{one}\n{other}"), "avx sse sse2");
        check("processor\t: 0\nFeatures\t: fp asimd sve\n", "asimd fp sve");
        check("processor\t: 0\n", "");
        check("", "");
    }

    /// MV12
    #[test]
    fn a_job_may_use_what_there_is_where_its_programs_began() {
        let offered = |text: &str| text.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>();
        let (weak, strong) = (offered("sse avx"), offered("sse avx512f"));
        let mut programs = Programs::default();
        let mut check = |now: &[u128], here: &[String], expected: &str| {
            let used: Vec<String> = programs.look(now, here).into_iter().collect();
            assert_eq!(used.join(" "), expected);
        };
        check(&[1], &weak, "avx sse");
        // It has moved.
        check(&[1], &strong, "avx sse");
        // And has started another.
        check(&[1, 2], &strong, "avx avx512f sse");
        check(&[1, 2], &weak, "avx avx512f sse");
        check(&[2, 3], &weak, "avx avx512f sse");
        check(&[3], &strong, "avx sse");
        check(&[], &strong, "");
    }

    #[test]
    fn a_program_is_another_after_exec_alone() {
        let own = std::process::id().cast_signed();
        let of = program(own).expect("this one has some");
        assert_eq!(program(own), Some(of));
        let child = std::process::Command::new("sleep").arg("600").spawn();
        let mut child = child.expect("sleep starts");
        let other = program(child.id().cast_signed());
        child.kill().expect("it lives");
        child.wait().expect("killed");
        assert!(other.is_some_and(|other| other != of));
    }

    /// They are searched by eye.
    #[test]
    fn names_are_in_order() {
        assert!(INSTRUCTIONS.is_sorted() && FAMILIES.is_sorted());
    }
}
