//! A client of the hub: lists a model's files, and locates each of them.

use std::time::Duration;

use ureq::{Body, http::Response};

use super::{
    environment::Environment,
    error::{HubError, Result},
    repo::Repo,
};

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
    /// sha256 of a file in large-file storage, git's sha1 of others.
    pub etag: String,
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
        let agent = |redirects| -> ureq::Agent {
            ureq::Agent::config_builder()
                .tls_config(ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build())
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
            endpoint: environment.endpoint(),
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
        let json: serde_json::Value = serde_json::from_str(&body).map_err(|_| answer("something else than JSON"))?;
        let commit = json["sha"].as_str().filter(|sha| is_hex(sha, 40)).ok_or_else(|| answer("no commit"))?;
        let files = json["siblings"].as_array().ok_or_else(|| answer("no list of files"))?;
        let names = files.iter().filter_map(|file| file["rfilename"].as_str()).map(str::to_owned).collect();
        Ok((commit.to_owned(), names))
    }

    /// Asks the hub for a file's hash, size and address.
    pub(super) fn locate(&self, repo: &Repo, commit: &str, name: &str) -> Result<RemoteFile> {
        let url = format!("{}/{}/resolve/{commit}/{name}", self.endpoint, repo.name);
        let response = self.request(repo, &url, true)?;
        let answer = |problem: String| HubError::Answer { url: url.clone(), problem };
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or(header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        // It becomes a file name, and the contents are checked against it.
        if !is_hex(etag, 40) && !is_hex(etag, 64) {
            return Err(answer(format!("with {etag:?} as the hash of {name}, which is neither sha1 nor sha256")));
        }
        let size = header("x-linked-size").or(header("content-length")).and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| answer(format!("without a size of {name}")))?;
        let elsewhere = response.status().is_redirection().then(|| header("location")).flatten();
        Ok(RemoteFile {
            name: name.to_owned(),
            etag: etag.to_owned(),
            size,
            url: elsewhere.map_or_else(|| url.clone(), str::to_owned),
            on_hub: elsewhere.is_none(),
        })
    }

    /// Sends a request to the hub, with the token. Follows redirects that stay on the hub (a
    /// renamed model).
    fn request(&self, repo: &Repo, url: &str, head: bool) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..5 {
            let request = if head { self.api_agent.head(&url) } else { self.api_agent.get(&url) };
            // A compressed response would have another length and hash.
            let request = if head { request.header("Accept-Encoding", "identity") } else { request };
            let request = match &self.token {
                Some(token) => request.header("Authorization", format!("Bearer {token}")),
                None => request,
            };
            let response = request.call().map_err(|e| HubError::Unreachable {
                repo: repo.clone(),
                endpoint: self.endpoint.clone(),
                problem: e.to_string(),
            })?;
            let location = response.headers().get("location").and_then(|v| v.to_str().ok());
            match location.filter(|_| response.status().is_redirection()) {
                Some(path) if path.starts_with('/') && !path.starts_with("//") => {
                    url = format!("{}{path}", self.endpoint)
                }
                Some(other) if other.starts_with(&format!("{}/", self.endpoint)) => url = other.to_owned(),
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

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit())
}
