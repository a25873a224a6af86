//! What is typed at a console, and the way out: `~.` at the beginning of a line, as in ssh and cu. `~~` types one `~`.

/// Where the typing is in a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Begin,
    Tilde,
    Middle,
}

/// Looks for the way out in what is typed.
#[derive(Debug, Default)]
pub(super) struct Escape(At);

impl Escape {
    /// Returns what is typed for the other side, and whether that was the end.
    pub(super) fn feed(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            match (self.0, byte) {
                (At::Begin, b'~') => {
                    self.0 = At::Tilde;
                    continue;
                }
                (At::Tilde, b'.') => return (passed, true),
                (At::Tilde, b'~') => {}
                (At::Tilde, _) => passed.push(b'~'),
                (At::Begin | At::Middle, _) => {}
            }
            passed.push(byte);
            self.0 = match byte {
                b'\r' | b'\n' => At::Begin,
                _ => At::Middle,
            };
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let check = |typed: &[&str], expected: &str, ends: bool| {
            let mut escape = Escape::default();
            let mut passed = Vec::new();
            let mut ended = false;
            for piece in typed {
                let (bytes, end) = escape.feed(piece.as_bytes());
                passed.extend(bytes);
                ended |= end;
            }
            assert_eq!(
                (String::from_utf8(passed).expect("text").as_str(), ended),
                (expected, ends)
            );
        };
        check(&["ls\r"], "ls\r", false);
        check(&["~."], "", true);
        check(&["ls\r~", ".never"], "ls\r", true);
        check(&["a~.b"], "a~.b", false);
        check(&["~~."], "~.", false);
        check(&["~", "x"], "~x", false);
        check(&["x\n~~\r~."], "x\n~\r", true);
    }
}
