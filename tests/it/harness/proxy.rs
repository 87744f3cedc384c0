//! A wire that breaks in every way a wire can: forwards bytes between a client and a server on loopback until told to drop
//! every connection (as a reset does), to let bytes through no more or late (as a bad network does), to swallow one direction
//! for ever (half-open), to deliver half of something, or to lose the answer to what it has delivered.
//!
//! ```text
//!   daemon ──> proxy (open | stalled | refusing | deaf | mute | slow) ──> server
//! ```
//!
//! It counts what it has done to bytes and connections: that a fault has fired shows there.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp},
    sync::{Notify, watch},
};

/// What happens to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// They go through.
    Open,
    /// They wait, and connections stay open: a network that swallows packets.
    Stalled,
    /// New connections are closed at once.
    Refusing,
    /// What the client says is swallowed. A connection that has lost bytes never gets well again.
    Deaf,
    /// What the server says is swallowed. A connection that has lost bytes never gets well again.
    Mute,
    /// Everything takes so much longer.
    Slow(Duration),
}

/// What happens once, to the next bytes of a connection, which then closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Once {
    /// Half of it is delivered.
    Halve,
    /// What the client says is delivered, and the answer is not: whoever sent it must send it again.
    LoseAnswer,
}

/// Bytes of what a client says that is more than a sign of life.
const SAYS_SOMETHING: usize = 100;
/// `/makima.v1.DaemonService/Attach` in HPACK's Huffman code (RFC 7541, appendix B), as a client's first request on a connection
/// says it: that connection carries a session. A daemon's bulk goes over another one.
const ATTACH: [u8; 22] = [
    0x62, 0x91, 0xf5, 0x35, 0x23, 0x5f, 0xb8, 0x57, 0xbe, 0x32, 0xd2, 0x7a, 0xb7, 0x16, 0xce, 0xe6, 0x21, 0x58, 0x85,
    0x29, 0x19, 0x27,
];

/// The proxy; it ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Connect here: `http://127.0.0.1:PORT`.
    pub url: String,
    state: Arc<State>,
    tasks: tokio::task::JoinSet<()>,
}

#[derive(Debug)]
struct State {
    line: watch::Sender<Line>,
    once: Mutex<Option<Once>>,
    cut: Notify,
    connections: AtomicUsize,
    open: AtomicUsize,
    harmed: AtomicUsize,
    sessions_swallowed: AtomicUsize,
}

impl Proxy {
    /// Forwards to `target`, such as `127.0.0.1:7420`.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
        let url = format!("http://{}", listener.local_addr().expect("the port bound"));
        let state = Arc::new(State {
            line: watch::Sender::new(Line::Open),
            once: Mutex::new(None),
            cut: Notify::new(),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            harmed: AtomicUsize::new(0),
            sessions_swallowed: AtomicUsize::new(0),
        });
        let mut tasks = tokio::task::JoinSet::new();
        let (target, shared) = (target.to_owned(), Arc::clone(&state));
        tasks.spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while open.try_join_next().is_some() {}
                if *shared.line.borrow() == Line::Refusing {
                    shared.harm();
                    continue;
                }
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let (state, target) = (Arc::clone(&shared), target.clone());
                open.spawn(async move {
                    let _open = Open::of(&state);
                    tokio::select! {
                        () = state.cut.notified() => {}
                        () = forward(client, target, &state) => {}
                    }
                });
            }
        });
        Self { url, state, tasks }
    }

    /// Changes what happens to bytes from now on.
    pub fn set(&self, line: Line) {
        self.state.line.send_replace(line);
    }

    /// What happens to the next bytes.
    pub fn once(&self, once: Once) {
        *self.state.once.lock().expect("a plain value") = Some(once);
    }

    /// Closes every connection there is. Answers how many there were.
    pub fn cut(&self) -> usize {
        let open = self.open();
        self.state.cut.notify_waiters();
        open
    }

    /// Connections taken so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Connections there are.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::Relaxed)
    }

    /// How often a line that is not open, or a [`Once`], has done something to bytes or connections.
    pub fn harmed(&self) -> usize {
        self.state.harmed.load(Ordering::Relaxed)
    }

    /// How often something was swallowed of a connection that carries a session, which then cannot outlive it.
    pub fn sessions_swallowed(&self) -> usize {
        self.state.sessions_swallowed.load(Ordering::Relaxed)
    }
}

impl State {
    fn harm(&self) {
        self.harmed.fetch_add(1, Ordering::Relaxed);
    }

    /// What happens to these bytes of this direction once, taken if it is for them.
    fn take_once(&self, way: Way, length: usize) -> Option<Once> {
        let mut once = self.once.lock().expect("a plain value");
        let is_for_these = match *once {
            Some(Once::Halve) => length > 1,
            Some(Once::LoseAnswer) => way == Way::Up && length >= SAYS_SOMETHING,
            None => false,
        };
        if !is_for_these {
            return None;
        }
        self.harm();
        once.take()
    }
}

/// Counts a connection while it is there.
struct Open<'a>(&'a State);

impl<'a> Open<'a> {
    fn of(state: &'a State) -> Self {
        state.open.fetch_add(1, Ordering::Relaxed);
        Self(state)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the client.
    Up,
    /// From the server.
    Down,
}

async fn forward(client: TcpStream, target: String, state: &State) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let known = Known::default();
    tokio::select! {
        () = pump(Way::Up, client_read, server_write, state, &known) => {}
        () = pump(Way::Down, server_read, client_write, state, &known) => {}
    }
}

/// What both directions of a connection know of it.
#[derive(Debug, Default)]
struct Known {
    is_session: AtomicBool,
    answer_is_lost: AtomicBool,
}

async fn pump(way: Way, mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, state: &State, known: &Known) {
    let mut line = state.line.subscribe();
    let mut swallows = false;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        if way == Way::Up && buffer[..length].windows(ATTACH.len()).any(|bytes| bytes == ATTACH) {
            known.is_session.store(true, Ordering::Relaxed);
        }
        let now = *line.borrow_and_update();
        swallows |= matches!((now, way), (Line::Deaf, Way::Up) | (Line::Mute, Way::Down));
        if swallows {
            state.harm();
            let session = usize::from(known.is_session.load(Ordering::Relaxed));
            state.sessions_swallowed.fetch_add(session, Ordering::Relaxed);
            continue;
        }
        match now {
            Line::Stalled => {
                state.harm();
                if line.wait_for(|&line| line != Line::Stalled).await.is_err() {
                    return;
                }
            }
            Line::Slow(late) => {
                state.harm();
                tokio::time::sleep(late).await;
            }
            Line::Open | Line::Refusing | Line::Deaf | Line::Mute => {}
        }
        if way == Way::Down && known.answer_is_lost.load(Ordering::Relaxed) {
            return;
        }
        match state.take_once(way, length) {
            None => {
                if to.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
            Some(Once::Halve) => {
                let _ = to.write_all(&buffer[..length / 2]).await;
                return;
            }
            Some(Once::LoseAnswer) => {
                known.answer_is_lost.store(true, Ordering::Relaxed);
                if to.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}
