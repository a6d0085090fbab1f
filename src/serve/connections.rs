//! Connections: where they come from, how many there may be, and how long one may be idle.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, extract::Request};
use hyper::{
    body::{Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tower::ServiceExt;

use super::tls::Tls;

/// The longest time until the head of a connection's first request, TLS included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest time without a request on a connection that had some.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// The most headers, and the longest head.
const MAX_HEADERS: usize = 100;
const MAX_HEAD: usize = 64 << 10;

/// The most requests at the same time on one connection of HTTP/2.
const MAX_STREAMS: u32 = 200;

/// Where a server listens.
pub enum Listener {
    Tcp(TcpListener, Option<Arc<Tls>>),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Binds a TCP address.
    ///
    /// # Errors
    /// The system's.
    pub async fn tcp(address: SocketAddr, tls: Option<Tls>) -> io::Result<Self> {
        Ok(Self::Tcp(TcpListener::bind(address).await?, tls.map(Arc::new)))
    }

    /// Binds a Unix socket. One that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// The system's, or there is another file.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::FileTypeExt;
        if std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
            && tokio::net::UnixStream::connect(path).await.is_err()
        {
            std::fs::remove_file(path)?;
        }
        Ok(Self::Unix(UnixListener::bind(path)?, path.to_owned()))
    }

    /// Returns the address as clients write it.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener, tls) => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                listener.local_addr().map_or_else(|e| e.to_string(), |address| format!("{scheme}://{address}"))
            }
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    /// Serves connections until `ends` says so, then waits until those that have requests are
    /// finished. At most `limit` are open at the same time; more wait in the system's queue.
    pub async fn serve(self, router: Router, limit: usize, mut ends: watch::Receiver<bool>) {
        let permits = Arc::new(Semaphore::new(limit));
        let graceful = GracefulShutdown::new();
        loop {
            let permit = tokio::select! {
                permit = permits.clone().acquire_owned() => permit,
                _ = ends.wait_for(|&ends| ends) => break,
            };
            let Ok(permit) = permit else { break };
            let stream = tokio::select! {
                stream = self.accept() => stream,
                _ = ends.wait_for(|&ends| ends) => break,
            };
            match stream {
                Ok(stream) => serve_connection(stream, self.tls(), router.clone(), permit, &graceful),
                // Of one connection, or no file descriptors are left: others may end meanwhile.
                Err(error) => {
                    tracing::debug!("a connection was not accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        if let Self::Unix(_, path) = &self {
            let _ = std::fs::remove_file(path);
        }
        drop(self); // new connections are refused from here on
        graceful.shutdown().await;
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(listener, _) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }

    fn tls(&self) -> Option<Arc<Tls>> {
        match self {
            Self::Tcp(_, tls) => tls.clone(),
            Self::Unix(..) => None,
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Starts a task that serves one connection.
fn serve_connection(
    stream: Box<dyn Stream>,
    tls: Option<Arc<Tls>>,
    router: Router,
    permit: OwnedSemaphorePermit,
    graceful: &GracefulShutdown,
) {
    let watcher = graceful.watcher();
    tokio::spawn(async move {
        let _permit = permit;
        let stream: Box<dyn Stream> = match tls {
            None => stream,
            Some(tls) => match tokio::time::timeout(HEAD_TIMEOUT, tls.acceptor().accept(stream)).await {
                Ok(Ok(stream)) => Box::new(stream),
                Ok(Err(_)) | Err(_) => return,
            },
        };
        let activity = Arc::new(Activity::new());
        let of_requests = activity.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (router, busy) = (router.clone(), Busy::new(&of_requests));
            async move {
                let response = router.oneshot(request.map(Body::new) as Request).await;
                Ok::<_, Infallible>(response.unwrap_or_else(|e| match e {}).map(|body| BusyBody { body, _busy: busy }))
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT).max_headers(MAX_HEADERS);
        builder.http1().max_buf_size(MAX_HEAD);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD as u32);
        builder.http2().keep_alive_interval(Some(Duration::from_secs(20)));
        let connection = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        tokio::select! {
            _ = connection => {}
            () = activity.is_over() => {}
        }
    });
}

/// How busy a connection is.
struct Activity {
    requests: AtomicUsize,
    /// When the last request began or ended; `None` before the first.
    last: Mutex<Option<Instant>>,
    opened: Instant,
}

impl Activity {
    fn new() -> Self {
        Self { requests: AtomicUsize::new(0), last: Mutex::new(None), opened: Instant::now() }
    }

    fn note(&self) {
        *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Instant::now());
    }

    /// Waits until the connection has been without a request for too long.
    async fn is_over(&self) {
        loop {
            let last = *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let end = last.map_or(self.opened + HEAD_TIMEOUT, |last| last + IDLE_TIMEOUT);
            if self.requests.load(Ordering::SeqCst) == 0 && end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end.max(Instant::now() + Duration::from_secs(1)).into()).await;
        }
    }
}

/// A request under way.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.requests.fetch_add(1, Ordering::SeqCst);
        activity.note();
        Self(activity.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.note();
        self.0.requests.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A response's body: the request is under way until its end.
struct BusyBody {
    body: Body,
    _busy: Busy,
}

impl hyper::body::Body for BusyBody {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
