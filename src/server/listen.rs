//! The server on the network: every service behind one guard, with limits and timings set on purpose.
//!
//! ```text
//!   TcpListener ─> HTTP/2 ─> auth::Layer ─> Contract, Task, Daemon, Key services
//!                                  └──────> health, reflection v1 and v1alpha (open to all)
//! ```
//!
//! Promises: without TLS it listens on loopback only, unless told otherwise. From the moment a drain is asked for, health says
//! NOT_SERVING and no connection is taken; streams end by themselves, so the drain ends soon.

use std::{net::SocketAddr, time::Duration};

use tokio::net::TcpListener;
use tonic::transport::server::{Server, TcpIncoming};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    auth::{Auth, Layer},
    services::Api,
};
use crate::{
    runtime::lifecycle::Shutdown,
    wire::pb::{
        self, contract_service_server::ContractServiceServer, daemon_service_server::DaemonServiceServer,
        key_service_server::KeyServiceServer, task_service_server::TaskServiceServer,
    },
};

/// Bytes of a request that creates or changes contracts and tasks. A thousand tasks may have plans of 32 KiB on average;
/// whoever has more adds them in several calls. Only callers with a key get as far as to send it.
pub const MAX_CONTRACT_REQUEST: usize = 32 * 1024 * 1024;
/// Bytes of a message from a daemon: control messages are below 1 MiB, chunks below 512 KiB, and both have an envelope.
pub const MAX_DAEMON_MESSAGE: usize = 1024 * 1024 + 64 * 1024;
/// Bytes of a request about keys.
pub const MAX_KEY_REQUEST: usize = 64 * 1024;
/// Bytes of an answer. The largest are pages of tasks, which stop at 3 MiB; beyond that it would be a mistake.
pub const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Silence on a connection after which it is asked whether anybody is there: laptops sleep, and NATs forget.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long the answer may take. With the interval below the 45 s after which a daemon is taken for lost.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of one stream on their way that we have room for: two chunks of an upload, so that one travels while one is stored.
/// Set by hand, not adapted: the adaptive window grows and never shrinks, and what a connection may cost should be known.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Bytes of a connection: a few streams at full speed. At 50 ms of delay it carries 80 MB/s.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Calls of one connection at a time. A client with more waits for its own.
const MAX_CONCURRENT_STREAMS: u32 = 1_024;
/// Bytes of a request's metadata.
const MAX_HEADER_LIST: u32 = 16 * 1024;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not without TLS.
    #[error(
        "{0} is not a loopback address, and without TLS keys and code would travel in the clear; \
         listen on 127.0.0.1, or say --insecure if the network is yours alone"
    )]
    NotLoopback(SocketAddr),
    /// The address cannot be had.
    #[error("listen on {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
    /// The descriptors are damaged, which is a mistake of the build.
    #[error("serve the protocol's descriptors")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The network.
    #[error("serve")]
    Serve(#[from] tonic::transport::Error),
}

/// Refuses an address that others can reach, unless it is wanted.
pub fn check_address(address: SocketAddr, insecure: bool) -> Result<(), Error> {
    // An IPv4 address in an IPv6 one is as local as itself.
    if address.ip().to_canonical().is_loopback() || insecure { Ok(()) } else { Err(Error::NotLoopback(address)) }
}

/// Listens on an address that [`check_address`] lets pass.
pub async fn bind(address: SocketAddr, insecure: bool) -> Result<TcpListener, Error> {
    check_address(address, insecure)?;
    TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })
}

/// Serves until the shutdown, and then until all connections have ended.
pub async fn serve(listener: TcpListener, api: Api, auth: Auth, shutdown: Shutdown) -> Result<(), Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    set_all(&health, ServingStatus::Serving).await;
    let draining = {
        let (health, shutdown) = (health.clone(), shutdown.clone());
        async move {
            shutdown.soft.cancelled().await;
            set_all(&health, ServingStatus::NotServing).await;
        }
    };

    let contracts = ContractServiceServer::new(api.clone())
        .max_decoding_message_size(MAX_CONTRACT_REQUEST)
        .max_encoding_message_size(MAX_ANSWER);
    let tasks = TaskServiceServer::new(api.clone())
        .max_decoding_message_size(MAX_CONTRACT_REQUEST)
        .max_encoding_message_size(MAX_ANSWER);
    let daemons = DaemonServiceServer::new(api.clone())
        .max_decoding_message_size(MAX_DAEMON_MESSAGE)
        .max_encoding_message_size(MAX_ANSWER);
    let keys =
        KeyServiceServer::new(api).max_decoding_message_size(MAX_KEY_REQUEST).max_encoding_message_size(MAX_ANSWER);

    let incoming = TcpIncoming::from(listener)
        // Small messages must not wait for each other.
        .with_nodelay(Some(true));
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_adaptive_window(Some(false))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .layer(super::trace::Layer)
        .layer(Layer::new(auth))
        .add_service(contracts)
        .add_service(tasks)
        .add_service(daemons)
        .add_service(keys)
        .add_service(health_service)
        .add_service(reflection()?.build_v1()?)
        .add_service(reflection()?.build_v1alpha()?)
        .serve_with_incoming_shutdown(incoming, draining)
        .await?;
    Ok(())
}

/// What describes the protocol to `grpcurl` and its like: ours, health, and the details that errors carry.
fn reflection() -> Result<tonic_reflection::server::Builder<'static>, Error> {
    Ok(tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET))
}

async fn set_all(health: &HealthReporter, status: ServingStatus) {
    for service in
        ["", "makima.v1.ContractService", "makima.v1.TaskService", "makima.v1.DaemonService", "makima.v1.KeyService"]
    {
        health.set_service_status(service, status).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_without_saying_so() {
        for address in ["127.0.0.1:7420", "127.8.0.1:1", "[::1]:7420", "[::ffff:127.0.0.1]:7420"] {
            check_address(address.parse().unwrap(), false).unwrap();
        }
        for address in ["0.0.0.0:7420", "192.168.1.5:7420", "[::]:7420", "[::ffff:10.0.0.1]:7420"] {
            let error = check_address(address.parse().unwrap(), false).unwrap_err();
            assert!(error.to_string().contains("--insecure"), "{error}");
            check_address(address.parse().unwrap(), true).unwrap();
        }
    }

    /// Everything that reflection describes can be resolved.
    #[test]
    fn the_descriptors_build() {
        reflection().unwrap().build_v1().unwrap();
        reflection().unwrap().build_v1alpha().unwrap();
    }
}
