//! Many daemons on one server, each on a connection of its own: what each costs in memory and all of them in processor time,
//! and how soon they are back after the server was killed. They speak the protocol and have no journal: ten thousand processes
//! would measure the machine.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use makima::{
    daemon::hollow::PROFILE,
    domain::{
        BootId, DaemonId, JournalId,
        daemon::{Card, Hello, Profile},
    },
    runtime::clock,
    wire::{
        daemon::PROTOCOL,
        pb::{AttachRequest, Heartbeat, attach_request, attach_response, daemon_service_client::DaemonServiceClient},
    },
};
use rand::RngExt as _;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use uuid::Uuid;

use crate::{
    bed::Bed,
    figures::{Figures, Goal},
    harness::{
        Database,
        process::{self, Program},
    },
    options::Options,
    proc,
};

/// At once on their way to attach, as if they had started one after the other.
const ARRIVING: usize = 64;
/// The longest wait before the next try to attach, in milliseconds: a fleet comes back spread out.
const SPREAD: u64 = 5_000;
/// Between two looks at how many are attached.
const LOOK: Duration = Duration::from_millis(50);
/// Slots of each.
const SLOTS: u32 = 4;
/// All have attached by then, or never.
const PATIENCE: Duration = Duration::from_secs(300);

/// One round on one database.
pub async fn measure(options: &Options, database: Database, figures: &mut Figures) {
    let daemons = options.size(10_000, 500);
    let mut bed = Bed::start(database).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let empty = proc::resident(bed.world.server.pid());
    let mut fleet = start(&bed, daemons);
    let begun = Instant::now();
    all_attached(&mut fleet, daemons, 1).await;
    figures.add("fleet: all attached", Some(database), "s", begun.elapsed().as_secs_f64(), Goal::default());
    let lasting = Duration::from_secs(if options.quick { 5 } else { 45 });
    let before = proc::cpu(bed.world.server.pid());
    tokio::time::sleep(lasting).await;
    let spent = proc::cpu(bed.world.server.pid()).saturating_sub(before);
    let percent = spent.as_secs_f64() / lasting.as_secs_f64() * 100.0;
    figures.add("fleet: server's processor time", Some(database), "% of a core", percent, Goal::most(10.0));
    #[expect(clippy::cast_precision_loss, reason = "sizes of memory")]
    let each = proc::resident(bed.world.server.pid()).saturating_sub(empty) as f64 / 1024.0 / daemons as f64;
    figures.add("fleet: server's memory for each daemon", Some(database), "KiB", each, Goal::most(50.0));
    bed.world.kill_server();
    let begun = Instant::now();
    bed.world.start_server().await;
    all_attached(&mut fleet, daemons, 2).await;
    figures.add(
        "fleet: all back after a kill of the server",
        Some(database),
        "s",
        begun.elapsed().as_secs_f64(),
        Goal::most(20.0),
    );
    let lost = bed.metric("makima_daemons{status=\"lost\"}").await;
    assert!(lost == 0.0, "{lost} daemons were declared lost");
}

fn start(bed: &Bed, daemons: usize) -> Program {
    let program = std::env::current_exe().expect("the way to this program");
    let mut command = process::command(program.to_str().expect("a plain path"), &bed.world.dir.join("home"));
    command.arg("fleet").arg(&bed.world.url).arg(bed.world.key_file("daemon")).arg(daemons.to_string());
    let mut fleet = Program::new("fleet", &bed.world.dir.join("logs"));
    fleet.start(command);
    fleet
}

/// Waits until each has attached so many times.
async fn all_attached(fleet: &mut Program, daemons: usize, times: usize) {
    let wanted = format!("attached {}", daemons * times);
    let begun = Instant::now();
    while !fleet.output().lines().any(|line| line == wanted) {
        assert!(fleet.is_running(), "the fleet has ended: {}", fleet.tail());
        assert!(begun.elapsed() < PATIENCE, "not all daemons attach: {}", fleet.tail());
        tokio::time::sleep(LOOK).await;
    }
}

// === the fleet's process ===

/// `fleet SERVER KEY_FILE COUNT`, until it is killed. Says `attached N` for the sum of all sessions so far.
pub fn main(arguments: &[String]) -> ExitCode {
    let [server, key_file, count] = arguments else { panic!("arguments of a fleet: {arguments:?}") };
    let key = std::fs::read_to_string(key_file).expect("read the key").trim().to_owned();
    let count: usize = count.parse().expect("a number of daemons");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let all = Arc::new(Fleet {
            server: server.clone(),
            key,
            attached: AtomicUsize::new(0),
            count,
            door: tokio::sync::Semaphore::new(ARRIVING),
        });
        let mut members = JoinSet::new();
        for n in 0..count {
            members.spawn(Arc::clone(&all).member(n));
        }
        while members.join_next().await.is_some() {}
    });
    ExitCode::SUCCESS
}

struct Fleet {
    server: String,
    key: String,
    attached: AtomicUsize,
    count: usize,
    door: tokio::sync::Semaphore,
}

/// Who a member is, over all its sessions.
struct Ids {
    daemon: DaemonId,
    boot: BootId,
    journal: JournalId,
}

impl Fleet {
    async fn member(self: Arc<Self>, n: usize) {
        let ids =
            Ids { daemon: DaemonId(Uuid::new_v4()), boot: BootId(Uuid::new_v4()), journal: JournalId(Uuid::new_v4()) };
        for attach in 1.. {
            let error = self.session(n, &ids, attach).await;
            if self.attached.load(Ordering::Relaxed) < self.count {
                // Only before all are there is it strange.
                eprintln!("member {n}: {error}");
            }
            let wait = rand::rng().random_range(0..SPREAD);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    /// One session, to its end; `attach` counts them.
    async fn session(&self, n: usize, ids: &Ids, attach: i64) -> String {
        let arriving = self.door.acquire().await;
        let endpoint = Endpoint::from_shared(self.server.clone()).expect("an address").tcp_nodelay(true);
        let channel = match endpoint.connect().await {
            Ok(channel) => channel,
            Err(error) => return error.to_string(),
        };
        let (requests, queued) = mpsc::channel(4);
        let hello = Hello {
            protocol: PROTOCOL,
            daemon: ids.daemon,
            boot: ids.boot,
            journal: ids.journal,
            attach,
            card: Card {
                name: format!("fleet-{n}"),
                slots: SLOTS,
                profiles: vec![Profile { name: PROFILE.to_owned(), version: String::new() }],
                ..Card::default()
            },
            last_command: 0,
            unanswered: (0, 0),
            inventory: Vec::new(),
            clock: clock::now(),
        };
        let say = |kind| AttachRequest { kind: Some(kind) };
        let _ = requests.try_send(say(attach_request::Kind::Hello(Box::new((&hello).into()))));
        let mut request = tonic::Request::new(ReceiverStream::new(queued));
        let key = format!("Bearer {}", self.key).parse().expect("a key is ASCII");
        request.metadata_mut().insert("authorization", key);
        let mut responses = match DaemonServiceClient::new(channel).attach(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status.to_string(),
        };
        let heartbeat = match responses.message().await {
            Ok(Some(first)) => match first.kind {
                Some(attach_response::Kind::Welcome(welcome)) => welcome.heartbeat_interval.unwrap_or_default().seconds,
                other => return format!("{other:?}"),
            },
            other => return format!("{other:?}"),
        };
        drop(arriving);
        println!("attached {}", self.attached.fetch_add(1, Ordering::Relaxed) + 1);
        let period = Duration::from_secs(u64::try_from(heartbeat).unwrap_or_default().max(1));
        // Not all in the same instant.
        let part = rand::rng().random_range(0.0..1.0);
        let mut next = tokio::time::Instant::now() + period.mul_f64(part);
        let _ = requests.send(say(attach_request::Kind::Heartbeat(alive()))).await;
        loop {
            tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(_)) => {}
                    other => return format!("{other:?}"),
                },
                () = tokio::time::sleep_until(next) => {
                    next += period;
                    if requests.send(say(attach_request::Kind::Heartbeat(alive()))).await.is_err() {
                        return "the stream has ended".to_owned();
                    }
                }
            }
        }
    }
}

fn alive() -> Heartbeat {
    Heartbeat { free_slots: SLOTS, disk_free_bytes: 1 << 40, ..Heartbeat::default() }
}
