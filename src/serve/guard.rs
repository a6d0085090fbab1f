//! Who may ask: API keys, the names of this server, and pages of other sites.
//!
//! A server on a loopback address is within reach of every web page that its user opens: by names
//! that lead to 127.0.0.1 (DNS rebinding), and by requests that browsers send without asking. So
//! `Host` must be a name of this server, `Origin` this server or a listed one, and every path needs
//! the key, where there is one, but for probes and the files of the page.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, uri::Authority},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    error::{ApiError, ApiResult},
    page,
};

/// The name of a request, of the client's or our choice.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that a client may choose.
const MAX_REQUEST_ID: usize = 128;

/// A key, by its digest, and what it is called in logs.
#[derive(Clone, Debug)]
pub struct ApiKey {
    name: Arc<str>,
    digest: [u8; 32],
}

impl ApiKey {
    pub fn new(name: &str, key: &str) -> Self {
        Self { name: name.into(), digest: Sha256::digest(key).into() }
    }

    /// Reads a file of keys: `KEY` or `NAME KEY` on each line; `#` begins a comment.
    ///
    /// # Errors
    /// A line has more than a name and a key, or there is no key.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, String> {
        let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.split('#').next().unwrap_or_default()));
        let mut keys = Vec::new();
        for (number, line) in lines {
            match *line.split_whitespace().collect::<Vec<_>>() {
                [] => {}
                [key] => keys.push(Self::new(&format!("key-{}", keys.len() + 1), key)),
                [name, key] => keys.push(Self::new(name, key)),
                _ => return Err(format!("line {number} is neither a key nor a name and a key")),
            }
        }
        if keys.is_empty() { Err("it has no key".into()) } else { Ok(keys) }
    }
}

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// Empty: everybody.
    pub keys: Vec<ApiKey>,
    /// Names by which the server is called, in small letters; `None` if any will do.
    pub hosts: Option<Vec<String>>,
    /// Origins whose pages may ask; `*` is all.
    pub origins: Vec<String>,
    /// Whether `/metrics` needs no key.
    pub open_metrics: bool,
}

/// Who asks, and the name of the request.
#[derive(Clone, Debug)]
pub struct Caller {
    pub request_id: Arc<str>,
    /// The key's name.
    pub key: Arc<str>,
}

/// A request that may go on.
pub enum Admitted {
    /// A browser asks whether its page may.
    Preflight,
    Caller(Caller),
}

impl Guard {
    /// Checks a request.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn admit(&self, request: &Request, request_id: &Arc<str>) -> ApiResult<Admitted> {
        let (headers, path) = (request.headers(), request.uri().path());
        let host = host(request.uri(), headers);
        self.check_host(host.as_ref())?;
        self.check_origin(headers, host.as_ref())?;
        let is_preflight = headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if request.method() == Method::OPTIONS && is_preflight && headers.contains_key(header::ORIGIN) {
            return Ok(Admitted::Preflight);
        }
        let is_open = is_probe(path) || page::is_file(path) || self.open_metrics && path == "/metrics";
        let key = if is_open { "probe".into() } else { self.key(headers)? };
        Ok(Admitted::Caller(Caller { request_id: request_id.clone(), key }))
    }

    fn check_host(&self, host: Option<&Authority>) -> ApiResult<()> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        match host {
            Some(host) if hosts.iter().any(|name| host.host().eq_ignore_ascii_case(name)) => Ok(()),
            Some(host) => {
                let message = format!("{:?} is no name of this server; add it with --allowed-host", host.host());
                Err(ApiError::forbidden(message))
            }
            None => Err(ApiError::forbidden("the request names no host")),
        }
    }

    /// Refuses requests of pages of other sites.
    fn check_origin(&self, headers: &HeaderMap, host: Option<&Authority>) -> ApiResult<()> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let text = origin.to_str().unwrap_or_default();
        let is_own = text.split_once("://").is_some_and(|(_, origin)| host.is_some_and(|host| origin == host.as_str()));
        if is_own || self.lists(origin) {
            return Ok(());
        }
        Err(ApiError::forbidden(format!("pages of {text:?} may not ask here; allow them with --cors-origin")))
    }

    /// Returns whether pages of this origin may ask.
    pub fn lists(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|listed| listed == "*" || listed.as_bytes() == origin.as_bytes())
    }

    /// Returns the name of the key that a request has. All keys are compared, in constant time.
    fn key(&self, headers: &HeaderMap) -> ApiResult<Arc<str>> {
        if self.keys.is_empty() {
            return Ok("none".into());
        }
        let Some(given) = bearer(headers) else {
            let message = "this server needs an API key; send it as \"Authorization: Bearer KEY\"";
            return Err(ApiError::unauthorized(message));
        };
        let digest: [u8; 32] = Sha256::digest(given).into();
        let mut found = None;
        for key in &self.keys {
            if bool::from(key.digest.ct_eq(&digest)) {
                found = Some(key.name.clone());
            }
        }
        found.ok_or_else(|| ApiError::unauthorized("the API key is not one of this server's"))
    }
}

/// Returns whether a path is a probe's. Probes need no key.
fn is_probe(path: &str) -> bool {
    ["/healthz", "/readyz", "/health", "/ping"].contains(&path)
}

/// Returns the key of `Authorization: Bearer KEY` or `x-api-key: KEY`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = authorization
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    bearer.map(|(_, key)| key.trim()).or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()))
}

/// Returns the name that the client calls the server by.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let named = || headers.get(header::HOST)?.to_str().ok()?.parse().ok();
    uri.authority().cloned().or_else(named)
}

/// Returns the client's id of a request, if it can stand in a log, or a new one.
pub fn request_id(headers: &HeaderMap) -> Arc<str> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let is_plain =
        |id: &&str| !id.is_empty() && id.len() <= MAX_REQUEST_ID && id.bytes().all(|byte| byte.is_ascii_graphic());
    if let Some(id) = given.filter(is_plain) {
        return id.into();
    }
    // Each hasher of the standard library has random keys.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(COUNT.fetch_add(1, Ordering::Relaxed));
    format!("{:016x}", hasher.finish()).into()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn guard() -> Guard {
        Guard {
            keys: vec![ApiKey::new("alice", "a-key"), ApiKey::new("bob", "b-key")],
            hosts: Some(vec!["localhost".into(), "127.0.0.1".into(), "[::1]".into()]),
            origins: vec!["https://app.example".into()],
            open_metrics: false,
        }
    }

    fn admit(guard: &Guard, path: &str, headers: &[(&str, &str)]) -> Result<String, u16> {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match guard.admit(&request.body(Body::empty()).unwrap(), &"id".into()) {
            Ok(Admitted::Caller(caller)) => Ok(caller.key.to_string()),
            Ok(Admitted::Preflight) => Ok("preflight".into()),
            Err(error) => Err(error.status.as_u16()),
        }
    }

    #[test]
    fn every_path_but_probes_and_the_page_needs_a_key() {
        let host = ("host", "localhost:8080");
        for path in [
            "/v1/models",
            "/metrics",
            "/page/",
            "/page/app.js/x",
            "//v1/models",
            "/v1/../healthz",
            "/healthz/x",
            "/unknown",
        ] {
            assert_eq!(admit(&guard(), path, &[host]), Err(401), "{path}");
        }
        for path in ["/healthz", "/readyz", "/health", "/", "/compare", "/page/app.js"] {
            assert_eq!(admit(&guard(), path, &[host]), Ok("probe".into()), "{path}");
        }
        for (header, value, wanted) in [
            ("authorization", "Bearer a-key", Ok("alice")),
            ("authorization", "bearer  b-key ", Ok("bob")),
            ("x-api-key", "b-key", Ok("bob")),
            ("authorization", "Bearer a-ke", Err(401)),
            ("authorization", "Basic a-key", Err(401)),
            ("authorization", "Bearer", Err(401)),
        ] {
            assert_eq!(admit(&guard(), "/v1/models", &[host, (header, value)]), wanted.map(str::to_owned), "{value}");
        }
        assert_eq!(admit(&Guard { open_metrics: true, ..guard() }, "/metrics", &[host]), Ok("probe".into()));
    }

    #[test]
    fn only_own_names_and_origins_are_let_in() {
        let key = ("x-api-key", "a-key");
        for (host, wanted) in [
            ("localhost", Ok("alice")),
            ("LOCALHOST:8080", Ok("alice")),
            ("[::1]:8080", Ok("alice")),
            ("evil.example", Err(403)),
            ("localhost.evil.example:8080", Err(403)),
            ("", Err(403)),
        ] {
            assert_eq!(admit(&guard(), "/v1/models", &[("host", host), key]), wanted.map(str::to_owned), "{host}");
        }
        assert_eq!(admit(&guard(), "/v1/models", &[key]), Err(403));
        let host = ("host", "localhost:8080");
        for (origin, wanted) in [
            ("http://localhost:8080", Ok("alice")),
            ("https://app.example", Ok("alice")),
            ("http://localhost:8081", Err(403)),
            ("https://app.example.evil", Err(403)),
            ("null", Err(403)),
        ] {
            let admitted = admit(&guard(), "/v1/models", &[host, key, ("origin", origin)]);
            assert_eq!(admitted, wanted.map(str::to_owned), "{origin}");
        }
    }

    #[test]
    fn key_files_have_names_and_comments() {
        let keys = ApiKey::parse_file("# ours\nalice  abc # hers\n\nxyz\n").unwrap();
        assert_eq!(keys.iter().map(|key| &*key.name).collect::<Vec<_>>(), ["alice", "key-2"]);
        assert!(ApiKey::parse_file("# none").unwrap_err().contains("no key"));
        assert!(ApiKey::parse_file("a b c").unwrap_err().contains("line 1"));
    }

    #[test]
    fn ids_that_could_forge_log_lines_are_replaced() {
        let id = |given: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(&REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
            request_id(&headers).to_string()
        };
        assert_eq!(id(b"mine-7"), "mine-7");
        for given in [&b"a b"[..], b"", &[b'x'; 129], "\u{e9}".as_bytes()] {
            assert_eq!(id(given).len(), 16);
        }
        assert_ne!(id(b""), id(b""));
    }
}
