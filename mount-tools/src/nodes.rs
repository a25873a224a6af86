//! Sets of nodes as users write them, the same for all tools: `2`, `node2`, `1-3`, `node[1-3,7]`, `@group`, and with
//! operators from left to right: `,` and, `!` without, `&` in both, `^` in one of both.
//!
//! The language and the groups are those of ClusterShell, read by the crate `nodeset`; groups are configured in
//! `/etc/clustershell` or `~/.local/etc/clustershell` as its manual says. Before that crate reads a text, every plain
//! term is spelt `node[..]` and every group is replaced by its nodes: to it `2` and `node2` are different names, and
//! a group that it does not know is empty.

use consistency::NodeId;
use nodeset::{Parser, Resolver};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::str::FromStr;

/// Highest id of a node.
const NODE_MAX: u16 = 9_999;
/// Longest text: it is read recursively.
const TEXT_BYTES_MAX: usize = 4096;

/// What an option for a set of nodes understands.
pub(crate) const HELP: &str = "Nodes: 2, node2, 1-3, node[1-3,7], @group; operators , ! & ^";

/// Nodes in ascending order, each once, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct NodeSet(BTreeSet<NodeId>);

/// A text that is no set of nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoNodes {
    #[error("`{0}` is no node: write 2, node2, 1-3, node[1,3] or @group")]
    Term(String),
    #[error("`{text}` is no set of nodes: {why}")]
    Syntax { text: String, why: String },
    #[error("no node is in the group `{0}`: groups are configured in /etc/clustershell")]
    Group(String),
    #[error("the groups of nodes cannot be read: {0}")]
    Groups(String),
    #[error("no node is left in `{0}`")]
    Empty(String),
}

impl NodeSet {
    /// Returns the nodes in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.0.iter().copied()
    }

    /// Returns whether a node is in it.
    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.0.contains(&node)
    }

    /// Shows nodes as one set.
    pub(crate) fn folded(nodes: impl IntoIterator<Item = NodeId>) -> String {
        let nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
        if nodes.is_empty() {
            return "no node".into();
        }
        Self(nodes).to_string()
    }

    fn read(text: &str, groups: &dyn Groups) -> Result<Self, NoNodes> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(NoNodes::Syntax {
                text: format!("{}...", text.chars().take(20).collect::<String>()),
                why: format!("it is longer than {TEXT_BYTES_MAX} bytes"),
            });
        }
        let spelt = spell(text, groups)?;
        let set = Parser::default().parse::<nodeset::IdRangeList>(&spelt);
        let set = set.map_err(|error| NoNodes::Syntax {
            text: text.into(),
            why: error.to_string(),
        })?;
        let nodes = set
            .iter()
            .map(|name| number(&name).ok_or(NoNodes::Term(name)))
            .collect::<Result<BTreeSet<_>, _>>()?;
        if nodes.is_empty() {
            return Err(NoNodes::Empty(text.into()));
        }
        Ok(Self(nodes))
    }
}

impl FromStr for NodeSet {
    type Err = NoNodes;

    fn from_str(text: &str) -> Result<Self, NoNodes> {
        Self::read(text, &ClusterShell)
    }
}

impl TryFrom<String> for NodeSet {
    type Error = NoNodes;

    fn try_from(text: String) -> Result<Self, NoNodes> {
        text.parse()
    }
}

impl From<NodeSet> for String {
    fn from(set: NodeSet) -> Self {
        set.to_string()
    }
}

impl fmt::Display for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = Parser::default().parse::<nodeset::IdRangeList>(&names(&self.0));
        set.map_err(|_| fmt::Error)?.fmt(f)
    }
}

/// Tells which nodes are in a group.
trait Groups {
    fn nodes(&self, group: &str) -> Result<Vec<String>, NoNodes>;
}

/// The groups that are configured on this machine.
struct ClusterShell;

impl Groups for ClusterShell {
    fn nodes(&self, group: &str) -> Result<Vec<String>, NoNodes> {
        let resolver = Resolver::from_config();
        let resolver = resolver.map_err(|error| NoNodes::Groups(error.to_string()))?;
        let source = Some(resolver.default_source());
        let set = Parser::with_resolver(&resolver, source).parse::<nodeset::IdRangeList>(group);
        let set = set.map_err(|error| NoNodes::Syntax {
            text: group.into(),
            why: error.to_string(),
        })?;
        Ok(set.iter().collect())
    }
}

/// Spells each term in the one way that makes equal nodes equal names.
fn spell(text: &str, groups: &dyn Groups) -> Result<String, NoNodes> {
    let mut spelt = String::new();
    let mut depth = 0;
    let mut term = String::new();
    // An operator at the end ends the last term, too.
    for next in text.chars().map(Some).chain([None]) {
        match next {
            Some('[') => depth += 1,
            Some(']') => depth -= 1,
            _ => {}
        }
        match next {
            Some(end) if depth > 0 || !(end.is_whitespace() || ",!&^()".contains(end)) => {
                term.push(end);
            }
            end => {
                if !term.is_empty() {
                    spelt.push_str(&spell_term(&term, groups)?);
                    term.clear();
                }
                spelt.extend(end);
            }
        }
    }
    Ok(spelt)
}

fn spell_term(term: &str, groups: &dyn Groups) -> Result<String, NoNodes> {
    if term.starts_with('@') {
        let nodes = groups.nodes(term)?;
        let nodes = nodes
            .into_iter()
            .map(|name| number(&name).ok_or(NoNodes::Term(name)))
            .collect::<Result<BTreeSet<_>, _>>()?;
        if nodes.is_empty() {
            return Err(NoNodes::Group(term.into()));
        }
        return Ok(format!("({})", names(&nodes)));
    }
    let (first, last) = term.split_once('-').unwrap_or((term, term));
    if let (Some(first), Some(last)) = (number(first), number(last)) {
        return Ok(format!("node[{first}-{last}]"));
    }
    let list = term.strip_prefix("node").unwrap_or(term);
    let list = list
        .strip_prefix('[')
        .and_then(|list| list.strip_suffix(']'));
    // Numbers this small cannot make the crate fill the memory, nor overflow.
    let small = |list: &&str| {
        let mut words = list.split(|of: char| !of.is_ascii_digit());
        let known = list
            .bytes()
            .all(|of| of.is_ascii_digit() || b",-/".contains(&of));
        known && words.all(|word| word.len() <= 4)
    };
    let list = list
        .filter(small)
        .ok_or_else(|| NoNodes::Term(term.into()))?;
    Ok(format!("node[{list}]"))
}

/// Reads the number of a node: `2` or `node2`.
fn number(text: &str) -> Option<NodeId> {
    let digits = text.strip_prefix("node").unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = plain.then(|| digits.parse().ok()).flatten();
    number
        .filter(|number| (1..=NODE_MAX).contains(number))
        .map(NodeId)
}

fn names(nodes: &BTreeSet<NodeId>) -> String {
    let mut names = String::new();
    for node in nodes {
        let comma = if names.is_empty() { "" } else { "," };
        write!(names, "{comma}node{node}").expect("writing to a string succeeds");
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `@ab` are nodes 1 and 2 in two spellings; there is no other group.
    struct Known;

    impl Groups for Known {
        fn nodes(&self, group: &str) -> Result<Vec<String>, NoNodes> {
            let nodes: &[&str] = match group {
                "@ab" => &["1", "node2"],
                "@hosts" => &["alpha"],
                _ => &[],
            };
            Ok(nodes.iter().map(|&name| name.into()).collect())
        }
    }

    #[track_caller]
    fn check(text: &str, expected: &[u16]) {
        let set = NodeSet::read(text, &Known).expect("is a set of nodes");
        let nodes: Vec<u16> = set.iter().map(|node| node.0).collect();
        assert_eq!(nodes, expected);
        assert!(set.iter().all(|node| set.contains(node)));
    }

    #[track_caller]
    fn check_refused(text: &str, part: &str) {
        let error = NodeSet::read(text, &Known).expect_err("is refused");
        let error = error.to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn sets_of_nodes() {
        check("2", &[2]);
        check("node2", &[2]);
        check("1-3", &[1, 2, 3]);
        check("node1-node3", &[1, 2, 3]);
        check("3,1", &[1, 3]);
        check("1-3,2,node7", &[1, 2, 3, 7]);
        check("node[1-3,7]", &[1, 2, 3, 7]);
        check("[1-7/3]", &[1, 4, 7]);
        check("9999", &[9999]);
        check_refused("", "no node is left");
        check_refused("0", "`0`");
        check_refused("node[0-2]", "node0");
        check_refused("10000", "`10000`");
        check_refused("99999999999", "`99999999999`");
        check_refused("node[1-4000000000]", "4000000000");
        check_refused("3-1", "no set of nodes");
        check_refused("1-2-3", "`1-2-3`");
        check_refused("+1", "`+1`");
        check_refused("host", "`host`");
        check_refused("node[1", "`node[1`");
        check_refused("node1]", "`node1]`");
        check_refused("node[1-2][1-9]", "`node[1-2][1-9]`");
        check_refused("(1", "no set of nodes");
        check_refused(&"(".repeat(5000), "longer");
    }

    #[test]
    fn operators_go_from_left_to_right() {
        check("1-5!2", &[1, 3, 4, 5]);
        check("node[1-5]!2-3", &[1, 4, 5]);
        check("1-3&node[2-9]", &[2, 3]);
        check("1-3^2-4", &[1, 4]);
        check("1,2!2,3", &[1, 3]);
        check("1-5!(2,3)", &[1, 4, 5]);
        check("1 , 4", &[1, 4]);
        check_refused("1!1", "no node is left");
        check_refused("1&2", "no node is left");
    }

    #[test]
    fn groups() {
        check("@ab", &[1, 2]);
        check("@ab,7", &[1, 2, 7]);
        check("1-4!@ab", &[3, 4]);
        check("@ab&1", &[1]);
        // What is unknown is no empty set: `!` would then mean all.
        check_refused("1-4!@nobody", "`@nobody`");
        check_refused("@hosts", "`alpha`");
    }

    #[test]
    fn they_are_shown_folded() {
        let set = NodeSet::read("3,1,2,7", &Known).expect("is a set");
        assert_eq!(set.to_string(), "node[1-3,7]");
    }
}
