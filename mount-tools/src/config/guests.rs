//! Which users of other nodes a node takes processes of.

use gproc::job::admission::Admitted;
use nix::unistd::{Uid, User};
use serde::{Deserialize, Serialize};

/// `[guests]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuestsConfig {
    /// Whether root's processes of other nodes run here.
    pub root: bool,
    /// Whether those of users run here who have no account on this node.
    pub strangers: bool,
}

impl Default for GuestsConfig {
    fn default() -> Self {
        Self {
            root: true,
            strangers: true,
        }
    }
}

impl GuestsConfig {
    /// Returns what they say of a user. Blocks, where accounts are in a directory service.
    pub(crate) fn admit(self, uid: u32) -> Admitted {
        if uid == 0 {
            return if self.root {
                Admitted::Yes
            } else {
                Admitted::NoRoot
            };
        }
        let known = || matches!(User::from_uid(Uid::from_raw(uid)), Ok(Some(_)));
        if self.strangers || known() {
            Admitted::Yes
        } else {
            Admitted::NoAccount
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_taken() {
        let all = GuestsConfig::default();
        let no_root = GuestsConfig { root: false, ..all };
        let known = GuestsConfig {
            strangers: false,
            ..all
        };
        // A number that no account has, and one that has one everywhere.
        let (stranger, nobody) = (3_999_999_999, 65_534);
        for (config, uid, expected) in [
            (all, 0, Admitted::Yes),
            (all, stranger, Admitted::Yes),
            (no_root, 0, Admitted::NoRoot),
            (no_root, stranger, Admitted::Yes),
            (known, 0, Admitted::Yes),
            (known, nobody, Admitted::Yes),
            (known, stranger, Admitted::NoAccount),
        ] {
            assert_eq!(config.admit(uid), expected, "{config:?} {uid}");
        }
    }
}
