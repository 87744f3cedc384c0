//! What each kind of key opens, and what is refused.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::{
    domain::{
        AttemptId, TaskId,
        attempt::{Attempt, AttemptState, Failure, FailureClass},
        id::DaemonId,
    },
    runtime::clock,
};

struct Bed {
    directory: tempfile::TempDir,
    store: Store,
    keys: TaskKeys,
    auth: Auth,
    _claim: store::Claim,
}

async fn bed() -> Bed {
    let directory = tempfile::tempdir().unwrap();
    let (store, claim) = Store::open(&store::Url::Sqlite(directory.path().join("db"))).await.unwrap();
    let keys = bootstrap(&store, directory.path(), clock::now()).await.unwrap();
    let auth = Auth::new(store.clone(), keys.clone());
    Bed { directory, store, keys, auth, _claim: claim }
}

impl Bed {
    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap().trim().to_owned()
    }

    async fn caller(&self, key: &str, owner: Option<&str>) -> ApiResult<Caller> {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {key}").parse().unwrap());
        if let Some(owner) = owner {
            metadata.insert(OWNER_METADATA, owner.parse().unwrap());
        }
        self.auth.authenticate(&metadata).await
    }
}

fn reason<T: fmt::Debug>(result: ApiResult<T>) -> Reason {
    result.unwrap_err().reason()
}

/// A new database gets three keys, in files that only their user may read, and each opens its own doors only.
#[tokio::test]
async fn each_key_opens_its_own_doors() {
    let bed = bed().await;
    for name in ["admin.key", "owner.key", "daemon.key"] {
        let mode = fs::metadata(bed.directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let admin = bed.caller(&bed.file("admin.key"), None).await.unwrap();
    let owner = bed.caller(&bed.file("owner.key"), None).await.unwrap();
    let daemon = bed.caller(&bed.file("daemon.key"), None).await.unwrap();

    admin.admin().unwrap();
    assert_eq!(reason(admin.owner()), Reason::OwnerNotNamed);
    assert_eq!(reason(admin.daemon()), Reason::DaemonKeyNeeded);
    let id = owner.owner().unwrap();
    assert_eq!(reason(owner.admin()), Reason::AdminKeyNeeded);
    assert_eq!(reason(owner.daemon()), Reason::DaemonKeyNeeded);
    assert_eq!(daemon.daemon().unwrap().0, id);
    assert_eq!(reason(daemon.owner()), Reason::OwnerKeyNeeded);
    assert_eq!(reason(daemon.reader()), Reason::OwnerKeyNeeded);
    assert_eq!(reason(daemon.admin()), Reason::AdminKeyNeeded);

    let as_owner = bed.caller(&bed.file("admin.key"), Some("default")).await.unwrap();
    assert_eq!(as_owner.owner().unwrap(), id);
    let by_id = bed.caller(&bed.file("admin.key"), Some(&id.to_string())).await.unwrap();
    assert_eq!(by_id.owner().unwrap(), id);
    let nobody = bed.caller(&bed.file("admin.key"), Some("nobody")).await;
    assert_eq!(reason(nobody), Reason::OwnerNotFound);
    // Only admin keys choose: another key may name its own owner, and no other.
    for file in ["owner.key", "daemon.key"] {
        for own in ["default".to_owned(), id.to_string()] {
            bed.caller(&bed.file(file), Some(&own)).await.unwrap();
        }
        for other in ["nobody".to_owned(), String::new(), Uuid::nil().to_string()] {
            let refused = bed.caller(&bed.file(file), Some(&other)).await;
            assert_eq!(reason(refused), Reason::AdminKeyNeeded, "{file} {other:?}");
        }
    }
}

#[tokio::test]
async fn what_is_not_a_key_of_ours_is_unauthenticated() {
    let bed = bed().await;
    assert_eq!(reason(bed.auth.authenticate(&MetadataMap::new()).await), Reason::KeyMissing);
    let mut metadata = MetadataMap::new();
    metadata.insert("authorization", "Basic abc".parse().unwrap());
    assert_eq!(reason(bed.auth.authenticate(&metadata).await), Reason::KeyMissing);
    let relabelled = bed.file("daemon.key").replace("mk_daemon_", "mk_admin_");
    for key in ["mk_owner_nope", "mk_king_x", "hello", relabelled.as_str(), "mk_task_x", "mk_owner_"] {
        assert_eq!(reason(bed.caller(key, None).await), Reason::KeyUnknown, "{key}");
    }
    assert_eq!(reason(bed.caller(&"x".repeat(300), None).await), Reason::KeyMissing);
}

/// The second start leaves everything as it is.
#[tokio::test]
async fn a_database_that_is_not_new_keeps_its_keys() {
    let bed = bed().await;
    let before = bed.file("admin.key");
    let keys = bootstrap(&bed.store, bed.directory.path(), clock::now()).await.unwrap();
    assert_eq!(bed.file("admin.key"), before);
    let attempt = attempt().reference();
    assert_eq!(keys.derive(attempt), bed.keys.derive(attempt));
}

#[tokio::test]
async fn a_revoked_key_is_out_at_once() {
    let bed = bed().await;
    let text = bed.file("owner.key");
    bed.caller(&text, None).await.unwrap();
    let mut tx = bed.store.begin().await.unwrap();
    let mut key = tx.key_by_hash(&hash(&text)).await.unwrap().unwrap();
    key.revoked = Some(clock::now());
    tx.keys_put(std::slice::from_ref(&key)).await.unwrap();
    tx.commit().await.unwrap();
    bed.caller(&text, None).await.expect("remembered until somebody says so");
    bed.auth.revoked();
    assert_eq!(reason(bed.caller(&text, None).await), Reason::KeyRevoked);
    assert!(!bed.auth.is_good(key.id).await.unwrap());
}

fn attempt() -> Attempt {
    let now = clock::now();
    Attempt {
        task: TaskId(Uuid::from_u128(1)),
        number: 1,
        id: AttemptId(Uuid::from_u128(2)),
        contract: ContractId(Uuid::from_u128(3)),
        owner: OwnerId(Uuid::from_u128(4)),
        daemon: DaemonId(Uuid::from_u128(5)),
        state: AttemptState::Running { since: now },
        fenced: false,
        branch: String::new(),
        worktree: String::new(),
        base_commit: String::new(),
        agent_version: String::new(),
        agent_session_id: String::new(),
        last_message: String::new(),
        usage: Default::default(),
        warnings: Vec::new(),
        wall_time: None,
        assigned: now,
        started: None,
        output_bytes: 0,
        commands: Vec::new(),
        origin: Default::default(),
        checkpoint: None,
        checkpointed: None,
        checkpoint_failed: None,
    }
}

/// A task key reads its own contract while its attempt lives.
#[tokio::test]
async fn a_task_key_lives_as_long_as_its_attempt() {
    let bed = bed().await;
    let mut attempt = attempt();
    let text = bed.keys.derive(attempt.reference());
    assert_eq!(reason(bed.caller(&text, None).await), Reason::KeyUnknown);
    let mut tx = bed.store.begin().await.unwrap();
    tx.attempts_insert(&[&attempt]).await.unwrap();
    tx.commit().await.unwrap();

    let caller = bed.caller(&text, None).await.unwrap();
    let reader = caller.reader().unwrap();
    reader.check(attempt.contract).unwrap();
    assert_eq!(reason(reader.check(ContractId(Uuid::from_u128(9)))), Reason::OutsideTaskKey);
    assert_eq!(reason(caller.owner()), Reason::OwnerKeyNeeded);
    assert_eq!(caller.actor(), format!("task:{}", attempt.task));
    let forged = TaskKeys::new([0; 32]).derive(attempt.reference());
    assert_eq!(reason(bed.caller(&forged, None).await), Reason::KeyUnknown);
    bed.caller(&text, Some(&attempt.owner.to_string())).await.unwrap();
    assert_eq!(reason(bed.caller(&text, Some("default")).await), Reason::AdminKeyNeeded);

    attempt.state =
        AttemptState::Ended { at: clock::now(), outcome: Err(Failure::new(FailureClass::Cancelled, "enough")) };
    let mut tx = bed.store.begin().await.unwrap();
    tx.attempts_update(&[&attempt]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(reason(bed.caller(&text, None).await), Reason::KeyExpired);
}

/// The layer answers before a handler is reached, and lets health and reflection pass.
#[tokio::test]
async fn the_layer_guards_all_but_health_and_reflection() {
    use tower::{Layer as _, ServiceExt as _, service_fn};

    let bed = bed().await;
    let inner = service_fn(|request: http::Request<Body>| async move {
        let mut response = http::Response::new(Body::empty());
        if request.extensions().get::<Caller>().is_some() {
            response.headers_mut().insert("known", "yes".parse().unwrap());
        }
        Ok::<_, std::convert::Infallible>(response)
    });
    let guarded = Layer::new(bed.auth.clone()).layer(inner);
    let call = async |path: &str, key: Option<String>| {
        let mut request = http::Request::builder().uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = guarded.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        (header("grpc-status"), header("known"))
    };
    assert_eq!(call("/grpc.health.v1.Health/Check", None).await, (None, None));
    assert_eq!(call("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", None).await, (None, None));
    assert_eq!(call("/makima.v1.TaskService/GetTask", None).await, (Some("16".to_owned()), None));
    let key = Some(bed.file("owner.key"));
    assert_eq!(call("/makima.v1.TaskService/GetTask", key).await, (None, Some("yes".to_owned())));
}
