//! Who asks, with the groups that FUSE does not tell.

use crate::wire::{GROUPS_MAX, User};
use gfs::tree::Caller;

/// Returns who asks: his thread waits for us and so is there. Of one in another pid namespace the groups are not known,
/// and do not count.
pub(crate) fn user(caller: Caller) -> User {
    let status = match caller.pid {
        0 => String::new(),
        pid => std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default(),
    };
    User {
        uid: caller.uid,
        gid: caller.gid,
        groups: groups_of(&status),
    }
}

/// Returns the supplementary groups from a thread's `status`.
fn groups_of(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let groups = line.unwrap_or_default().split_ascii_whitespace();
    let groups = groups.filter_map(|group| group.parse().ok());
    groups.take(GROUPS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_in_the_status() {
        let status = "Name:\tx\nGid:\t5\t5\t5\t5\nGroups:\t4 24 1000 \nNStgid:\t7\n";
        assert_eq!(groups_of(status), [4, 24, 1000]);
        assert_eq!(groups_of("Groups:\t \n"), [0_u32; 0]);
        assert_eq!(groups_of(""), [0_u32; 0]);
    }
}
