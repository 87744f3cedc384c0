//! A wire that can be cut: forwards bytes between a client and a server on loopback, until told to drop every connection
//! (as a reset does), to let bytes through no more (as a dead network does), or to refuse new ones.
//!
//! ```text
//!   daemon ──> proxy (open | stalled | refusing) ──> server
//! ```

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
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
}

/// The proxy; it ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Connect here: `http://127.0.0.1:PORT`.
    pub url: String,
    line: watch::Sender<Line>,
    cut: Arc<Notify>,
    connections: Arc<AtomicUsize>,
    tasks: tokio::task::JoinSet<()>,
}

impl Proxy {
    /// Forwards to `target`, such as `127.0.0.1:7420`.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
        let url = format!("http://{}", listener.local_addr().expect("the port bound"));
        let (line, state) = watch::channel(Line::Open);
        let cut = Arc::new(Notify::new());
        let connections = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        let (target, cut_seen, counter) = (target.to_owned(), Arc::clone(&cut), Arc::clone(&connections));
        tasks.spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                if *state.borrow() == Line::Refusing {
                    continue;
                }
                counter.fetch_add(1, Ordering::Relaxed);
                let (state, cut, target) = (state.clone(), Arc::clone(&cut_seen), target.clone());
                open.spawn(async move {
                    tokio::select! {
                        () = cut.notified() => {}
                        () = forward(client, target, state) => {}
                    }
                });
            }
        });
        Self { url, line, cut, connections, tasks }
    }

    /// Changes what happens to bytes from now on.
    pub fn set(&self, line: Line) {
        let _ = self.line.send(line);
    }

    /// Closes every connection there is.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Connections taken so far: that a fault has fired shows here.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn forward(client: TcpStream, target: String, line: watch::Receiver<Line>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::select! {
        () = pump(client_read, server_write, line.clone()) => {}
        () = pump(server_read, client_write, line) => {}
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut line: watch::Receiver<Line>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(length @ 1..) = from.read(&mut buffer).await else { return };
        if line.wait_for(|&line| line != Line::Stalled).await.is_err() || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}
