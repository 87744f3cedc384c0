//! The connection to the server: the generated client with a key in every call. Commands that only ask fail at once when
//! nobody answers; those that wait go on trying ([`Client::patiently`]).

use std::{future::Future, time::Duration};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{
    config::{KeyText, KeyUse, Settings},
    error::{Error, Refusal, Result, is_transient},
};
pub use crate::domain::text::chain;
use crate::{
    runtime::backoff::Backoff,
    wire::pb::{
        contract_service_client::ContractServiceClient, daemon_service_client::DaemonServiceClient,
        key_service_client::KeyServiceClient, task_service_client::TaskServiceClient,
    },
};

/// A server on a healthy network accepts within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No call but a stream takes longer; a batch of a thousand large tasks is the longest.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A stream whose other end is gone is found out within twice this.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// A page of a thousand tasks with their plans is larger than tonic's 4 MiB.
const MAX_ANSWER_BYTES: usize = 1 << 30;
/// How long a command that waits puts up with a server that does not answer.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What the generated clients speak through.
pub type Service = InterceptedService<Channel, Credentials>;

/// Puts the key, and the owner an admin acts for, into every call.
#[derive(Clone, Debug)]
pub struct Credentials {
    bearer: Option<MetadataValue<Ascii>>,
    owner: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        if let Some(owner) = &self.owner {
            request.metadata_mut().insert("makima-owner", owner.clone());
        }
        Ok(request)
    }
}

/// A connection with a key.
#[derive(Clone, Debug)]
pub struct Client {
    /// Where the server is.
    pub server: String,
    key_origin: String,
    channel: Channel,
    credentials: Credentials,
}

impl Client {
    /// Connects with the key for this use; fails when nobody answers.
    pub async fn connect(settings: &Settings, usage: KeyUse) -> Result<Self> {
        let key = settings.key(usage)?;
        let owner = if usage == KeyUse::Owner { settings.owner.as_deref() } else { None };
        Self::open(&settings.server, Some(&key), owner).await
    }

    /// Connects to a named server.
    pub async fn open(server: &str, key: Option<&KeyText>, owner: Option<&str>) -> Result<Self> {
        let bearer = key.map(bearer).transpose()?;
        let owner = owner
            .map(|owner| {
                owner.parse().map_err(|_| Error::usage(format!("the owner {owner:?} has characters no name can have")))
            })
            .transpose()?;
        let endpoint = Endpoint::from_shared(server.to_owned())
            .map_err(|e| Error::usage(format!("{server} is not a server address ({e}); write http://HOST:PORT")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|error| {
            Error::failed(format!(
                "no server answers at {server} ({}): start one with `makima up`, or name yours with --server or MAKIMA_SERVER",
                root_cause(&error)
            ))
        })?;
        Ok(Self {
            server: server.to_owned(),
            key_origin: key.map(|key| key.origin.clone()).unwrap_or_default(),
            channel,
            credentials: Credentials { bearer, owner },
        })
    }

    /// Contracts.
    pub fn contracts(&self) -> ContractServiceClient<Service> {
        ContractServiceClient::with_interceptor(self.channel.clone(), self.credentials.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Tasks.
    pub fn tasks(&self) -> TaskServiceClient<Service> {
        TaskServiceClient::with_interceptor(self.channel.clone(), self.credentials.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Daemons.
    pub fn daemons(&self) -> DaemonServiceClient<Service> {
        DaemonServiceClient::with_interceptor(self.channel.clone(), self.credentials.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Keys.
    pub fn keys(&self) -> KeyServiceClient<Service> {
        KeyServiceClient::with_interceptor(self.channel.clone(), self.credentials.clone())
    }

    /// The bare channel, for health.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Turns a refusal into an error, for `map_err`.
    pub fn refused(&self, what: &'static str) -> impl Fn(Status) -> Error {
        let (server, key_origin) = (self.server.clone(), self.key_origin.clone());
        move |status| {
            Error::Call(Box::new(Refusal { what, status, server: server.clone(), key_origin: key_origin.clone() }))
        }
    }

    /// Makes a call that can be repeated safely until the server answers it, through restarts, [`PATIENCE`] at most.
    pub async fn patiently<T, F>(&self, what: &'static str, mut call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<tonic::Response<T>, Status>>,
    {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut said = false;
        loop {
            match call().await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) if is_transient(&status) && tokio::time::Instant::now() < deadline => {
                    if !said {
                        super::output::note(&format!(
                            "the server at {} does not answer ({}); trying again",
                            self.server,
                            status.message()
                        ));
                        said = true;
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(status) => return Err(self.refused(what)(status)),
            }
        }
    }
}

/// A request that does not wait for ever.
pub fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// An id for a write, so that repeating it is safe.
pub fn request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn bearer(key: &KeyText) -> Result<MetadataValue<Ascii>> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {}", key.secret)
        .parse()
        .map_err(|_| Error::usage(format!("the key in {} has characters no key has", key.origin)))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The last of a chain of causes: the one a person can do something about.
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
