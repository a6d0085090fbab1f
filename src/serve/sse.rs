//! Server-sent events: a stream that a task writes, and whose end cancels the task.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use hyper::body::Frame;
use serde_json::Value;
use tokio::{
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval_at},
};

/// Proxies cut connections that are silent for 50 seconds and more.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Events that wait for a client that reads slowly.
const BUFFERED: usize = 256;

/// A client that takes nothing for so long while events wait is gone.
const SLOW_CLIENT: Duration = Duration::from_secs(30);

/// The side of a stream that is written.
pub struct Events {
    sender: mpsc::Sender<Bytes>,
}

/// The client has left.
pub struct Closed;

impl Events {
    /// Sends an event of JSON.
    ///
    /// # Errors
    /// The client has left, or reads nothing.
    pub async fn data(&self, value: &Value) -> Result<(), Closed> {
        self.send(format!("data: {value}\n\n")).await
    }

    /// Sends an event with a name.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn named(&self, name: &str, value: &Value) -> Result<(), Closed> {
        self.send(format!("event: {name}\ndata: {value}\n\n")).await
    }

    /// Sends the event that ends a stream of OpenAI's.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn done(&self) -> Result<(), Closed> {
        self.send("data: [DONE]\n\n".into()).await
    }

    async fn send(&self, text: String) -> Result<(), Closed> {
        self.sender.send_timeout(text.into(), SLOW_CLIENT).await.map_err(|_| Closed)
    }

    /// Waits until the client has left.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

/// Returns the response whose events a task writes, and starts the task. If the client leaves, the
/// task is dropped, wherever it waits.
pub fn respond<F>(write: impl FnOnce(Events) -> F + Send + 'static) -> Response
where
    F: Future<Output = Result<(), Closed>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(BUFFERED);
    let watched = Events { sender: sender.clone() };
    tokio::spawn(async move {
        tokio::select! {
            _ = write(Events { sender }) => {}
            () = watched.closed() => {}
        }
    });
    let mut ticks = interval_at(tokio::time::Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut response = Response::new(Body::new(EventBody { receiver, ticks }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would collect the whole answer.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// The events as a body. Comments keep the connection alive where there are none.
struct EventBody {
    receiver: mpsc::Receiver<Bytes>,
    ticks: Interval,
}

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if let Poll::Ready(event) = this.receiver.poll_recv(context) {
            this.ticks.reset();
            return Poll::Ready(event.map(|bytes| Ok(Frame::data(bytes))));
        }
        this.ticks.poll_tick(context).map(|_| Some(Ok(Frame::data(Bytes::from_static(b": keep-alive\n\n")))))
    }
}
