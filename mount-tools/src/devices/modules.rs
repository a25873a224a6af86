//! Modules of the kernel that stand-ins need.

use std::path::Path;
use std::process::{Command, Stdio};

/// A module that stock kernels have and do not load by themselves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Module {
    name: &'static str,
    /// What is there when it is loaded.
    device: &'static str,
}

pub(super) const NBD: Module = Module {
    name: "nbd",
    device: "/dev/nbd0",
};

pub(super) const CUSE: Module = Module {
    name: "cuse",
    device: "/dev/cuse",
};

impl Module {
    /// Loads it if need be.
    ///
    /// # Errors
    /// It is not there; says which one is missing.
    pub(super) fn load(self) -> Result<(), String> {
        let is_there = || Path::new(self.device).exists();
        if is_there() {
            return Ok(());
        }
        let loads = Command::new("modprobe")
            .arg(self.name)
            .stdin(Stdio::null())
            .output();
        if is_there() {
            return Ok(());
        }
        let (name, device) = (self.name, self.device);
        Err(match loads {
            Ok(output) if output.status.success() => {
                format!("the module {name} is loaded, but {device} is not there")
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let said = said.lines().next().unwrap_or("it fails").to_owned();
                format!("this kernel has no module {name} ({said})")
            }
            Err(error) => format!("the module {name} cannot be loaded (modprobe: {error})"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let there = Module {
            name: "null",
            device: "/dev/null",
        };
        assert_eq!(there.load(), Ok(()));
        let missing = Module {
            name: "glu_no_such_module",
            device: "/dev/glu-no-such-device",
        };
        let why = missing.load().expect_err("it is not there");
        assert!(why.contains("module glu_no_such_module"), "{why}");
        assert!(!why.contains('\n'), "{why}");
    }
}
