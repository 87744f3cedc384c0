//! The connection to the server: one for the session, one for bulk. Everything that HTTP/2 leaves to chance is set on
//! purpose here.

use std::time::Duration;

use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{
    daemon::{config::Config, runner::chain},
    runtime::hooks,
    wire::{daemon::MAX_CHUNK_BYTES, pb::daemon_service_client::DaemonServiceClient},
};

/// A peer that is gone without a word is noticed after this and [`PING_TIMEOUT`].
const PING: Duration = Duration::from_secs(15);
/// How long it has for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// What the server may send before we have read it: more than any burst of commands, less than what would hurt.
const WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes of one message from the server. Control messages are under 1 MiB; this is for those that are not.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address.
    #[error("`{0}` is not a server's address")]
    Address(String),
    /// Nobody answers there.
    #[error("reach {server}: {message}")]
    Unreachable {
        /// Where.
        server: String,
        /// Why not.
        message: String,
    },
    /// It takes too long.
    #[error("reach {server}: no answer for {} s", .after.as_secs())]
    Timeout {
        /// Where.
        server: String,
        /// How long was waited.
        after: Duration,
    },
}

/// Connects, within the configured time.
pub async fn connect(config: &Config) -> Result<DaemonServiceClient<Channel>, Error> {
    let server = config.server.to_string();
    let after = config.times.connect;
    let endpoint = Endpoint::from_shared(server.clone())
        .map_err(|_| Error::Address(server.clone()))?
        .connect_timeout(after)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(hooks::duration("PING", PING))
        .keep_alive_timeout(hooks::duration("PING_TIMEOUT", PING_TIMEOUT))
        // Also while no call is open: a half-open connection must not look like a good one.
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let channel = match tokio::time::timeout(after, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(Error::Unreachable { server, message: chain(&error) }),
        Err(_) => return Err(Error::Timeout { server, after }),
    };
    Ok(DaemonServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE.max(2 * MAX_CHUNK_BYTES)))
}

/// The request with the daemon's key on it.
pub fn authorized<T>(config: &Config, message: T) -> Request<T> {
    let mut request = Request::new(message);
    // The key's text was checked when it was taken; without it the server says what is missing.
    if let Ok(mut value) = format!("Bearer {}", config.key.secret()).parse::<MetadataValue<Ascii>>() {
        value.set_sensitive(true);
        request.metadata_mut().insert("authorization", value);
    }
    request
}
