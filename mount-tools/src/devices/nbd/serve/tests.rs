use super::super::codec::REQUEST_BYTES_MAX;
use super::super::disk::{Backing, Pace, Since};
use super::*;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar};
use std::time::Duration;

const BYTES: u64 = 64 << 20;
const GEOMETRY: Geometry = Geometry {
    bytes: BYTES,
    read_only: false,
};
const NOW: Pace = Pace {
    patience: Duration::ZERO,
    every: Duration::ZERO,
};

/// Has its offset in each block. Whoever reads block 0 waits until something is flushed; block 1 cannot be read.
#[derive(Clone, Debug, Default)]
struct Blocks {
    flushed: Arc<(Mutex<bool>, Condvar)>,
}

impl Source for Blocks {
    type File = Self;

    fn open(&self) -> io::Result<(Self, Since)> {
        Ok((self.clone(), Since::Untouched))
    }

    fn tell(&self, _: bool) {}
}

impl Backing for Blocks {
    fn read_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        if offset == 0 {
            let (flushed, changes) = &*self.flushed;
            let flushed = flushed.lock().expect("no holder panics");
            let waited = changes.wait_while(flushed, |flushed| !*flushed);
            drop(waited.expect("no holder panics"));
        }
        if offset == 512 {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        data.fill(0);
        data[..8].copy_from_slice(&offset.to_le_bytes());
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    fn sync(&self) -> io::Result<()> {
        *self.flushed.0.lock().expect("no holder panics") = true;
        self.flushed.1.notify_all();
        Ok(())
    }

    fn trim(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(BYTES)
    }
}

fn request(command: u32, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// The kernel's end, and what serves the other one.
fn begin() -> (UnixStream, thread::JoinHandle<io::Result<()>>) {
    let (kernel, socket) = UnixStream::pair().expect("a socket");
    kernel
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("set");
    let disk = Disk::open(Blocks::default(), NOW).expect("opened");
    let serves = thread::spawn(move || serve(socket, &disk, GEOMETRY));
    (kernel, serves)
}

/// Takes an answer; `read`: how much comes with a success, by cookie.
fn answer(kernel: &mut UnixStream, read: &BTreeMap<u64, usize>) -> (u64, u32, Vec<u8>) {
    let mut header = [0; 16];
    kernel.read_exact(&mut header).expect("an answer");
    assert_eq!(header[..4], [0x67, 0x44, 0x66, 0x98]);
    let errno = u32::from_be_bytes(header[4..8].try_into().expect("four"));
    let cookie = u64::from_be_bytes(header[8..].try_into().expect("eight"));
    let len = if errno == 0 {
        read.get(&cookie).copied().unwrap_or(0)
    } else {
        0
    };
    let mut data = vec![0; len];
    kernel.read_exact(&mut data).expect("its data");
    (cookie, errno, data)
}

#[test]
fn answers_come_as_they_are_ready_and_say_what_failed() {
    let (mut kernel, serves) = begin();
    // The first one waits for the last one.
    let mut requests = request(0, 1, 0, 512);
    requests.extend(request(0, 2, 4096, 1024));
    requests.extend(request(0, 3, 512, 512));
    requests.extend(request(1, 4, 8192, 512));
    requests.extend([7; 512]);
    requests.extend(request(4, 5, 0, 4096));
    requests.extend(request(9, 6, 0, 512));
    requests.extend(request(3, 7, 0, 0));
    kernel.write_all(&requests).expect("sent");
    let read = BTreeMap::from([(1, 512), (2, 1024), (3, 512)]);
    let answers = (0..7).map(|_| answer(&mut kernel, &read));
    let answers = answers.map(|(cookie, errno, data)| (cookie, (errno, data)));
    let answers = BTreeMap::from_iter(answers);
    let errnos = answers.iter().map(|(cookie, (errno, _))| (*cookie, *errno));
    let expected = [(1, 0), (2, 0), (3, 5), (4, 28), (5, 0), (6, 22), (7, 0)];
    assert!(errnos.eq(expected), "{answers:?}");
    assert_eq!(answers[&2].1[..8], 4096_u64.to_le_bytes());
    kernel.write_all(&request(2, 8, 0, 0)).expect("sent");
    serves.join().expect("no panic").expect("it disconnected");
}

#[test]
fn what_is_too_large_is_passed_over() {
    let (mut kernel, serves) = begin();
    let large = REQUEST_BYTES_MAX + 512;
    kernel.write_all(&request(1, 1, 0, large)).expect("sent");
    kernel.write_all(&vec![1; large as usize]).expect("sent");
    kernel.write_all(&request(1, 2, BYTES, 512)).expect("sent");
    kernel.write_all(&[1; 512]).expect("sent");
    kernel.write_all(&request(0, 3, 4096, 512)).expect("sent");
    let read = BTreeMap::from([(3, 512)]);
    let mut errnos = BTreeMap::new();
    for _ in 0..3 {
        let (cookie, errno, _) = answer(&mut kernel, &read);
        errnos.insert(cookie, errno);
    }
    assert_eq!(errnos, BTreeMap::from([(1, 22), (2, 22), (3, 0)]));
    drop(kernel);
    serves.join().expect("no panic").expect("it went");
}

#[test]
fn what_is_no_request_is_the_end() {
    let (mut kernel, serves) = begin();
    kernel.write_all(&[0; HEADER_BYTES]).expect("sent");
    let ended = serves.join().expect("no panic");
    assert!(
        ended
            .expect_err("no request")
            .to_string()
            .contains("no request")
    );
    // Cut in the middle of a write.
    let (mut kernel, serves) = begin();
    kernel.write_all(&request(1, 1, 0, 512)).expect("sent");
    kernel.write_all(&[1; 100]).expect("sent");
    drop(kernel);
    serves.join().expect("no panic").expect_err("half a write");
}
