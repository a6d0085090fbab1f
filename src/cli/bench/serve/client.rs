//! The HTTP client: requests to one server, and the kinds of failures that are told apart.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, Uri,
    body::{Bytes, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

/// How long a server has to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest reply in JSON that is read.
const MAX_REPLY: usize = 16 << 20;

/// The longest part of a server's error message that is shown.
const MAX_MESSAGE: usize = 300;

/// Why a request has no answer.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FailureKind {
    /// No connection: refused, no such host, TLS.
    Connect,
    /// A status other than 2xx.
    Status(u16),
    /// An `error` object within the stream, after status 200.
    InStream,
    /// The connection or the stream ended before the answer did.
    ClosedEarly,
    /// The answer took longer than the limit.
    Timeout,
    /// Not a stream of OpenAI's chunks.
    Malformed,
}

impl FailureKind {
    pub fn name(self) -> String {
        match self {
            Self::Connect => "connect".into(),
            Self::Status(status) => format!("http {status}"),
            Self::InStream => "error in stream".into(),
            Self::ClosedEarly => "closed early".into(),
            Self::Timeout => "timeout".into(),
            Self::Malformed => "malformed".into(),
        }
    }
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let end = message.char_indices().nth(MAX_MESSAGE).map_or(message.len(), |(at, _)| at);
        Self { kind, message: message[..end].to_owned() }
    }
}

/// Returns the words of an error in OpenAI's shape, `{"error": {"message": ...}}`, or in another.
pub(super) fn error_message(reply: &Value) -> String {
    let error = reply.get("error").unwrap_or(reply);
    let message = error.get("message").unwrap_or(error);
    message.as_str().map_or_else(|| message.to_string(), str::to_owned)
}

/// A server. Connections are kept and used again, as OpenAI's clients do.
#[derive(Clone)]
pub(super) struct Server {
    connections: Connections,
    /// The address without `/v1`, without a slash at its end.
    base: String,
    authorization: Option<HeaderValue>,
}

/// A system without certificates can still measure a server without TLS.
#[derive(Clone)]
enum Connections {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Server {
    /// Takes the address with or without `/v1` at its end. Nothing is sent yet.
    pub fn new(url: &str, api_key: Option<&str>) -> Result<Self> {
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).trim_end_matches('/');
        let uri: Uri = base.parse().with_context(|| format!("--url {url:?} is not an address"))?;
        ensure!(
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() && uri.query().is_none(),
            "--url {url:?} is not an address of a server: write it as http://HOST:PORT or https://HOST"
        );
        let authorization = api_key
            .map(|key| {
                let mut value = HeaderValue::from_str(&format!("Bearer {key}"))?;
                value.set_sensitive(true);
                anyhow::Ok(value)
            })
            .transpose()
            .context("--api-key has characters that a header cannot carry")?;
        let mut http = HttpConnector::new();
        // A request must not wait for the acknowledgement of an earlier packet (Nagle).
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let builder = Client::builder(TokioExecutor::new());
        let connections = if uri.scheme_str() == Some("https") {
            http.enforce_http(false);
            let tls = HttpsConnectorBuilder::new().try_with_platform_verifier();
            let tls = tls.context("cannot use this system's certificates (Debian: package ca-certificates)")?;
            Connections::Tls(builder.build(tls.https_only().enable_http1().wrap_connector(http)))
        } else {
            Connections::Plain(builder.build(http))
        };
        Ok(Self { connections, base: base.to_owned(), authorization })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    /// Returns a path's JSON.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        json(self.send(Method::GET, path, Bytes::new()).await?).await
    }

    /// Sends JSON, and returns the reply's JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        json(self.send(Method::POST, path, body.to_string().into()).await?).await
    }

    /// Sends a body of JSON, and returns the reply as soon as its headers are there.
    pub async fn open(&self, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        self.send(Method::POST, path, body).await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request =
            request.body(Full::new(body)).map_err(|e| Failure::new(FailureKind::Malformed, format!("{path}: {e}")))?;
        let reply = match &self.connections {
            Connections::Plain(client) => client.request(request),
            Connections::Tls(client) => client.request(request),
        };
        let reply = reply.await.map_err(|error| {
            let kind = if error.is_connect() { FailureKind::Connect } else { FailureKind::ClosedEarly };
            Failure::new(kind, format!("{:#}", anyhow::Error::new(error)))
        })?;
        if reply.status().is_success() {
            return Ok(reply);
        }
        let status = reply.status();
        let words = match Limited::new(reply.into_body(), MAX_REPLY).collect().await {
            Ok(body) => {
                let body = body.to_bytes();
                serde_json::from_slice(&body)
                    .map_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned(), |reply| error_message(&reply))
            }
            Err(error) => error.to_string(),
        };
        Err(Failure::new(FailureKind::Status(status.as_u16()), format!("{status}: {words}")))
    }
}

async fn json(reply: Response<Incoming>) -> Result<Value, Failure> {
    let body = Limited::new(reply.into_body(), MAX_REPLY).collect().await;
    let body = body.map_err(|error| Failure::new(FailureKind::ClosedEarly, error.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| Failure::new(FailureKind::Malformed, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_their_version() {
        let base = |url| Server::new(url, None).map(|server| server.base().to_owned());
        for url in ["http://127.0.0.1:80", "http://127.0.0.1:80/", "http://127.0.0.1:80/v1", "http://127.0.0.1:80/v1/"]
        {
            assert_eq!(base(url).unwrap(), "http://127.0.0.1:80");
        }
        assert_eq!(base("https://host/api/openai/v1").unwrap(), "https://host/api/openai");
        for url in ["127.0.0.1:80", "host", "ftp://host", "http://", "http://host/v1?x=1"] {
            assert!(base(url).is_err(), "{url}");
        }
    }

    #[test]
    fn long_messages_of_servers_are_cut() {
        assert_eq!(Failure::new(FailureKind::Connect, "ü".repeat(1000)).message, "ü".repeat(MAX_MESSAGE));
        assert_eq!(error_message(&serde_json::json!({"error": {"message": "busy"}})), "busy");
        assert_eq!(error_message(&serde_json::json!({"error": "Unauthorized"})), "Unauthorized");
        assert_eq!(error_message(&serde_json::json!({"detail": 1})), r#"{"detail":1}"#);
    }
}
