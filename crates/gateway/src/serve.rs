//! Connections, and draining at the end.
//!
//! Each processor has a thread with a runtime of its own: what a connection needs is not shared, and not locked.
//! Connections are handed out to the threads in turn.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use crate::handle::handle;
use crate::keys::Keys;
use crate::routing::health;
use crate::routing::routes::Routes;
use crate::routing::table::Table;
use crate::settings::Settings;
use crate::shared::{Phase, Shared};
use crate::upstream::gather::Gather;
use crate::upstream::pool::Pool;

/// A client that doesn't finish its headers in this time is let go.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// What is kept of a request that is read, for each connection. Heads are no longer.
const MOST_BUFFERED: usize = 64 * 1024;
/// A client that takes nothing for this long has gone.
const STALLED_MS: u32 = 120_000;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Answers that are complete have so long to leave.
const LAST_BYTES: Duration = Duration::from_secs(1);
/// Connections that engines closed are let go of this often.
const SWEEP: Duration = Duration::from_secs(10);
/// Whoever waits for room on an instance that has come up is seen to this often.
const PUMP: Duration = Duration::from_millis(100);

/// The gateway. Cheap to clone: all clones share routes and metrics.
#[derive(Clone)]
pub struct Gateway {
    pub(crate) shared: Arc<Shared>,
}

impl Gateway {
    /// A gateway without routes.
    pub fn new(settings: Settings) -> Self {
        Self { shared: Arc::new(Shared::new(settings)) }
    }

    /// Replaces the routes, and says whether they are others. Requests in flight go on.
    pub fn set_table(&self, table: Table) -> bool {
        let is_new = self.shared.routes.load().table != table;
        if is_new {
            self.shared.exchange(|_| table);
        }
        is_new
    }

    /// What the routes are made of now.
    pub fn table(&self) -> Table {
        self.shared.routes.load().table.clone()
    }

    /// The routes now.
    pub fn routes(&self) -> Arc<Routes> {
        self.shared.routes.load_full()
    }

    /// Reads the keys of a file; what they have used goes on.
    ///
    /// # Errors
    /// Where the file is none of keys: those that are known stay.
    pub fn read_keys(&self, path: &std::path::Path) -> Result<(), crate::keys::KeysError> {
        let before = self.shared.keys.load();
        let none = Keys::default();
        let keys = Keys::read(path, before.as_ref().as_ref().unwrap_or(&none))?;
        self.shared.keys.store(Arc::new(Some(keys)));
        Ok(())
    }

    /// Ends [`Gateway::serve`] once what runs is answered.
    pub fn drain(&self) {
        self.shared.phase.send_replace(Phase::Draining);
    }

    /// Serves until [`Gateway::drain`], then finishes what runs, for at most `drain_limit`. Meanwhile it is still
    /// there to say that it is going.
    ///
    /// # Errors
    /// Where threads can't be started.
    pub async fn serve(&self, listener: TcpListener, drain_limit: Duration) -> io::Result<()> {
        let processors = || thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = self.shared.settings.workers.unwrap_or_else(processors).max(1);
        let workers: Vec<Worker> = (0..threads)
            .map(|number| Worker::start(number, &self.shared))
            .collect::<io::Result<_>>()?;
        let mut beside = JoinSet::new();
        beside.spawn(pump(Arc::clone(&self.shared)));
        beside.spawn(health::watch(Arc::clone(&self.shared)));
        let mut turn = 0;
        let drained = drained(&self.shared, drain_limit);
        tokio::pin!(drained);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drained.as_mut() => break,
            };
            match accepted.and_then(|(stream, peer)| Ok((stream.into_std()?, peer))) {
                Ok(accepted) => {
                    // A thread that is gone takes its connections with it.
                    drop(workers[turn].connections.send(accepted));
                    turn = (turn + 1) % workers.len();
                }
                // Out of file descriptors, or the client is gone already: go on after a breath.
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        self.shared.phase.send_replace(Phase::Ending);
        let threads: Vec<JoinHandle<()>> =
            workers.into_iter().map(|worker| worker.thread).collect();
        let ended =
            tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(JoinHandle::join));
        let ended = ended.await.is_ok_and(|ended| ended.is_ok());
        if ended { Ok(()) } else { Err(io::Error::other("a thread of the gateway broke")) }
    }
}

/// Waits until the gateway drains and nothing runs any more, or for too long.
async fn drained(shared: &Shared, limit: Duration) {
    let mut phase = shared.phase.subscribe();
    // The sender lives as long as the gateway.
    drop(phase.wait_for(|phase| *phase != Phase::Serving).await);
    let nothing_runs = async {
        while shared.underway.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(PUMP).await;
        }
    };
    if tokio::time::timeout(limit, nothing_runs).await.is_err() {
        tracing::warn!("requests were still running when the time to drain was over");
    }
}

/// Sees to those who wait, whatever happened, and forgets instances that have left and ended.
async fn pump(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(PUMP).await;
        if shared.routes.load().has_leaving() {
            shared.exchange(|before| before.table.clone());
        }
        for model in shared.routes.load().models() {
            model.life.queue.pump(model);
        }
    }
}

/// A thread that serves connections.
struct Worker {
    connections: mpsc::UnboundedSender<(std::net::TcpStream, SocketAddr)>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start(number: usize, shared: &Arc<Shared>) -> io::Result<Self> {
        let (connections, accepted) = mpsc::unbounded_channel();
        let gather = Arc::new(Gather::default());
        let [waiting, waking] = [(); 2].map(|()| Arc::clone(&gather));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .on_thread_park(move || waiting.waits())
            .on_thread_unpark(move || waking.is_woken())
            .build()?;
        let shared = Arc::clone(shared);
        let work = move || LocalSet::new().block_on(&runtime, work(shared, gather, accepted));
        let thread = thread::Builder::new().name(format!("gateway-{number}")).spawn(work)?;
        Ok(Self { connections, thread })
    }
}

/// Serves connections until no more come and those that there are have ended.
async fn work(
    shared: Arc<Shared>,
    gather: Arc<Gather>,
    mut accepted: mpsc::UnboundedReceiver<(std::net::TcpStream, SocketAddr)>,
) {
    let pool = Pool::new(gather);
    let mut connections = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            next = accepted.recv() => match next {
                Some((stream, peer)) => {
                    connections.spawn_local(connection(Arc::clone(&shared), pool.clone(), stream, peer));
                }
                None => break,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            _ = sweep.tick() => pool.sweep(),
        }
    }
    // Nothing runs any more: what is left are last bytes on their way, and clients that don't close.
    let ended = async { while connections.join_next().await.is_some() {} };
    drop(tokio::time::timeout(LAST_BYTES, ended).await);
}

/// Serves one connection, HTTP/1.1 or HTTP/2, plain or over TLS.
async fn connection(
    shared: Arc<Shared>,
    pool: Pool,
    stream: std::net::TcpStream,
    peer: SocketAddr,
) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    // Small chunks of a stream leave at once; and a client that takes nothing any more is gone, though it says nothing.
    drop(stream.set_nodelay(true));
    _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, STALLED_MS);
    match shared.settings.tls.clone() {
        None => serve_connection(shared, pool, stream, peer).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
            Ok(Ok(stream)) => serve_connection(shared, pool, stream, peer).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS came about"),
            Err(_) => tracing::debug!(%peer, "no TLS came about in time"),
        },
    }
}

async fn serve_connection<S>(shared: Arc<Shared>, pool: Pool, stream: S, peer: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut phase = shared.phase.subscribe();
    // Whoever comes while the gateway drains is told so, once, and then closed.
    let until = if *phase.borrow() == Phase::Serving { Phase::Draining } else { Phase::Ending };
    let has_asked = Rc::new(Cell::new(false));
    let asked = Rc::clone(&has_asked);
    let service = service_fn(move |request| {
        asked.set(true);
        let (shared, pool) = (Arc::clone(&shared), pool.clone());
        async move { Ok::<_, Infallible>(handle(shared, pool, request).await) }
    });
    let mut builder = auto::Builder::new(LocalExecutor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MOST_BUFFERED);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(HEADER_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let first_request = tokio::time::sleep(HEADER_TIMEOUT);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // Which version is spoken is only known with the first bytes, and their time is not limited.
        () = async { first_request.await; if has_asked.get() { std::future::pending::<()>().await } } => return,
        _ = phase.wait_for(|phase| *phase >= until) => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// HTTP/2 has a task for each of a connection's streams: on the connection's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
