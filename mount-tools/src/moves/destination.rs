//! Where a process is to run.

use consistency::NodeId;
use std::str::FromStr;

/// Where a process is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    Node(NodeId),
    /// The node that has started it.
    Home,
    /// The balancer chooses.
    Best,
}

/// A word that names no such place.
#[derive(Debug, thiserror::Error)]
#[error("write a node's number, `home` or `balance`")]
pub(crate) struct NoDestination;

impl Destination {
    /// Returns what is written to `goto`.
    pub(crate) fn order(self) -> String {
        match self {
            Self::Node(node) => node.to_string(),
            Self::Home => "0".to_owned(),
            Self::Best => "-1".to_owned(),
        }
    }
}

impl FromStr for Destination {
    type Err = NoDestination;

    fn from_str(text: &str) -> Result<Self, NoDestination> {
        match text {
            "home" | "0" => Ok(Self::Home),
            "balance" => Ok(Self::Best),
            number => {
                let digits = number.strip_prefix("node").unwrap_or(number);
                let node = digits.parse().map_err(|_| NoDestination)?;
                Ok(Self::Node(NodeId(node)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let order = |text: &str| text.parse::<Destination>().ok().map(Destination::order);
        assert_eq!(order("3").as_deref(), Some("3"));
        assert_eq!(order("node3").as_deref(), Some("3"));
        assert_eq!(order("home").as_deref(), Some("0"));
        assert_eq!(order("balance").as_deref(), Some("-1"));
        for wrong in ["", "-1", "x", "99999"] {
            assert_eq!(order(wrong), None, "{wrong}");
        }
    }
}
