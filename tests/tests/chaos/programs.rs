//! What runs on every node of the chaos. An error of the kind `InvalidData` is a broken promise, whatever happens to the
//! node; any other is one at peace only.

use super::{Node, World};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use tests::Dice;

pub(crate) const ACCOUNTS: usize = 8;
pub(crate) const MONEY: u64 = 1_000;
/// Steps of one exercise, and how large its file gets: some chunks.
const STEPS: usize = 60;
const EXERCISE_BYTES_MAX: usize = 9 << 20;
const STEP_BYTES_MAX: usize = 64 << 10;

/// Appends the next number to the node's own log and syncs it, and beats.
pub(crate) fn append(_: &World, node: &Node) -> io::Result<()> {
    let mut log = File::options()
        .append(true)
        .open(node.tree.join(format!("log{}", node.number)))?;
    let pulse = File::options()
        .write(true)
        .open(node.tree.join(format!("pulse{}", node.number)))?;
    for _ in 0..20 {
        let n = node.numbers.fetch_add(1, Ordering::SeqCst);
        log.write_all(format!("\n{n}\n").as_bytes())?;
        log.sync_all()?;
        node.appended.lock().expect("no holder panics").push(n);
        let beat = node.pulse.load(Ordering::SeqCst) + 1;
        pulse.write_all_at(&beat.to_le_bytes(), 0)?;
        pulse.sync_all()?;
        node.pulse.store(beat, Ordering::SeqCst);
    }
    Ok(())
}

/// Moves money under a lock, through the descriptor that holds it.
pub(crate) fn transfer(_: &World, node: &Node) -> io::Result<()> {
    let path = node.tree.join("bank");
    let file = File::options().read(true).write(true).open(path)?;
    file.lock()?;
    let (mut accounts, count) = read_bank(&file)?;
    let from = usize::try_from(count).expect("few") % ACCOUNTS;
    let to = (from + 1 + node.number as usize) % ACCOUNTS;
    let amount = accounts[from].min(7);
    accounts[from] -= amount;
    accounts[to] += amount;
    node.open_transfers.fetch_add(1, Ordering::SeqCst);
    file.write_all_at(&encode(&accounts, count + 1), 0)?;
    file.sync_all()?;
    node.transfers.fetch_add(1, Ordering::SeqCst);
    node.open_transfers.fetch_sub(1, Ordering::SeqCst);
    file.unlock()?;
    thread::sleep(Duration::from_millis(5));
    Ok(())
}

/// Makes files, renames them, reads them back and removes them, as builds do.
pub(crate) fn build(_: &World, node: &Node) -> io::Result<()> {
    let dir = node.tree.join(format!("build{}", node.number));
    for n in 0..5 {
        let (new, done) = (dir.join(format!("new{n}")), dir.join(format!("done{n}")));
        let text = format!("{n} {}", node.built.load(Ordering::SeqCst));
        let file = File::create(&new)?;
        file.write_all_at(text.as_bytes(), 0)?;
        fs::rename(&new, &done)?;
        let found = fs::read_to_string(&done)?;
        if found != text {
            // S4
            file.sync_all()?;
            let what = format!("{found:?} instead of {text:?}, and fsync knows nothing of it");
            return Err(wrong(what));
        }
    }
    for entry in fs::read_dir(&dir)? {
        fs::remove_file(entry?.path())?;
    }
    node.built.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// S1, S3: what another node has synced before the look began is seen.
pub(crate) fn look(world: &World, node: &Node) -> io::Result<()> {
    for other in &world.nodes {
        let least = other.pulse.load(Ordering::SeqCst);
        let seen = number(&node.tree.join(format!("pulse{}", other.number)))?;
        if seen < least {
            return Err(wrong(format!("stale: {seen} after {least}")));
        }
    }
    node.looks.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

/// Changes a file in every way and compares it with an array, as fsx does; then another node must see what was synced.
pub(crate) fn exercise(world: &World, node: &Node) -> io::Result<()> {
    let round = node.exercises.fetch_add(1, Ordering::SeqCst);
    // Not at the top: where nothing is mounted the file must not be made. Another one each time: after an error nobody
    // knows what is in this one.
    let name = format!("exercises/{}", node.number);
    let path = node.tree.join(&name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    let mut dice = Dice::new((round << 8 | u64::from(node.number)) | 1);
    let mut model = Vec::new();
    for _ in 0..STEPS {
        step(&file, &mut model, &mut dice)?;
    }
    compare(&file, &model, 0, model.len())?;
    file.sync_all()?;
    let other = &world.nodes[dice.below(world.nodes.len())];
    // Another node's errors are its own programs' to judge.
    if let Ok(seen) = fs::read(other.tree.join(&name))
        && seen != model
    {
        let differ = seen.iter().zip(&model).position(|(a, b)| a != b);
        return Err(wrong(format!(
            "node {} reads {} bytes of {name} where {} were synced, different from byte {differ:?} on",
            other.number,
            seen.len(),
            model.len()
        )));
    }
    // What it leaves behind is not swept at once.
    thread::sleep(Duration::from_millis(50));
    Ok(())
}

/// One change, or one look.
fn step(file: &File, model: &mut Vec<u8>, dice: &mut Dice) -> io::Result<()> {
    let at = dice.below(EXERCISE_BYTES_MAX - STEP_BYTES_MAX);
    let len = 1 + dice.below(STEP_BYTES_MAX);
    match dice.below(10) {
        0 => {
            let size = dice.below(model.len() + 1);
            file.set_len(size as u64)?;
            model.truncate(size);
        }
        1 => {
            let size = model.len() + dice.below(EXERCISE_BYTES_MAX - model.len() + 1);
            file.set_len(size as u64)?;
            model.resize(size, 0);
        }
        2 => file.sync_data()?,
        3..=6 => {
            let bytes: Vec<u8> = (0..=250).cycle().skip(dice.below(251)).take(len).collect();
            file.write_all_at(&bytes, at as u64)?;
            model.resize(model.len().max(at + len), 0);
            model[at..at + len].copy_from_slice(&bytes);
        }
        _ => compare(file, model, at, len)?,
    }
    Ok(())
}

/// S4: what was written is there, or fsync tells that it is not.
fn compare(file: &File, model: &[u8], at: usize, len: usize) -> io::Result<()> {
    let mut seen = vec![0xee; len];
    let got = read_up_to(file, &mut seen, at as u64)?;
    let end = model.len().min(at + len);
    let expected = model.get(at..end).unwrap_or_default();
    if seen[..got] == *expected {
        return Ok(());
    }
    let differ = seen[..got].iter().zip(expected).position(|(a, b)| a != b);
    file.sync_all()?;
    Err(wrong(format!(
        "{got} bytes at {at} instead of {}, different from byte {differ:?} on, and fsync knows nothing of it",
        expected.len()
    )))
}

fn read_up_to(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match file.read_at(&mut into[got..], at + got as u64)? {
            0 => break,
            more => got += more,
        }
    }
    Ok(got)
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

pub(crate) fn number(path: &Path) -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open(path)?.read_exact_at(&mut bytes, 0)?;
    Ok(u64::from_le_bytes(bytes))
}

pub(crate) fn bank(path: &Path) -> io::Result<([u64; ACCOUNTS], u64)> {
    read_bank(&File::open(path)?)
}

fn read_bank(file: &File) -> io::Result<([u64; ACCOUNTS], u64)> {
    let mut bytes = [0; 8 * (ACCOUNTS + 1)];
    file.read_exact_at(&mut bytes, 0)?;
    let mut numbers = bytes
        .chunks_exact(8)
        .map(|part| u64::from_le_bytes(part.try_into().expect("eight bytes")));
    let count = numbers.next().expect("the count");
    let mut accounts = [0; ACCOUNTS];
    for (account, number) in accounts.iter_mut().zip(numbers) {
        *account = number;
    }
    Ok((accounts, count))
}

pub(crate) fn encode(accounts: &[u64; ACCOUNTS], count: u64) -> Vec<u8> {
    let numbers = std::iter::once(&count).chain(accounts);
    numbers.flat_map(|number| number.to_le_bytes()).collect()
}
