//! A client of the hub: lists a model's files, and locates each of them.

use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::{Body, http::Response};

use super::{
    environment::Environment,
    error::{HubError, Result},
    repo::Repo,
};
use crate::download::{hex, patiently, proxy_for};

/// A client of the hub.
pub struct Hub {
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    /// Follows no redirects: the hub's answer has a file's size and hash, that of the server it
    /// redirects to has not.
    api_agent: ureq::Agent,
    pub(super) download_agent: ureq::Agent,
    pub(super) offline: bool,
}

/// A file on the hub.
pub(super) struct RemoteFile {
    pub name: String,
    /// The name of the contents in the cache: the hash, or another name where there is none.
    pub etag: String,
    /// True if `etag` is the sha256 of a file in large-file storage, or git's sha1 of another one.
    pub is_hashed: bool,
    pub size: u64,
    /// Address of the contents.
    pub url: String,
    /// True if the address is the hub's own. Only the hub may see the token.
    pub on_hub: bool,
}

/// Returns whether there is a token for the hub.
pub fn has_token() -> bool {
    Environment::of_process().token().is_some()
}

impl Hub {
    /// Returns a client of the hub at `HF_ENDPOINT`, with the token of `HF_TOKEN` or of
    /// `hf auth login`.
    pub fn from_env(offline: bool) -> Self {
        let environment = Environment::of_process();
        let endpoint = environment.endpoint();
        let proxy = proxy_for(&endpoint);
        let agent = |redirects| -> ureq::Agent {
            ureq::Agent::config_builder()
                .tls_config(ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build())
                .proxy(proxy.clone())
                .http_status_as_error(false)
                .max_redirects(redirects)
                .max_redirects_will_error(false)
                .timeout_connect(Some(Duration::from_secs(20)))
                .timeout_recv_response(Some(Duration::from_secs(60)))
                .user_agent(concat!("gemma-pjrt/", env!("CARGO_PKG_VERSION")))
                .build()
                .into()
        };
        Self {
            endpoint,
            token: environment.token(),
            api_agent: agent(0),
            download_agent: agent(5),
            offline: offline || environment.is_offline(),
        }
    }

    /// Returns the commit of the model's revision, and the names of its files.
    pub(super) fn list(&self, repo: &Repo) -> Result<(String, Vec<String>)> {
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, repo.name, repo.revision.replace('/', "%2F"));
        let mut response = self.request(repo, &url, false)?;
        let answer = |problem: &str| HubError::Answer { url: url.clone(), problem: problem.to_owned() };
        let body = response.body_mut().read_to_string().map_err(|e| answer(&e.to_string()))?;
        commit_and_files(&body).map_err(answer)
    }

    /// Asks the hub for a file's hash, size and address. A mirror may know no hash: then the
    /// contents are not checked, and a warning says so.
    pub(super) fn locate(&self, repo: &Repo, commit: &str, name: &str) -> Result<RemoteFile> {
        let url = format!("{}/{}/resolve/{commit}/{name}", self.endpoint, repo.name);
        let response = self.request(repo, &url, true)?;
        let elsewhere = location(&response).map(str::to_owned);
        // It becomes a file name, and the contents are checked against it. The etag of another
        // server need not be a hash of the contents.
        let own = if elsewhere.is_none() { header(&response, "etag") } else { None };
        let hash = hash_of_etag(header(&response, "x-linked-etag").or(own).unwrap_or_default());
        let is_hashed = hash.is_some();
        if !is_hashed {
            tracing::warn!("{} tells no hash of {name}: its contents are not checked", self.endpoint);
        }
        let unchecked = || format!("unchecked-{}", hex(&Sha256::digest(format!("{} {commit} {name}", repo.name))));
        let etag = hash.map_or_else(unchecked, str::to_owned);
        let size = match (header(&response, "x-linked-size"), &elsewhere) {
            (Some(size), _) => Some(size.to_owned()),
            (None, None) => header(&response, "content-length").map(str::to_owned),
            (None, Some(address)) => self.size_elsewhere(address),
        };
        let size = size
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| HubError::Answer { url: url.clone(), problem: format!("without a size of {name}") })?;
        let on_hub = elsewhere.is_none();
        Ok(RemoteFile { name: name.to_owned(), etag, is_hashed, size, url: elsewhere.unwrap_or(url), on_hub })
    }

    /// Asks another server for the size of a file.
    fn size_elsewhere(&self, url: &str) -> Option<String> {
        let send = || self.download_agent.head(url).header("Accept-Encoding", "identity").call();
        let response = patiently(host(url), send).ok().filter(|response| response.status().is_success())?;
        header(&response, "content-length").map(str::to_owned)
    }

    /// Sends a request to the hub, with the token. Follows redirects that stay on the hub (a
    /// renamed model).
    fn request(&self, repo: &Repo, url: &str, head: bool) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..5 {
            let send = || {
                let request = if head { self.api_agent.head(&url) } else { self.api_agent.get(&url) };
                // A compressed response would have another length and hash.
                let request = if head { request.header("Accept-Encoding", "identity") } else { request };
                match &self.token {
                    Some(token) => request.header("Authorization", format!("Bearer {token}")),
                    None => request,
                }
                .call()
            };
            let response = patiently(&self.endpoint, send).map_err(|e| HubError::Unreachable {
                repo: repo.clone(),
                endpoint: self.endpoint.clone(),
                problem: e.to_string(),
            })?;
            // The hub may lie below a path of its host.
            let origin = host(&self.endpoint);
            match location(&response) {
                Some(path) if path.starts_with('/') && !path.starts_with("//") => url = format!("{origin}{path}"),
                Some(other) if other.starts_with(&format!("{origin}/")) => url = other.to_owned(),
                _ => return self.check(repo, &url, response),
            }
        }
        Err(HubError::Answer { url, problem: "too many redirects".into() })
    }

    /// Turns an error status into an error.
    fn check(&self, repo: &Repo, url: &str, response: Response<Body>) -> Result<Response<Body>> {
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        let (repo, endpoint, token) = (repo.clone(), self.endpoint.clone(), self.token.is_some());
        let code = response.headers().get("x-error-code").and_then(|v| v.to_str().ok()).unwrap_or_default();
        Err(match (status.as_u16(), code) {
            (_, "GatedRepo") => HubError::Gated { repo, endpoint, token },
            (_, "RepoNotFound") => HubError::NotFound { repo, endpoint, token },
            (_, "RevisionNotFound") => HubError::NoRevision { repo },
            (401, _) if token => HubError::BadToken { endpoint },
            (401 | 403, _) => HubError::Gated { repo, endpoint, token },
            (404, _) => HubError::NotFound { repo, endpoint, token },
            (_, _) => HubError::Answer { url: url.to_owned(), problem: status.to_string() },
        })
    }
}

/// Reads the hub's answer about a model: the commit of its revision, and the names of its files.
///
/// # Errors
/// What the answer is instead, or lacks.
pub fn commit_and_files(body: &str) -> std::result::Result<(String, Vec<String>), &'static str> {
    let json: serde_json::Value = serde_json::from_str(body).map_err(|_| "something else than JSON")?;
    let commit = json["sha"].as_str().filter(|sha| is_hex(sha, 40)).ok_or("no commit")?;
    let files = json["siblings"].as_array().ok_or("no list of files")?;
    let names = files.iter().filter_map(|file| file["rfilename"].as_str()).map(str::to_owned).collect();
    Ok((commit.to_owned(), names))
}

/// Returns the hash that a file's etag is: sha256, or git's sha1. `None` if it is something else.
pub fn hash_of_etag(etag: &str) -> Option<&str> {
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    (is_hex(etag, 40) || is_hex(etag, 64)).then_some(etag)
}

fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// Returns where a response redirects to.
fn location(response: &Response<Body>) -> Option<&str> {
    header(response, "location").filter(|_| response.status().is_redirection())
}

/// Returns scheme and host of an address, without the path, which may be signed.
pub(super) fn host(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    url[start..].find('/').map_or(url, |at| &url[..start + at])
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit())
}
