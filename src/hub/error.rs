//! Errors of finding or downloading a model.

use std::path::PathBuf;

use super::repo::Repo;

/// An error of finding or downloading a model by name. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "{repo} is not in the Hugging Face cache ({missing}), and this run is offline (--offline, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE). Run it once \
         with network, or fetch the model elsewhere and give its directory: --model DIR"
    )]
    Offline { repo: Repo, missing: String },
    #[error(
        "cannot reach {endpoint} for {repo}: {problem}. Check the network (HTTPS_PROXY, ALL_PROXY, HF_ENDPOINT), or fetch the model elsewhere \
         and give its directory: --model DIR"
    )]
    Unreachable { repo: Repo, endpoint: String, problem: String },
    #[error("{endpoint} has no model {repo}, or it is private. Check its name{}", token_hint(*.token))]
    NotFound { repo: Repo, endpoint: String, token: bool },
    #[error("{repo} has no revision {}; give another as NAME@REVISION", repo.revision)]
    NoRevision { repo: Repo },
    #[error("{repo} is gated: {}", gate_hint(repo, endpoint, *.token))]
    Gated { repo: Repo, endpoint: String, token: bool },
    #[error(
        "{endpoint} does not accept the token (HF_TOKEN, or the one that `hf auth login` wrote): make a new one with read access"
    )]
    BadToken { endpoint: String },
    #[error("{repo} cannot be used: {problem}")]
    NotAModel { repo: Repo, problem: String },
    #[error("{url} answered {problem}. Try again later; the part that has arrived is kept")]
    Answer { url: String, problem: String },
    #[error(
        "the download of {file} broke off after {received} of {size} bytes ({problem}). Run the same command again: it \
         resumes there"
    )]
    BrokeOff { file: String, received: u64, size: u64, problem: String },
    #[error(
        "{file} arrived damaged: its {what} is {found}, expected {expected}. It was deleted; run the same command again"
    )]
    Damaged { file: String, what: &'static str, found: String, expected: String },
    #[error("cannot write {path}: {cause}. Free some space, or set HF_HOME to a directory that can be written")]
    Write { path: PathBuf, cause: std::io::Error },
    #[error("there is no directory for Hugging Face's cache: set HOME or HF_HOME")]
    NoCacheDir,
}

fn token_hint(token: bool) -> &'static str {
    if token { ", and whether the account of HF_TOKEN may read it" } else { "; for a private one set HF_TOKEN" }
}

fn gate_hint(repo: &Repo, endpoint: &str, token: bool) -> String {
    let accept = format!("accept its licence at {endpoint}/{}", repo.name);
    if token {
        format!(
            "{accept} with the account that HF_TOKEN belongs to, and check that the token has read access to gated models"
        )
    } else {
        format!("{accept}, make a token with read access, and set HF_TOKEN to it")
    }
}

pub type Result<T> = std::result::Result<T, HubError>;
