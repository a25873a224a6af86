//! `[store]`: where file data is kept.

use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where file data is kept: in a bucket if one is named, else on the nodes' disks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// A bucket of an S3-compatible store; the same on all nodes, whose disks then are caches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Config>,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// Its name.
    pub bucket: String,
    /// What the names of all objects begin with; no other cluster may use it.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// URL of the store; that of AWS if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Its region.
    #[serde(default = "default_region")]
    pub region: String,
    /// A TOML file, readable for its owner alone, with `access_key_id` and `secret_access_key`; without it the environment
    /// has them (`AWS_ACCESS_KEY_ID` and so on).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
    /// MiB of this node's disk that keep chunks at hand, 0 to 1,073,741,824.
    #[serde(default = "default_cache_mib")]
    pub cache_mib: u32,
    /// GiB that the tree shows as its size, 1 to 1,073,741,824: the store has no limit to tell of.
    #[serde(default = "default_capacity_gib")]
    pub capacity_gib: u32,
}

/// What the file of credentials has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    access_key_id: String,
    secret_access_key: String,
}

const MOST: u32 = 1 << 30;

impl S3Config {
    /// Returns how much the bucket may hold.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        u64::from(self.capacity_gib) << 30
    }

    /// Reads key and secret, if there is a file of them.
    ///
    /// # Errors
    /// One line: which file, what is wrong, what to do.
    pub fn read_credentials(&self) -> anyhow::Result<Option<(String, String)>> {
        let Some(path) = &self.credentials else {
            return Ok(None);
        };
        let shown = path.display();
        let unread = |error| anyhow::anyhow!("{shown}: {error}: correct credentials in [store] s3");
        let mode = path.metadata().map_err(unread)?.mode();
        if mode & 0o077 != 0 {
            anyhow::bail!("{shown}: others may read it: chmod 600 {shown}");
        }
        let text = std::fs::read_to_string(path).map_err(unread)?;
        let wrong = |_| {
            anyhow::anyhow!(
                "{shown}: write access_key_id = \"...\" and secret_access_key = \"...\""
            )
        };
        let found: Credentials = toml::from_str(&text).map_err(wrong)?;
        Ok(Some((found.access_key_id, found.secret_access_key)))
    }

    /// Returns what is wrong and what to do.
    pub(super) fn broken(&self) -> Option<String> {
        let plain =
            |endpoint: &String| endpoint.starts_with("http://") || endpoint.starts_with("https://");
        let relative = |path: &PathBuf| !Path::is_absolute(path);
        if self.bucket.is_empty() || self.prefix.trim_matches('/').is_empty() {
            Some("bucket or prefix is empty: name them".to_owned())
        } else if self.endpoint.as_ref().is_some_and(|url| !plain(url)) {
            Some("endpoint is no URL: begin it with https:// (or http://)".to_owned())
        } else if self.credentials.as_ref().is_some_and(relative) {
            Some("credentials is relative: start it with /".to_owned())
        } else if self.cache_mib > MOST {
            Some(format!(
                "cache_mib is {}: choose 0 to {MOST}",
                self.cache_mib
            ))
        } else if !(1..=MOST).contains(&self.capacity_gib) {
            Some(format!(
                "capacity_gib is {}: choose 1 to {MOST}",
                self.capacity_gib
            ))
        } else {
            None
        }
    }
}

fn default_prefix() -> String {
    "glu".to_owned()
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

const fn default_cache_mib() -> u32 {
    10 << 10
}

/// A PiB.
const fn default_capacity_gib() -> u32 {
    1 << 20
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn parse(text: &str) -> S3Config {
        let store: StoreConfig = toml::from_str(text).expect("TOML");
        store.s3.expect("there")
    }

    #[test]
    fn the_bucket_is_enough() {
        let s3 = parse("s3 = { bucket = \"b\" }");
        assert_eq!(s3.broken(), None);
        assert_eq!((s3.capacity() >> 50, s3.cache_mib), (1, 10_240));
        assert_eq!(s3.read_credentials().expect("none"), None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, word) in [
            ("bucket = \"\"", "name them"),
            ("bucket = \"b\", prefix = \"/\"", "name them"),
            ("bucket = \"b\", endpoint = \"s3.example\"", "https://"),
            ("bucket = \"b\", credentials = \"x\"", "relative"),
            ("bucket = \"b\", capacity_gib = 0", "choose 1 to"),
            ("bucket = \"b\", cache_mib = 2000000000", "choose 0 to"),
        ] {
            let why = parse(&format!("s3 = {{ {text} }}")).broken();
            let why = why.unwrap_or_else(|| panic!("{text} is good"));
            assert!(why.contains(word), "{text}: {why}");
        }
    }

    #[test]
    fn credentials_are_a_secret() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("s3.toml");
        let text = "access_key_id = \"k\"\nsecret_access_key = \"s\"\n";
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("chmod");
        let s3 = S3Config {
            credentials: Some(path.clone()),
            ..parse("s3 = { bucket = \"b\" }")
        };
        let open = s3.read_credentials().expect_err("open to all").to_string();
        assert!(open.contains("chmod 600"), "{open}");
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("chmod");
        let read = s3.read_credentials().expect("good");
        assert_eq!(read, Some(("k".to_owned(), "s".to_owned())));
        std::fs::write(&path, "access_key_id = \"k\"\n").expect("written");
        let half = s3.read_credentials().expect_err("half").to_string();
        assert!(
            half.contains("secret_access_key") && !half.contains('\n'),
            "{half}"
        );
    }
}
