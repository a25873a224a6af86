//! `cluster/loadlevellist`: names of programs whose jobs are levelled, a line each.
//!
//! A name with a slash is the path of the program, any other one its file name; `*` is every program. Empty lines and what
//! begins with `#` do not count.

/// Longest list.
pub(crate) const BYTES_MAX: usize = 16 << 10;
/// Longest name.
const NAME_BYTES_MAX: usize = 4096;
/// The kernel knows programs by so many bytes of their names.
const COMM_BYTES_MAX: usize = 15;
/// Every program.
const ALL: &str = "*";

/// Returns the names of a list that somebody has written, a line each; `None`: it is none.
pub(crate) fn read(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let mut list = String::new();
    for line in text.split('\n') {
        let name = line.trim_matches([' ', '\t']);
        if name.is_empty() || name.starts_with('#') {
            continue;
        }
        let odd = name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control);
        let relative = name.contains('/') && !name.starts_with('/');
        if odd || relative {
            return None;
        }
        list.push_str(name);
        list.push('\n');
    }
    (list.len() <= BYTES_MAX).then_some(list)
}

/// Returns whether a program is on a list. `comm` is its name as the kernel has it, which a script has, too; `path` is that
/// of what the kernel runs.
pub(crate) fn has(list: &str, comm: &str, path: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or_default();
    list.lines().any(|name| {
        let cut = name.get(..COMM_BYTES_MAX).unwrap_or(name);
        name == ALL || name == path || (!name.contains('/') && (name == file || cut == comm))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_list() {
        let check = |text: &str, expected: Option<&str>| {
            let list = read(text.as_bytes());
            assert_eq!(list.as_deref(), expected, "{text:?}");
        };
        check("", Some(""));
        check("\n", Some(""));
        check("make", Some("make\n"));
        check(
            "make\n/usr/bin/cc \n\n# no\n*",
            Some("make\n/usr/bin/cc\n*\n"),
        );
        check("my program\n", Some("my program\n"));
        for wrong in ["a\0b", "bin/cc", "a\rb", &"x".repeat(NAME_BYTES_MAX + 1)] {
            check(wrong, None);
        }
        check(&"name\n".repeat(BYTES_MAX), None);
        assert_eq!(read(b"\xff"), None);
    }

    #[test]
    fn who_is_on_it() {
        let list = "make\n/opt/solve\na-long-name-of-a-program\n";
        let check = |comm: &str, path: &str, expected| {
            assert_eq!(has(list, comm, path), expected, "{comm} {path}");
        };
        check("make", "/usr/bin/make", true);
        check("make", "/usr/bin/python3", true);
        check("renamed", "/usr/bin/make", true);
        check("solve", "/opt/solve", true);
        check("solve", "/usr/bin/solve", false);
        check("a-long-name-of-", "/bin/sh", true);
        check("makes", "/usr/bin/makes", false);
        check("", "", false);
        assert!(has("*\n", "x", "/x"));
        assert!(!has("", "x", "/x"));
    }
}
