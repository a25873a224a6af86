//! The settings of TLS and QUIC.
//!
//! TLS 1.3 with certificates on both sides and the cluster's root as the only judge. An acceptor shows its
//! certificate only to a dialler that asks for it by name (SNI), and the name has the cluster's uuid in it:
//! a stranger gets an alert and learns nothing, not even the uuid. No session resumption and no early data:
//! every connection proves both identities, and connections are few and long.

use super::TransportError;
use crate::identity::{NodeIdentity, crypto};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};
use rustls::RootCertStore;
use rustls::server::{NoServerSessionStorage, ResolvesServerCertUsingSni, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Protocol name in the TLS handshake; the version is in the hello, where it can be answered in words.
const ALPN: &[u8] = b"glu";

/// A peer that is silent for so long is dead.
pub(super) const IDLE_MAX: Duration = Duration::from_millis(1_500);
/// How often a dialler makes a quiet peer speak; a few may be lost within [`IDLE_MAX`].
const KEEP_ALIVE: Duration = Duration::from_millis(300);
const _: () = assert!(KEEP_ALIVE.as_millis() * 4 < IDLE_MAX.as_millis());

/// First guess of the round trip: it times the first retransmission, which at QUIC's default of 333 ms would
/// come too late for [`IDLE_MAX`].
const INITIAL_RTT: Duration = Duration::from_millis(30);

/// Byte streams that a peer may have open at once, its shared stream included.
pub(super) const STREAMS_MAX: u32 = 1_024;
/// Large frames that a peer may send at once.
pub(super) const LARGE_FRAMES_MAX: u32 = 32;
/// What may be under way on one stream. Twice the product of 10 Gbit/s and 1 ms. There is no lower limit
/// for the whole connection: a stream that nobody reads would use it up and stop the calls.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// What may be sent and not yet acknowledged, over all streams.
const SEND_WINDOW_BYTES: u64 = 16 << 20;

/// Largest UDP payload there is; what is received up to it is decided by the sender's path.
pub(super) const DATAGRAM_BYTES_MAX: u16 = 65_527;
/// Largest payload that is looked for on a network: jumbo frames of 9,000 with IPv6.
const NETWORK_DATAGRAM_BYTES_MAX: u16 = 8_952;

/// The settings of one kind of path.
#[derive(Clone, Debug)]
pub(super) struct Tls {
    loopback: (ClientConfig, Arc<ServerConfig>),
    network: (ClientConfig, Arc<ServerConfig>),
}

impl Tls {
    /// Prepares the settings for an identity.
    pub(super) fn new(identity: &NodeIdentity) -> Result<Self, TransportError> {
        let tls = |error: rustls::Error| TransportError::Tls(error.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(identity.root().der().clone()).map_err(tls)?;
        let roots = Arc::new(roots);

        let (cert, key) = (identity.cert()?, identity.key()?);
        let pair = CertifiedKey::from_der(vec![cert.clone()], key.clone_key(), &crypto());
        let mut resolver = ResolvesServerCertUsingSni::new();
        resolver
            .add(
                &identity.root().node_name(identity.node()),
                pair.map_err(tls)?,
            )
            .map_err(tls)?;

        let client_verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), crypto())
                .build()
                .map_err(|error| TransportError::Tls(error.to_string()))?;
        let mut server = rustls::ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(client_verifier)
            .with_cert_resolver(Arc::new(resolver));
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;

        let mut client = rustls::ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![cert], key)
            .map_err(tls)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = rustls::client::Resumption::disabled();

        let no_suite = |_| TransportError::Tls("AES-128-GCM is missing".to_owned());
        let server = Arc::new(QuicServerConfig::try_from(server).map_err(no_suite)?);
        let client = Arc::new(QuicClientConfig::try_from(client).map_err(no_suite)?);
        let on = |loopback: bool| {
            let mut dial = ClientConfig::new(client.clone());
            dial.transport_config(Arc::new(dialler(loopback)));
            let mut accept = ServerConfig::with_crypto(server.clone());
            accept.transport_config(Arc::new(acceptor(loopback)));
            // Nodes have fixed addresses; a connection that moves is a surprise nobody needs.
            accept.migration(false);
            (dial, Arc::new(accept))
        };
        Ok(Self {
            loopback: on(true),
            network: on(false),
        })
    }

    /// Returns the settings for dialling an address.
    pub(super) fn dial(&self, to: SocketAddr) -> ClientConfig {
        self.on(to).0.clone()
    }

    /// Returns the settings for accepting from an address.
    pub(super) fn accept(&self, from: SocketAddr) -> Arc<ServerConfig> {
        Arc::clone(&self.on(from).1)
    }

    fn on(&self, peer: SocketAddr) -> &(ClientConfig, Arc<ServerConfig>) {
        if peer.ip().is_loopback() {
            &self.loopback
        } else {
            &self.network
        }
    }
}

fn dialler(loopback: bool) -> TransportConfig {
    let mut config = path(loopback);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    // Acceptors only answer.
    config.max_concurrent_bidi_streams(VarInt::from_u32(0));
    config
}

fn acceptor(loopback: bool) -> TransportConfig {
    let mut config = path(loopback);
    config.max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX));
    config
}

fn path(loopback: bool) -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_MAX).expect("1.5 s fits into a QUIC integer");
    config.max_idle_timeout(Some(idle));
    config.initial_rtt(INITIAL_RTT);
    config.max_concurrent_uni_streams(VarInt::from_u32(LARGE_FRAMES_MAX));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES));
    config.send_window(SEND_WINDOW_BYTES);
    config.datagram_receive_buffer_size(None);
    let mut mtu = MtuDiscoveryConfig::default();
    if loopback {
        mtu.upper_bound(DATAGRAM_BYTES_MAX);
        // Datagrams as large as these are not worth batching: see docs/decisions/0005.
        config.enable_segmentation_offload(false);
    } else {
        mtu.upper_bound(NETWORK_DATAGRAM_BYTES_MAX);
    }
    config.mtu_discovery_config(Some(mtu));
    config
}
