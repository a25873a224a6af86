//! What is to be mounted: `[CLUSTER][:/DIRECTORY]`.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

/// Names that every cluster answers to.
const ANY_CLUSTER: [&str; 3] = ["", "glu", "cluster"];

/// A directory of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    cluster: String,
    directory: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BadSource {
    #[error("{0}: not absolute: write it like cluster:/directory")]
    Relative(String),
    #[error("{0}: `..` leads nowhere in a source: name the directory itself")]
    Parent(String),
    #[error("{named}: this node is of the cluster {cluster}: name that one, or `glu`")]
    OtherCluster { named: String, cluster: String },
}

impl FromStr for Source {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        let (cluster, directory) = text.split_once(':').unwrap_or((text, "/"));
        // `none`-like words without a colon are names of clusters, and no cluster is called so.
        let directory = Path::new(directory);
        if !directory.is_absolute() {
            return Err(BadSource::Relative(text.to_owned()));
        }
        if directory.components().any(|c| c == Component::ParentDir) {
            return Err(BadSource::Parent(text.to_owned()));
        }
        Ok(Self {
            cluster: cluster.to_owned(),
            directory: directory.to_owned(),
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cluster, self.directory.display())
    }
}

impl Source {
    /// Returns the directory, from the root of the tree.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Refuses another cluster than the one called `cluster`.
    pub(super) fn check_name(&self, cluster: &str) -> Result<(), BadSource> {
        if ANY_CLUSTER.contains(&self.cluster.as_str()) || self.cluster == cluster {
            Ok(())
        } else {
            Err(BadSource::OtherCluster {
                named: self.cluster.clone(),
                cluster: cluster.to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let check = |text: &str, cluster: &str, directory: &str| {
            let source: Source = text.parse().expect(text);
            assert_eq!(source.cluster, cluster, "{text}");
            assert_eq!(source.directory(), Path::new(directory), "{text}");
        };
        check("glu", "glu", "/");
        check(":/", "", "/");
        check(":/a/b", "", "/a/b");
        check("lab:/a:b c", "lab", "/a:b c");
    }

    #[test]
    fn what_is_no_source() {
        let check = |text: &str, word: &str| {
            let error = text.parse::<Source>().expect_err(text).to_string();
            assert!(error.contains(word) && error.contains(text), "{error}");
        };
        check(":a", "not absolute");
        check("lab:", "not absolute");
        check(":/a/../b", "`..`");
    }

    #[test]
    fn names_of_clusters() {
        let check = |text: &str, taken: bool| {
            let source: Source = text.parse().expect(text);
            assert_eq!(source.check_name("lab").is_ok(), taken, "{text}");
        };
        check(":/a", true);
        check("glu:/a", true);
        check("cluster", true);
        check("lab", true);
        check("tmpfs", false);
    }
}
