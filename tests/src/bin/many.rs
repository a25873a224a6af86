//! Makes, lists, looks up and removes very many names of a directory, and prints how long that takes: for
//! scripts/many-files.sh.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const USAGE: &str = "many {make|remove|look} DIR FROM TO\nmany list DIR COUNT\nmany stir DIR STOP";

type Outcome = Result<(), Box<dyn Error>>;

/// The `n`th name that stays.
fn name(dir: &Path, n: u64) -> PathBuf {
    dir.join(format!("f{n:07}"))
}

/// Does something with each of some names, and prints how long it took.
fn each(
    what: &str,
    (from, to): (u64, u64),
    mut work: impl FnMut(u64) -> std::io::Result<()>,
) -> Outcome {
    let began = Instant::now();
    let mut times = Vec::new();
    for n in from..to {
        let before = Instant::now();
        work(n)?;
        times.push(before.elapsed());
    }
    let all = began.elapsed();
    times.sort_unstable();
    let at = |per_mille: usize| {
        times
            .get(times.len() * per_mille / 1000)
            .copied()
            .unwrap_or_default()
    };
    println!(
        "{what} {}: {all:.1?}, {:.1?} each (median {:.1?}, 1 in 100 above {:.1?}, longest {:.1?})",
        times.len(),
        all / u32::try_from(times.len().max(1))?,
        at(500),
        at(990),
        times.last().copied().unwrap_or_default(),
    );
    Ok(())
}

/// Lists a directory and checks that each of the names that stay is there once, and no other twice.
fn list(dir: &Path, count: u64) -> Outcome {
    let began = Instant::now();
    let (mut first, mut seen, mut others) =
        (None, vec![false; usize::try_from(count)?], BTreeSet::new());
    for entry in fs::read_dir(dir)? {
        first.get_or_insert_with(|| began.elapsed());
        let name = entry?
            .file_name()
            .into_string()
            .map_err(|_| "no name of ours")?;
        let number = name.strip_prefix('f').map(str::parse::<usize>);
        let twice = match number {
            Some(n) => {
                let seen = seen.get_mut(n?).ok_or("a name that was never made")?;
                std::mem::replace(seen, true)
            }
            None => !others.insert(name.clone()),
        };
        if twice {
            return Err(format!("{name} is listed twice").into());
        }
    }
    let all = began.elapsed();
    if let Some(missing) = seen.iter().position(|seen| !seen) {
        return Err(format!("f{missing:07} is not listed").into());
    }
    println!(
        "list {count} and {} others: {all:.2?}, the first name after {:.1?}",
        others.len(),
        first.unwrap_or_default(),
    );
    Ok(())
}

/// Makes and removes other names until a file is there.
fn stir(dir: &Path, stop: &Path) -> Outcome {
    let (began, mut rounds) = (Instant::now(), 0_u32);
    while !stop.exists() {
        let name = dir.join(format!("x{}", rounds % 1000));
        File::create(&name)?;
        fs::remove_file(&name)?;
        rounds += 1;
    }
    let each = began
        .elapsed()
        .checked_div(rounds)
        .unwrap_or(Duration::ZERO);
    println!("make and remove a name, meanwhile: {rounds} times, {each:.1?} each");
    Ok(())
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["list", dir, count] => list(Path::new(dir), count.parse()?),
        ["stir", dir, stop] => stir(Path::new(dir), Path::new(stop)),
        [what, dir, from, to] => {
            let (dir, range) = (Path::new(dir), (from.parse()?, to.parse()?));
            match what {
                "make" => each(what, range, |n| File::create_new(name(dir, n)).map(drop)),
                "remove" => each(what, range, |n| fs::remove_file(name(dir, n))),
                "look" => each(what, range, |n| fs::metadata(name(dir, n)).map(drop)),
                _ => Err(USAGE.into()),
            }
        }
        _ => Err(USAGE.into()),
    }
}
