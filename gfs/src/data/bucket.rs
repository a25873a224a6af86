//! Chunks in a bucket of an S3-compatible store, with a directory of a local disk as their cache (decision 9).
//!
//! ```text
//! <prefix>/glu-owner                          whose chunks these are
//! <prefix>/chunks/<lowest byte>/<number>      a chunk, as in the file of a chunk (`store/format.rs`)
//! <prefix>/quarantine/<number>-<when>         damaged ones, for somebody to look at
//! ```
//!
//! # Rules
//! - A chunk is put once the store has acknowledged it; the cache is told afterwards and may fail.
//! - Nothing is believed that the checksums do not confirm, wherever it comes from.
//! - Each request has an end. What may pass is `Unavailable`; what somebody has to mend is `Disk`.
//! - The first request finds out whether the bucket is this cluster's.
//!
//! The methods block: they are called where that is allowed, see [`super::disk`].
//!
//! Lock order: none is held while another is taken.

mod cache;
mod way;

pub use self::way::WithBucket;

use self::cache::Cache;
use super::store::OpenError;
use super::store::format::{Header, whole};
use super::{ChunkStore, Space};
use bytes::Bytes;
use consistency::ChunkId;
use consistency::wire::chunk::{CHUNK_BYTES_MAX, ChunkFailure};
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    RetryConfig,
};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// How long a request may take, with all its repetitions.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// How often a request is repeated within its time.
const RETRIES_MAX: usize = 3;
const OWNER: &str = "glu-owner";
const CHUNKS: &str = "chunks";
const QUARANTINE: &str = "quarantine";

/// Where a bucket is, and how it is used.
#[derive(Clone, Debug)]
pub struct BucketConfig {
    /// URL of the store; `None`: that of AWS in this region.
    pub endpoint: Option<String>,
    /// Its region.
    pub region: String,
    /// Name of the bucket.
    pub bucket: String,
    /// What the names of all objects begin with.
    pub prefix: String,
    /// Key and secret; `None`: as the environment says (`AWS_ACCESS_KEY_ID` and so on).
    pub credentials: Option<(String, String)>,
    /// Identity of the cluster: nobody else may use the prefix.
    pub owner: String,
    /// Directory of the cache.
    pub cache_dir: PathBuf,
    /// Bytes of chunks in the cache at most.
    pub cache_bytes: u64,
    /// How much may be stored; what the tree shows as its size.
    pub capacity: u64,
}

/// Why a bucket cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The configuration makes no sense to the client of the store.
    #[error("bucket {bucket}: {error}; correct [store] s3")]
    Config {
        /// Which bucket.
        bucket: String,
        /// What is wrong.
        error: Error,
    },
    /// The cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] OpenError),
}

/// A chunk store in a bucket.
#[derive(Debug)]
pub struct Bucket {
    objects: Arc<dyn ObjectStore>,
    runtime: Handle,
    config: BucketConfig,
    /// The bucket is ours.
    owned: OnceLock<()>,
    cache: Cache,
    /// Chunks that somebody is fetching.
    coming: Mutex<BTreeSet<ChunkId>>,
    arrived: Condvar,
}

impl Bucket {
    /// Opens the cache and prepares to use the store, which need not answer yet. Requests run on `runtime`.
    ///
    /// # Errors
    /// [`BucketError`], which says what to do about it.
    pub fn open(config: BucketConfig, runtime: Handle) -> Result<Self, BucketError> {
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&config.bucket)
            .with_region(&config.region)
            .with_client_options(
                ClientOptions::new()
                    .with_connect_timeout(CONNECT_DEADLINE)
                    .with_timeout(REQUEST_DEADLINE),
            )
            .with_retry(RetryConfig {
                backoff: BackoffConfig::default(),
                max_retries: RETRIES_MAX,
                retry_timeout: REQUEST_DEADLINE,
            });
        if let Some(endpoint) = &config.endpoint {
            let plain = endpoint.starts_with("http://");
            builder = builder.with_endpoint(endpoint).with_allow_http(plain);
        }
        if let Some((key, secret)) = &config.credentials {
            builder = builder
                .with_access_key_id(key)
                .with_secret_access_key(secret);
        }
        let objects = builder.build().map_err(|error| BucketError::Config {
            bucket: config.bucket.clone(),
            error,
        })?;
        let objects = PrefixStore::new(objects, config.prefix.as_str());
        let cache = Cache::open(&config.cache_dir, config.cache_bytes)?;
        Ok(Self {
            objects: Arc::new(objects),
            runtime,
            config,
            owned: OnceLock::new(),
            cache,
            coming: Mutex::default(),
            arrived: Condvar::new(),
        })
    }

    /// Runs requests to the end, or to their deadline.
    fn wait<T>(
        &self,
        doing: &str,
        requests: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, ChunkFailure> {
        let bounded = async { timeout(REQUEST_DEADLINE, requests).await };
        match self.runtime.block_on(bounded) {
            Ok(done) => done.map_err(|error| failure(doing, &error)),
            Err(_) => Err(ChunkFailure::Unavailable(format!(
                "{doing}: no answer within {REQUEST_DEADLINE:?}"
            ))),
        }
    }

    /// Returns the bytes of an object.
    fn read(&self, path: &Path) -> Result<Bytes, ChunkFailure> {
        self.wait("read", async {
            self.objects.get(path).await?.bytes().await
        })
    }

    /// Stores an object unless there is one; returns whether there was none.
    fn create(&self, path: &Path, payload: PutPayload) -> Result<bool, ChunkFailure> {
        self.wait("write", async {
            let made = self
                .objects
                .put_opts(path, payload, PutMode::Create.into())
                .await;
            match made {
                Ok(_) => Ok(true),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    /// Finds out, once, whether the bucket is this cluster's; makes it so if it is nobody's.
    fn check_owner(&self) -> Result<(), ChunkFailure> {
        if self.owned.get().is_some() {
            return Ok(());
        }
        let (path, owner) = (Path::from(OWNER), &self.config.owner);
        let found = match self.read(&path) {
            Err(ChunkFailure::Missing) => {
                self.create(&path, PutPayload::from(owner.clone().into_bytes()))?;
                self.read(&path)?
            }
            found => found?,
        };
        if found != owner.as_bytes() {
            let BucketConfig { bucket, prefix, .. } = &self.config;
            let found = String::from_utf8_lossy(&found).into_owned();
            return Err(ChunkFailure::Disk(format!(
                "bucket {bucket}: {prefix}/{OWNER} says that it belongs to the cluster {found:?}, this is {owner:?}; configure another prefix"
            )));
        }
        // Another thread may have been as far.
        self.owned.get_or_init(|| ());
        Ok(())
    }

    /// Returns the verified bytes of a chunk out of the bucket.
    fn fetch(&self, id: ChunkId) -> Result<Bytes, ChunkFailure> {
        self.check_owner()?;
        whole(&self.read(&path_of(id))?)
    }

    /// Returns the verified bytes of a chunk and keeps them at hand. Only one of those who want a chunk fetches it.
    fn fetch_once(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ChunkFailure> {
        {
            let coming = self.coming.lock().expect("no holder panics");
            let mut coming = self
                .arrived
                .wait_while(coming, |coming| coming.contains(&id))
                .expect("no holder panics");
            coming.insert(id);
        }
        let _done = Coming { bucket: self, id };
        if let Some(there) = self.cache.get(id, offset, len) {
            return there;
        }
        let data = self.fetch(id)?;
        self.cache.put(id, &data);
        part(&data, offset, len)
    }

    /// Keeps a damaged chunk for somebody to look at. That is not worth failing for.
    fn set_aside(&self, id: ChunkId) {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let aside = Path::from(format!("{QUARANTINE}/{:016x}-{}", id.0, since.as_millis()));
        let path = path_of(id);
        match self.wait("copy", self.objects.copy(&path, &aside)) {
            Ok(()) => tracing::warn!(%id, path = %aside, "set a damaged chunk aside"),
            Err(ChunkFailure::Missing) => {}
            Err(failure) => tracing::warn!(%id, %failure, "cannot set a damaged chunk aside"),
        }
    }
}

/// A chunk that is being fetched, until dropped.
struct Coming<'a> {
    bucket: &'a Bucket,
    id: ChunkId,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut coming = self.bucket.coming.lock().expect("no holder panics");
        coming.remove(&self.id);
        self.bucket.arrived.notify_all();
    }
}

impl ChunkStore for Bucket {
    fn put(&self, id: ChunkId, data: &[u8], crc: u32) -> Result<(), ChunkFailure> {
        let header = Header::of(data, crc)?;
        self.check_owner()?;
        let object = || {
            let parts = [header.encode().into(), Bytes::copy_from_slice(data)];
            PutPayload::from_iter(parts)
        };
        let path = path_of(id);
        if !self.create(&path, object())? {
            // The same put before, whose answer was lost, or a damaged object, which this one replaces.
            match self.fetch(id) {
                Ok(there) if there == data => {}
                Ok(_) => {
                    return Err(ChunkFailure::Disk(format!(
                        "chunk {id} is here already with other bytes"
                    )));
                }
                Err(ChunkFailure::Corrupt | ChunkFailure::Missing) => {
                    self.set_aside(id);
                    self.wait("write", self.objects.put(&path, object()))?;
                }
                Err(failure) => return Err(failure),
            }
        }
        self.cache.put(id, data);
        Ok(())
    }

    fn get(&self, id: ChunkId, offset: u32, len: u32) -> Result<Bytes, ChunkFailure> {
        if let Some(there) = self.cache.get(id, offset, len) {
            return there;
        }
        self.fetch_once(id, offset, len)
    }

    fn verify(&self, id: ChunkId) -> Result<u32, ChunkFailure> {
        // The bucket's, whatever the cache has.
        let data = self.fetch(id)?;
        Ok(u32::try_from(data.len()).expect("chunks are small"))
    }

    fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkFailure> {
        self.check_owner()?;
        let paths: Vec<Path> = ids.iter().copied().map(path_of).collect();
        let some = futures::stream::iter(paths.clone().into_iter().map(Ok)).boxed();
        let removed = self.wait("remove", async {
            let deleted = self.objects.delete_stream(some);
            let absent_is_gone = deleted.filter_map(async |deleted| match deleted {
                Ok(_) | Err(Error::NotFound { .. }) => None,
                Err(error) => Some(Err::<(), _>(error)),
            });
            std::pin::pin!(absent_is_gone).try_collect::<()>().await
        });
        if let Err(failure) = removed {
            // Some stores say nothing of absent objects, and the client takes an answer without any for none.
            for path in &paths {
                match self.wait("look", self.objects.head(path)) {
                    Err(ChunkFailure::Missing) => {}
                    Ok(_) => return Err(failure),
                    Err(other) => return Err(other),
                }
            }
        }
        for id in ids {
            self.cache.remove(*id);
        }
        Ok(())
    }

    fn quarantine(&self, id: ChunkId) -> Result<(), ChunkFailure> {
        self.check_owner()?;
        self.set_aside(id);
        self.delete(&[id])
    }

    fn space(&self) -> Result<Space, ChunkFailure> {
        let total = self.config.capacity;
        Ok(Space { total, free: total })
    }

    fn ids(&self) -> Result<Vec<ChunkId>, ChunkFailure> {
        self.check_owner()?;
        let mut objects = self.objects.list(Some(&Path::from(CHUNKS)));
        let mut ids = Vec::new();
        while let Some(object) = self.wait("list", objects.try_next())? {
            let number = object.location.filename();
            let number = number.and_then(|name| u64::from_str_radix(name, 16).ok());
            ids.extend(number.map(ChunkId));
        }
        ids.sort_unstable();
        Ok(ids)
    }
}

/// Returns a range of a chunk, as [`ChunkStore::get`] does.
fn part(data: &Bytes, offset: u32, len: u32) -> Result<Bytes, ChunkFailure> {
    let (offset, len) = (offset as usize, len as usize);
    if len == 0 || offset >= data.len() {
        return Err(ChunkFailure::BadRange);
    }
    Ok(data.slice(offset..offset.saturating_add(len).min(data.len())))
}

fn path_of(id: ChunkId) -> Path {
    let [low, ..] = id.0.to_le_bytes();
    Path::from(format!("{CHUNKS}/{low:02x}/{:016x}", id.0))
}

/// Returns what the store said as the failure of a request.
fn failure(doing: &str, error: &Error) -> ChunkFailure {
    // The client's errors have lines of their own.
    let text = || {
        let text = format!("{doing}: {error}");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    match error {
        Error::NotFound { .. } => ChunkFailure::Missing,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            ChunkFailure::Disk(format!("{}; check the credentials of the bucket", text()))
        }
        _ => ChunkFailure::Unavailable(text()),
    }
}

const _: () = assert!(CHUNK_BYTES_MAX <= 5 << 20, "a chunk is put in one request");

#[cfg(test)]
mod tests;
