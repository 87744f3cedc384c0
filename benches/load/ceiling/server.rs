//! The bare model's server: calls and streams on one side, the store's thread on the other.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use tokio::sync::{mpsc as streams, oneshot};
use tonic::{Status, Streaming, transport::Server};

use super::{
    store::{Batch, Store},
    wire::{ACCEPTED, COMPLETE, HELLO, Job, Orders, Plane, Said, Told},
};

/// Operations of one commit.
const MOST: usize = 1_000;

type Stream = streams::UnboundedSender<Result<Told, Status>>;

enum Op {
    Create(Job, oneshot::Sender<u64>),
    Attach(usize, Stream),
    Said(usize, Said),
}

/// Where calls and streams come in.
pub struct Hub {
    ops: Mutex<mpsc::Sender<Op>>,
    done: Arc<AtomicU64>,
    agents: AtomicU64,
}

/// Serves until it is killed.
pub async fn run(port: &str, database: &str) {
    let (ops, inbox) = mpsc::channel();
    let done = Arc::new(AtomicU64::new(0));
    let (counted, database) = (Arc::clone(&done), database.to_owned());
    std::thread::spawn(move || Desk::new(Store::open(&database), counted).run(&inbox));
    let hub = Arc::new(Hub { ops: Mutex::new(ops), done, agents: AtomicU64::new(0) });
    let address = format!("127.0.0.1:{port}").parse().expect("an address");
    Server::builder().tcp_nodelay(true).add_service(Plane(hub)).serve(address).await.expect("serve");
}

impl Hub {
    pub(super) async fn create(&self, job: Job) -> Result<Job, Status> {
        let (answer, answered) = oneshot::channel();
        self.send(Op::Create(job, answer));
        let id = answered.await.map_err(|_| Status::internal("the store has ended"))?;
        Ok(Job { id, text: String::new() })
    }

    pub(super) fn attach(self: Arc<Self>, mut said: Streaming<Said>) -> Orders {
        let (stream, orders) = streams::unbounded_channel();
        let agent = usize::try_from(self.agents.fetch_add(1, Ordering::Relaxed)).expect("few agents");
        self.send(Op::Attach(agent, stream));
        let hub = self;
        let listening = async move {
            while let Ok(Some(message)) = said.message().await {
                hub.send(Op::Said(agent, message));
            }
        };
        drop(tokio::runtime::Handle::current().spawn(listening));
        Orders::new(orders)
    }

    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn send(&self, op: Op) {
        self.ops.lock().expect("nobody panics").send(op).expect("the store lives");
    }
}

/// What the store's thread knows.
struct Desk {
    store: Store,
    done: Arc<AtomicU64>,
    agents: Vec<Option<(Stream, u64)>>,
    /// Created, and with no agent yet.
    ready: VecDeque<Job>,
    running: HashMap<u64, usize>,
    last: u64,
}

impl Desk {
    fn new(store: Store, done: Arc<AtomicU64>) -> Self {
        Self { store, done, agents: Vec::new(), ready: VecDeque::new(), running: HashMap::new(), last: 0 }
    }

    fn run(mut self, inbox: &mpsc::Receiver<Op>) {
        while let Ok(first) = inbox.recv() {
            let mut batch = Batch::default();
            let mut answers = Vec::new();
            for op in std::iter::once(first).chain(inbox.try_iter().take(MOST)) {
                self.fold(op, &mut batch, &mut answers);
            }
            let orders = self.assign(&mut batch);
            self.store.commit(&batch);
            for (answer, id) in answers {
                let _ = answer.send(id);
            }
            for (agent, told) in orders {
                self.tell(agent, told);
            }
            for id in &batch.ended {
                if let Some(agent) = u64::try_from(*id).ok().and_then(|id| self.running.remove(&id)) {
                    self.tell(agent, Told { order: None, answered: u64::try_from(*id).unwrap_or_default() });
                }
            }
            self.done.fetch_add(u64::try_from(batch.ended.len()).unwrap_or_default(), Ordering::Relaxed);
        }
    }

    fn fold(&mut self, op: Op, batch: &mut Batch, answers: &mut Vec<(oneshot::Sender<u64>, u64)>) {
        match op {
            Op::Create(job, answer) => {
                self.last += 1;
                batch.created(self.last, job.text.clone());
                self.ready.push_back(Job { id: self.last, ..job });
                answers.push((answer, self.last));
            }
            Op::Attach(agent, stream) => {
                self.agents.resize_with(self.agents.len().max(agent + 1), || None);
                self.agents[agent] = Some((stream, 0));
            }
            Op::Said(agent, said) => match (said.what, &mut self.agents[agent]) {
                (HELLO, Some((_, credit))) => *credit = said.id,
                (ACCEPTED, _) => batch.accepted(said.id),
                (COMPLETE, Some((_, credit))) => {
                    *credit += 1;
                    batch.ended(said.id, said.text);
                }
                (what, _) => panic!("an agent said {what}"),
            },
        }
    }

    /// Gives to each agent in turn what it has room for.
    fn assign(&mut self, batch: &mut Batch) -> Vec<(usize, Told)> {
        let mut orders = Vec::new();
        let mut agent = 0;
        while !self.ready.is_empty() && self.agents.iter().flatten().any(|(_, credit)| *credit > 0) {
            agent = (agent + 1) % self.agents.len();
            let Some((_, credit)) = self.agents[agent].as_mut().filter(|(_, credit)| *credit > 0) else { continue };
            *credit -= 1;
            let Some(job) = self.ready.pop_front() else { break };
            batch.assigned(job.id);
            self.running.insert(job.id, agent);
            orders.push((agent, Told { order: Some(job), answered: 0 }));
        }
        orders
    }

    fn tell(&self, agent: usize, told: Told) {
        if let Some(Some((stream, _))) = self.agents.get(agent) {
            let _ = stream.send(Ok(told));
        }
    }
}
