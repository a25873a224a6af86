//! Sets of nodes as users write them: `2`, `node2`, `1-3`, `1,4-6`.

use consistency::NodeId;
use std::str::FromStr;

/// Highest id of a node.
const NODE_MAX: u16 = 9_999;

/// Nodes in ascending order, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeSet(pub(super) Vec<NodeId>);

/// A text that is no set of nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no node: write 2, node2, 1-3 or 1,3")]
pub(super) struct NoNode(String);

impl FromStr for NodeSet {
    type Err = NoNode;

    fn from_str(text: &str) -> Result<Self, NoNode> {
        let mut nodes = Vec::new();
        for part in text.split(',') {
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (node(first)?, node(last)?),
                None => (node(part)?, node(part)?),
            };
            if first > last {
                return Err(NoNode(part.into()));
            }
            nodes.extend((first..=last).map(NodeId));
        }
        nodes.sort_unstable();
        nodes.dedup();
        Ok(Self(nodes))
    }
}

fn node(text: &str) -> Result<u16, NoNode> {
    let digits = text.strip_prefix("node").unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain
        .then(|| digits.parse().ok())
        .flatten()
        .filter(|node| (1..=NODE_MAX).contains(node))
        .ok_or_else(|| NoNode(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[u16]) {
        let set = text.parse::<NodeSet>().expect("is a set of nodes");
        let expected: Vec<_> = expected.iter().copied().map(NodeId).collect();
        assert_eq!(set.0, expected);
    }

    #[track_caller]
    fn check_refused(text: &str, part: &str) {
        assert_eq!(text.parse::<NodeSet>(), Err(NoNode(part.into())));
    }

    #[test]
    fn sets_of_nodes() {
        check("2", &[2]);
        check("node2", &[2]);
        check("1-3", &[1, 2, 3]);
        check("node1-node3", &[1, 2, 3]);
        check("3,1", &[1, 3]);
        check("1-3,2,node7", &[1, 2, 3, 7]);
        check("9999", &[9999]);
        check_refused("", "");
        check_refused("1,", "");
        check_refused("0", "0");
        check_refused("10000", "10000");
        check_refused("99999999999", "99999999999");
        check_refused("3-1", "3-1");
        check_refused("1-2-3", "2-3");
        check_refused("+1", "+1");
        check_refused("host", "host");
    }
}
