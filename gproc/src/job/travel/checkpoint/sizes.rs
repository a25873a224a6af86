//! Takes the sizes of files of the tree out of CRIU's images. It checks them, and so takes for another file what has grown
//! since a checkpoint was made: other than at a move, that is what files do that the job or somebody else writes.
//!
//! What programs are made of keeps its check: CRIU compares build-ids, too, and files outside of the tree as they are.
//!
//! An image is two numbers that name its kind, and messages of protobuf behind their lengths.

use std::io::{self, ErrorKind};

/// The image with the open files of all processes.
pub(in super::super) const FILES: &str = "files.img";

/// The first number of each image with messages.
const COMMON_MAGIC: u32 = 0x5456_4319;
const MAGICS_BYTES: usize = 8;

/// In the message of a file: that of a regular one.
const REGULAR: u64 = 3;
/// In that: its name and its size.
const NAME: u64 = 6;
const SIZE: u64 = 8;

/// Returns the image without the sizes of files whose names begin like this.
pub(in super::super) fn without(image: &[u8], below: &[u8]) -> io::Result<Vec<u8>> {
    let magic = image
        .first_chunk::<4>()
        .map(|four| u32::from_le_bytes(*four));
    if magic != Some(COMMON_MAGIC) || image.len() < MAGICS_BYTES {
        return Err(nonsense());
    }
    let (magics, mut rest) = image.split_at(MAGICS_BYTES);
    let mut out = magics.to_vec();
    while !rest.is_empty() {
        let (len, after) = rest.split_first_chunk::<4>().ok_or_else(nonsense)?;
        let len = u32::from_le_bytes(*len) as usize;
        let (message, after) = after.split_at_checked(len).ok_or_else(nonsense)?;
        let changed = change(message, below)?;
        let len = u32::try_from(changed.len()).map_err(|_| nonsense())?;
        out.extend(len.to_le_bytes());
        out.extend(changed);
        rest = after;
    }
    Ok(out)
}

fn nonsense() -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        "the image of open files is not understood",
    )
}

/// A field of a message: its number, what it holds if that is bytes, and all of it.
type Field<'a> = (u64, Option<&'a [u8]>, &'a [u8]);

fn change(message: &[u8], below: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    for field in fields(message)? {
        match field {
            (REGULAR, Some(regular), _) => {
                let regular = without_size(regular, below)?;
                put_varint(&mut out, REGULAR << 3 | 2);
                put_varint(&mut out, regular.len() as u64);
                out.extend(regular);
            }
            (_, _, all) => out.extend(all),
        }
    }
    Ok(out)
}

fn without_size(regular: &[u8], below: &[u8]) -> io::Result<Vec<u8>> {
    let fields = fields(regular)?;
    let named = |(number, content, _): &Field<'_>| {
        *number == NAME && content.is_some_and(|name| name.starts_with(below))
    };
    if !fields.iter().any(named) {
        return Ok(regular.to_vec());
    }
    let kept = fields.iter().filter(|(number, ..)| *number != SIZE);
    Ok(kept.flat_map(|(.., all)| all.iter().copied()).collect())
}

fn fields(message: &[u8]) -> io::Result<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let (key, after) = varint(rest)?;
        let (content, after) = match key & 7 {
            0 => (None, varint(after)?.1),
            1 => (None, after.get(8..).ok_or_else(nonsense)?),
            2 => {
                let (len, after) = varint(after)?;
                let len = usize::try_from(len).map_err(|_| nonsense())?;
                let (content, after) = after.split_at_checked(len).ok_or_else(nonsense)?;
                (Some(content), after)
            }
            5 => (None, after.get(4..).ok_or_else(nonsense)?),
            _ => return Err(nonsense()),
        };
        fields.push((key >> 3, content, &rest[..rest.len() - after.len()]));
        rest = after;
    }
    Ok(fields)
}

fn varint(bytes: &[u8]) -> io::Result<(u64, &[u8])> {
    let mut number = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((number, &bytes[at + 1..]));
        }
    }
    Err(nonsense())
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let byte = number.to_le_bytes()[0] & 0x7f;
        number >>= 7;
        if number == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A regular file, as CRIU writes it.
    fn file(name: &str, size: Option<u64>) -> Vec<u8> {
        let mut regular = vec![1 << 3, 5, 2 << 3, 0x81, 0x80, 0x02, 3 << 3, 0];
        regular.extend([5 << 3 | 2, 2, 1 << 3, 0, 6 << 3 | 2]);
        put_varint(&mut regular, name.len() as u64);
        regular.extend(name.bytes());
        if let Some(size) = size {
            regular.push(8 << 3);
            put_varint(&mut regular, size);
        }
        regular.extend([10 << 3, 0xa4, 0x83, 0x02]);
        let mut message = vec![1 << 3, 1, 2 << 3, 9, 3 << 3 | 2];
        put_varint(&mut message, regular.len() as u64);
        message.extend(regular);
        message
    }

    fn image(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut image = COMMON_MAGIC.to_le_bytes().to_vec();
        image.extend([1, 2, 3, 4]);
        for message in messages {
            image.extend(u32::try_from(message.len()).expect("short").to_le_bytes());
            image.extend(message);
        }
        image
    }

    #[test]
    fn files_of_the_tree_have_none_and_all_else_stays() {
        let long = format!("/cluster/{}", "x".repeat(300));
        let other = vec![1 << 3, 2, 18 << 3 | 2, 1, 0];
        let before = image(&[
            file("/cluster/log", Some(300)),
            file("/usr/lib/libc.so", Some(5_000_000)),
            file("/clustered", Some(7)),
            other.clone(),
            file(&long, Some(1)),
        ]);
        let after = image(&[
            file("/cluster/log", None),
            file("/usr/lib/libc.so", Some(5_000_000)),
            file("/clustered", Some(7)),
            other,
            file(&long, None),
        ]);
        assert_eq!(without(&before, b"/cluster/").expect("understood"), after);
        assert_eq!(without(&after, b"/cluster/").expect("understood"), after);
    }

    #[test]
    fn nonsense_is_refused() {
        let whole = image(&[file("/cluster/log", Some(300))]);
        for len in (0..whole.len()).filter(|len| *len != MAGICS_BYTES) {
            assert!(without(&whole[..len], b"/").is_err(), "{len} bytes");
        }
        assert!(without(&[0; 16], b"/").is_err());
        assert!(without(&image(&[vec![0xff; 20]]), b"/").is_err());
    }
}
