//! A gate between two processes: a TCP proxy that can hold the bytes of the server, and cut every connection. With it a test
//! can act "while the answer is on its way" without a race. It also counts the bytes of the server.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Bytes from the server wait; requests pass.
    Held,
    /// Connections are cut, and new ones are closed at once.
    Cut,
}

/// A proxy in front of one server.
#[derive(Debug)]
pub struct Gate {
    addr: SocketAddr,
    state: Arc<watch::Sender<State>>,
    target: Arc<watch::Sender<SocketAddr>>,
    answered: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    /// Listens on a free loopback port and connects each client to `target`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn to(target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let state = Arc::new(watch::Sender::new(State::Open));
        let target = Arc::new(watch::Sender::new(target));
        let answered = Arc::<AtomicU64>::default();
        let (states, targets, count) = (state.clone(), target.clone(), answered.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (target, states) = (*targets.borrow(), states.subscribe());
                connections.spawn(pass(client, target, states, count.clone()));
            }
        });
        Ok(Self { addr, state, target, answered, task })
    }

    /// The address for clients.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes that the server has sent to clients. A client may not have received all of them yet.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Connects new clients to `target`.
    pub fn retarget(&self, target: SocketAddr) {
        self.target.send_replace(target);
    }

    /// Holds the bytes of the server until [`Self::open`].
    pub fn hold(&self) {
        self.state.send_replace(State::Held);
    }

    /// Cuts every connection and refuses new ones until [`Self::open`].
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Lets everything pass.
    pub fn open(&self) {
        self.state.send_replace(State::Open);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    client: TcpStream,
    target: SocketAddr,
    mut states: watch::Receiver<State>,
    answered: Arc<AtomicU64>,
) {
    if *states.borrow_and_update() == State::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    // If this fails, the test is only slower.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut cut = states.clone();
    let up = tokio::io::copy(&mut from_client, &mut to_server);
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = from_server.read(&mut buffer).await?;
            if n == 0 || states.wait_for(|state| *state != State::Held).await.is_err() {
                return std::io::Result::Ok(());
            }
            answered.fetch_add(n as u64, Relaxed);
            to_client.write_all(&buffer[..n]).await?;
        }
    };
    tokio::select! {
        _ = up => {}
        _ = down => {}
        _ = cut.wait_for(|state| *state == State::Cut) => {}
    }
}
