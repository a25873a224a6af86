//! A real S3 server over a directory (`s3s-fs`), for tests of file data in a bucket.

use anyhow::{Context, Result};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread::JoinHandle;
use tokio::sync::oneshot;

/// Key and secret that it asks for.
pub const S3_CREDENTIALS: (&str, &str) = ("test-key", "test-secret");

/// A server that runs on a thread of its own until it is dropped; then all its connections are gone.
#[derive(Debug)]
pub struct S3Server {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Serves the buckets in `root`, which are its subdirectories, at an address.
    ///
    /// # Errors
    /// The address or the directory cannot be used.
    pub fn start(addr: SocketAddr, root: &Path) -> Result<Self> {
        let files = FileSystem::new(root).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut service = S3ServiceBuilder::new(files);
        let (key, secret) = S3_CREDENTIALS;
        service.set_auth(SimpleAuth::from_single(key, secret));
        let service = service.build();
        let listener = TcpListener::bind(addr).with_context(|| format!("listen at {addr}"))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // Either way it is over.
                    _ = stopped => {}
                    served = serve(listener, service) => {
                        if let Err(error) = served {
                            eprintln!("S3 server: {error}");
                        }
                    }
                }
            });
        });
        Ok(Self {
            addr,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Returns its address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Waits until it ends by itself, which it does only after an error.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }
}

async fn serve(listener: TcpListener, service: S3Service) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let http = Builder::new(TokioExecutor::new());
    loop {
        let (socket, _) = listener.accept().await?;
        let connection = http.serve_connection(TokioIo::new(socket), service.clone());
        let connection = connection.into_owned();
        tokio::spawn(async move {
            // A client that hangs up is no news.
            drop(connection.await);
        });
    }
}
