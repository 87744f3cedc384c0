//! Who calls, and what they may do.
//!
//! ```text
//!   request ─> Layer: authorization: Bearer mk_<kind>_<secret> ─> Auth: SHA-256 ─> store (or cache) ─> Caller
//!                │ none, unknown, revoked: UNAUTHENTICATED, before a byte of the body is read         │
//!                └ health and reflection pass without                      handler: caller.owner()? <─┘
//! ```
//!
//! Four kinds of key. Admin, owner and daemon keys are rows with the SHA-256 of their text; a task key is derived from the
//! server's secret and good while its attempt lives. An admin key reaches an owner's data only by naming the owner in
//! `makima-owner`, which is recorded; any other key may name its own owner there and is refused with another. Handlers learn whose data a call is about only from [`Caller`], so that none can forget
//! to ask.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    metadata::MetadataMap,
};
use uuid::Uuid;

use super::task_keys::TaskKeys;
use crate::domain::text::{hex, unhex};
use crate::{
    domain::{
        AttemptRef, ContractId, KeyId, OwnerId, Timestamp,
        key::{Key, KeyKind},
    },
    store::{self, Store},
    wire::{
        key::is_owner_name,
        status::{ApiError, ApiResult, Reason},
    },
};

/// Where an admin key names the owner whose data it wants.
pub const OWNER_METADATA: &str = "makima-owner";
/// Bytes of a key's text at most; ours are shorter.
const MAX_KEY_BYTES: usize = 256;
/// Characters of a new key's secret: 40 of 62 are 238 bits.
const SECRET_CHARS: usize = 40;
/// Keys remembered, so that most calls do not ask the database who calls.
const CACHE: usize = 4_096;
/// How long a key is remembered. A revocation here takes effect at once; this bounds one by another server.
const CACHE_FOR: Duration = Duration::from_secs(10);
/// Owner of a new database.
pub const DEFAULT_OWNER: &str = "default";
/// Where the server's secret is kept.
const SECRET: &str = "server_secret";

// === callers ===

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody with an admin key, and the owner named, if one was.
    Admin {
        /// The key.
        key: KeyId,
        /// The owner named.
        acting_for: Option<OwnerId>,
    },
    /// Somebody with an owner's key.
    Owner {
        /// The key.
        key: KeyId,
        /// The owner.
        owner: OwnerId,
    },
    /// A daemon.
    Daemon {
        /// The key.
        key: KeyId,
        /// The owner.
        owner: OwnerId,
    },
    /// An agent, in an attempt that lives.
    Task {
        /// The attempt.
        attempt: AttemptRef,
        /// The contract of its task.
        contract: ContractId,
        /// The owner.
        owner: OwnerId,
    },
}

/// What somebody may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Whose data.
    pub owner: OwnerId,
    /// Only of this contract.
    pub only: Option<ContractId>,
}

impl Reader {
    /// May it read of this contract?
    pub fn check(&self, contract: ContractId) -> ApiResult<()> {
        match self.only {
            Some(only) if only != contract => {
                Err(ApiError::new(Reason::OutsideTaskKey, "a task key reads its own contract and nothing else"))
            }
            _ => Ok(()),
        }
    }
}

impl Caller {
    /// The caller of a request that came through the [`Layer`].
    pub fn of<T>(request: &tonic::Request<T>) -> ApiResult<Self> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| ApiError::new(Reason::KeyMissing, KEY_MISSING))
    }

    /// Whose data the call may read and change.
    pub fn owner(&self) -> ApiResult<OwnerId> {
        match self {
            Self::Owner { owner, .. } | Self::Admin { acting_for: Some(owner), .. } => Ok(*owner),
            Self::Admin { acting_for: None, .. } => Err(ApiError::new(
                Reason::OwnerNotNamed,
                format!("this is an admin key; name the owner whose data you want in `{OWNER_METADATA}` metadata"),
            )),
            Self::Daemon { .. } | Self::Task { .. } => Err(ApiError::new(
                Reason::OwnerKeyNeeded,
                format!("this call needs an owner key; this is {} key", self.kind().with_article()),
            )),
        }
    }

    /// Whose data the call may read.
    pub fn reader(&self) -> ApiResult<Reader> {
        match self {
            Self::Task { owner, contract, .. } => Ok(Reader { owner: *owner, only: Some(*contract) }),
            Self::Admin { .. } | Self::Owner { .. } | Self::Daemon { .. } => {
                Ok(Reader { owner: self.owner()?, only: None })
            }
        }
    }

    /// It may manage keys.
    pub fn admin(&self) -> ApiResult<()> {
        match self {
            Self::Admin { .. } => Ok(()),
            Self::Owner { .. } | Self::Daemon { .. } | Self::Task { .. } => Err(ApiError::new(
                Reason::AdminKeyNeeded,
                format!("this call needs an admin key; this is {} key", self.kind().with_article()),
            )),
        }
    }

    /// It is a daemon: whose, and with which key.
    pub fn daemon(&self) -> ApiResult<(OwnerId, KeyId)> {
        match self {
            Self::Daemon { key, owner } => Ok((*owner, *key)),
            Self::Admin { .. } | Self::Owner { .. } | Self::Task { .. } => Err(ApiError::new(
                Reason::DaemonKeyNeeded,
                format!("this call needs a daemon key; this is {} key", self.kind().with_article()),
            )),
        }
    }

    /// What its key is good for.
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Admin { .. } => KeyKind::Admin,
            Self::Owner { .. } => KeyKind::Owner,
            Self::Daemon { .. } => KeyKind::Daemon,
            Self::Task { .. } => KeyKind::Task,
        }
    }

    /// The word for it in the event log.
    pub fn actor(&self) -> String {
        match self {
            Self::Admin { key, .. } | Self::Owner { key, .. } | Self::Daemon { key, .. } => format!("key:{key}"),
            Self::Task { attempt, .. } => format!("task:{}", attempt.task),
        }
    }
}

const KEY_MISSING: &str = "this call needs a key: send `authorization: Bearer mk_<kind>_<secret>` metadata";

// === keys ===

/// Recognises keys; clones share the cache.
#[derive(Clone, Debug)]
pub struct Auth(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    task_keys: TaskKeys,
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    keys: HashMap<[u8; 32], (Key, Instant)>,
    /// Counts revocations: what was read before one is not remembered after it.
    revocations: u64,
}

impl Auth {
    /// Keys of this store, and task keys of this server.
    pub fn new(store: Store, task_keys: TaskKeys) -> Self {
        Self(Arc::new(Inner { store, task_keys, cache: Mutex::default() }))
    }

    /// Who sends this metadata. What asks the database, which few calls do, is in boxes: a call is moved about as large as
    /// the largest thing that it may ever wait for.
    pub async fn authenticate(&self, metadata: &MetadataMap) -> ApiResult<Caller> {
        let text = bearer(metadata)?;
        let unknown = || ApiError::new(Reason::KeyUnknown, "this key is not one of this server; see `makima doctor`");
        let kind = kind_of(text).ok_or_else(unknown)?;
        if kind == KeyKind::Task {
            return Box::pin(self.task_key(text, metadata)).await;
        }
        let hash = hash(text);
        let key = match self.known(&hash) {
            Ok(known) => Some(known),
            Err(revocations) => Box::pin(self.key(&hash, revocations)).await?,
        };
        let key = key.filter(|key| key.kind == kind).ok_or_else(unknown)?;
        if key.revoked.is_some() {
            return Err(ApiError::new(
                Reason::KeyRevoked,
                "this key was revoked; ask whoever runs the server for another",
            ));
        }
        let belongs = |owner: Option<OwnerId>| owner.ok_or_else(unknown);
        match kind {
            KeyKind::Admin => {
                let acting_for = Box::pin(self.named_owner(metadata)).await?;
                if let Some(owner) = acting_for {
                    tracing::info!(key = %key.id, %owner, "an admin key reaches an owner's data");
                }
                Ok(Caller::Admin { key: key.id, acting_for })
            }
            KeyKind::Owner | KeyKind::Daemon => {
                let owner = belongs(key.owner)?;
                names_its_own(metadata, kind, owner, &key.owner_name)?;
                Ok(match kind {
                    KeyKind::Owner => Caller::Owner { key: key.id, owner },
                    _ => Caller::Daemon { key: key.id, owner },
                })
            }
            KeyKind::Task => Err(unknown()),
        }
    }

    /// A key was revoked: forget all of them, which is rare and cheap.
    pub fn revoked(&self) {
        let mut cache = self.cache();
        cache.keys.clear();
        cache.revocations += 1;
    }

    /// Whether a key is still good: for sessions, which outlive the call that opened them.
    pub async fn is_good(&self, key: KeyId) -> Result<bool, store::Error> {
        let mut tx = self.0.store.read().await?;
        Ok(tx.key_fetch(key).await?.is_some_and(|key| key.revoked.is_none()))
    }

    /// A key that was read lately; else how many revocations there have been so far.
    fn known(&self, hash: &[u8; 32]) -> Result<Key, u64> {
        let cache = self.cache();
        match cache.keys.get(hash) {
            Some((key, since)) if since.elapsed() < CACHE_FOR => Ok(key.clone()),
            _ => Err(cache.revocations),
        }
    }

    /// The key of the database. It is remembered, if nothing has been revoked since so many revocations.
    async fn key(&self, hash: &[u8; 32], revocations: u64) -> ApiResult<Option<Key>> {
        let mut tx = self.0.store.read().await.map_err(ApiError::unavailable)?;
        let key = tx.key_by_hash(hash).await.map_err(ApiError::unavailable)?;
        // Keys that do not exist are not remembered: they may be made at any time, and there is no end of them.
        if let Some(key) = &key {
            let mut cache = self.cache();
            if cache.revocations == revocations {
                if cache.keys.len() >= CACHE {
                    cache.keys.clear();
                }
                cache.keys.insert(*hash, (key.clone(), Instant::now()));
            }
        }
        Ok(key)
    }

    async fn task_key(&self, text: &str, metadata: &MetadataMap) -> ApiResult<Caller> {
        let unknown = || ApiError::new(Reason::KeyUnknown, "this task key is not one of this server");
        let claimed = TaskKeys::claimed(text).ok_or_else(unknown)?;
        let mut tx = self.0.store.read().await.map_err(ApiError::unavailable)?;
        let attempt = tx.attempts_fetch(&[claimed]).await.map_err(ApiError::unavailable)?.pop().ok_or_else(unknown)?;
        if !self.0.task_keys.is_of(text, attempt.reference()) {
            return Err(unknown());
        }
        if !attempt.is_live() {
            return Err(ApiError::new(Reason::KeyExpired, "the attempt that this task key was made for is over"));
        }
        if metadata.contains_key(OWNER_METADATA) {
            let name = tx.owner_name(attempt.owner).await.map_err(ApiError::unavailable)?.unwrap_or_default();
            names_its_own(metadata, KeyKind::Task, attempt.owner, &name)?;
        }
        Ok(Caller::Task { attempt: attempt.reference(), contract: attempt.contract, owner: attempt.owner })
    }

    async fn named_owner(&self, metadata: &MetadataMap) -> ApiResult<Option<OwnerId>> {
        let Some(value) = metadata.get(OWNER_METADATA) else { return Ok(None) };
        let named = value.to_str().unwrap_or_default();
        let mut tx = self.0.store.read().await.map_err(ApiError::unavailable)?;
        let owner = match Uuid::try_parse(named) {
            Ok(id) => {
                let owner = OwnerId(id);
                tx.owner_name(owner).await.map_err(ApiError::unavailable)?.map(|_| owner)
            }
            Err(_) if is_owner_name(named) => tx.owner_named(named).await.map_err(ApiError::unavailable)?,
            Err(_) => None,
        };
        let shown = crate::wire::common::shown(named);
        let missing = || ApiError::new(Reason::OwnerNotFound, format!("there is no owner `{shown}`"));
        owner.map(Some).ok_or_else(missing)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key that belongs to an owner names that one or none. Whether there is another of that name is not told.
fn names_its_own(metadata: &MetadataMap, kind: KeyKind, owner: OwnerId, name: &str) -> ApiResult<()> {
    let Some(value) = metadata.get(OWNER_METADATA) else { return Ok(()) };
    let named = value.to_str().unwrap_or_default();
    if named == name || Uuid::try_parse(named).is_ok_and(|id| id == owner.0) {
        return Ok(());
    }
    let (kind, shown) = (kind.word(), crate::wire::common::shown(named));
    Err(ApiError::new(
        Reason::AdminKeyNeeded,
        format!(
            "only an admin key may act for another owner; this is a key of `{name}` ({kind}), and `{shown}` was named"
        ),
    ))
}

fn bearer(metadata: &MetadataMap) -> ApiResult<&str> {
    let missing = || ApiError::new(Reason::KeyMissing, KEY_MISSING);
    let value = metadata.get("authorization").ok_or_else(missing)?.to_str().map_err(|_| missing())?;
    let (scheme, text) = value.split_once(' ').ok_or_else(missing)?;
    let text = text.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || text.is_empty() || text.len() > MAX_KEY_BYTES {
        return Err(missing());
    }
    Ok(text)
}

fn kind_of(text: &str) -> Option<KeyKind> {
    let (kind, secret) = text.strip_prefix("mk_")?.split_once('_')?;
    let kinds = [KeyKind::Admin, KeyKind::Owner, KeyKind::Daemon, KeyKind::Task];
    kinds.into_iter().find(|it| it.word() == kind && !secret.is_empty())
}

/// SHA-256 of a key's text: what is kept of it.
pub fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// A new key's text.
pub fn new_key(kind: KeyKind) -> String {
    let mut rng = rand::rng();
    let secret: String = (0..SECRET_CHARS).map(|_| char::from(rng.sample(rand::distr::Alphanumeric))).collect();
    format!("mk_{}_{secret}", kind.word())
}

// === a new database ===

/// What can go wrong at the start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store.
    #[error("read or write keys")]
    Store(#[from] store::Error),
    /// A key file cannot be written.
    #[error("write {path}")]
    File {
        /// Which.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The server's secret is not what this program writes.
    #[error("the server's secret in the database is damaged")]
    Secret,
}

/// Reads the server's secret, and gives a new database what it needs to be used at all: the secret, an admin key, and a
/// default owner with an owner key and a daemon key, whose texts go to `admin.key`, `owner.key` and `daemon.key` in the
/// state directory, where the command line and daemons of the same user on the same machine find them.
///
/// The files come first: dying in between leaves files that the next start writes again, never keys that nobody has.
pub async fn bootstrap(store: &Store, state_dir: &Path, now: Timestamp) -> Result<TaskKeys, Error> {
    let mut tx = store.begin().await?;
    let known = tx.meta_fetch(SECRET).await?;
    if let Some(text) = &known {
        tx.rollback().await?;
        return Ok(TaskKeys::new(parse_secret(text).ok_or(Error::Secret)?));
    }
    let secret: [u8; 32] = rand::rng().random();
    let owner = OwnerId(Uuid::now_v7());
    let mut keys = Vec::new();
    for kind in [KeyKind::Admin, KeyKind::Owner, KeyKind::Daemon] {
        let text = new_key(kind);
        write_key_file(&state_dir.join(format!("{}.key", kind.word())), &text)?;
        let is_admin = kind == KeyKind::Admin;
        keys.push(Key {
            id: KeyId(Uuid::now_v7()),
            kind,
            owner: (!is_admin).then_some(owner),
            owner_name: if is_admin { String::new() } else { DEFAULT_OWNER.to_owned() },
            label: "made with the database".to_owned(),
            hash: hash(&text),
            created: now,
            revoked: None,
        });
    }
    tx.owner_insert(owner, DEFAULT_OWNER, now).await?;
    tx.keys_put(&keys).await?;
    tx.meta_put(SECRET, &hex(&secret)).await?;
    tx.commit().await?;
    tracing::info!(directory = %state_dir.display(), "a new database; its keys are in admin.key, owner.key and daemon.key");
    Ok(TaskKeys::new(secret))
}

fn parse_secret(text: &str) -> Option<[u8; 32]> {
    unhex(text)?.try_into().ok()
}

/// Writes a file that only its user may read, whole or not at all.
fn write_key_file(path: &Path, text: &str) -> Result<(), Error> {
    let error = |source| Error::File { path: path.display().to_string(), source };
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(error)?;
    let new = path.with_extension("key.new");
    // One that a start left behind might have other permissions.
    match fs::remove_file(&new) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(error)?;
    writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(error)?;
    fs::rename(&new, path).map_err(error)?;
    fs::File::open(parent).and_then(|directory| directory.sync_all()).map_err(error)
}

// === the layer ===

/// Puts the [`Caller`] into every request, or answers it.
#[derive(Clone, Debug)]
pub struct Layer(Auth);

impl Layer {
    /// A layer that asks this.
    pub fn new(auth: Auth) -> Self {
        Self(auth)
    }
}

impl<S> tower::Layer<S> for Layer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { auth: self.0.clone(), inner }
    }
}

/// A service that nobody reaches without a key.
#[derive(Clone)]
pub struct Guarded<S> {
    auth: Auth,
    inner: S,
}

impl<S> fmt::Debug for Guarded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guarded(..)")
    }
}

/// What needs no key: whether we live, and what we speak.
fn is_open_to_all(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.")
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // The one that was found ready is the one to call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let auth = self.auth.clone();
        Box::pin(async move {
            if is_open_to_all(request.uri().path()) {
                return inner.call(request).await;
            }
            let (mut parts, body) = request.into_parts();
            let metadata = MetadataMap::from_headers(std::mem::take(&mut parts.headers));
            match auth.authenticate(&metadata).await {
                Ok(caller) => {
                    super::trace::caller(&caller);
                    parts.headers = metadata.into_headers();
                    parts.extensions.insert(caller);
                    Ok(by_the_caller(inner.call(http::Request::from_parts(parts, body)).await?))
                }
                Err(error) => Ok(Status::from(error).into_http()),
            }
        })
    }
}

/// A request that cannot be decoded (text that is not UTF-8, a truncated message) never reaches a handler, and tonic calls it
/// INTERNAL, as if it were our fault. The caller learns that it is theirs.
fn by_the_caller(response: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::Internal && status.message().starts_with(UNDECODABLE) => {
            Status::from(undecodable(status.message())).into_http()
        }
        _ => response,
    }
}

/// What tonic says of a message that does not decode; what prost says follows: `Message.field: problem`.
const UNDECODABLE: &str = "failed to decode Protobuf message: ";

fn undecodable(message: &str) -> ApiError {
    let problem = message.trim_start_matches(UNDECODABLE);
    let (field, problem) = match problem.split_once(": ") {
        // Without the name of the request's own type, which is no part of a field's path.
        Some((path, problem)) => (path.split_once('.').map_or("", |(_, field)| field), problem),
        None => ("", problem),
    };
    ApiError::invalid_field(field, format!("cannot be read: {problem}"))
}

#[cfg(test)]
mod tests;
