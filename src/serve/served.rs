//! What all handlers share: the model, its names and its engine.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::Semaphore;

use super::{
    error::{ApiError, ApiResult},
    guard::Guard,
    metrics::Metrics,
};
use crate::{
    constraint::Grammars,
    engine::{
        Request,
        service::{Service, ServiceError, Updates, Work},
    },
    tokenizer::Tokenizer,
};

/// What a server serves.
pub struct Served {
    /// Names of the model; the first one is in answers.
    pub names: Vec<String>,
    /// What requests have that leave fields out: sampling, penalties and stop strings.
    pub defaults: Request,
    /// The longest time of a request, waiting included.
    pub timeout: Option<Duration>,
    /// The tokenizer, and what compiles constraints on answers for it, once they are there.
    pub text: Arc<OnceLock<Text>>,
    /// A digest of what answers depend on: weights, types, mesh, version.
    pub fingerprint: String,
    /// Seconds since 1970.
    pub started: u64,
    pub service: Service,
    pub metrics: Metrics,
    pub guard: Guard,
    /// How many requests may be tokenized at the same time.
    pub tokenizing: Semaphore,
}

/// What turns text into tokens.
pub struct Text {
    pub tokenizer: Arc<Tokenizer>,
    pub grammars: Arc<Grammars>,
}

/// The state of handlers.
pub type State = Arc<Served>;

impl Served {
    /// Returns what turns text into tokens.
    ///
    /// # Errors
    /// 503 while it is being loaded.
    pub fn text(&self) -> ApiResult<&Text> {
        self.text.get().ok_or_else(|| ServiceError::Loading.into())
    }

    /// Returns the tokenizer.
    ///
    /// # Errors
    /// 503 while it is being loaded.
    pub fn tokenizer(&self) -> ApiResult<&Arc<Tokenizer>> {
        Ok(&self.text()?.tokenizer)
    }

    /// Returns the model's name in answers.
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// Checks the name of a model that a client asks for. No name means the one that there is.
    ///
    /// # Errors
    /// 404 if it is none of this server's.
    pub fn check_model(&self, name: Option<&str>) -> ApiResult<()> {
        match name {
            Some(name) if !self.names.iter().any(|served| served == name) => {
                Err(ApiError::unknown_model(name, &self.names))
            }
            _ => Ok(()),
        }
    }

    /// Queues the work of one request of a client.
    ///
    /// # Errors
    /// The service's refusal.
    pub fn submit(&self, works: Vec<Work>, key: &Arc<str>) -> ApiResult<Vec<Updates>> {
        self.service.submit_all(works, key, self.timeout).map_err(|refusal| {
            let error = ApiError::from(refusal);
            self.metrics.rejected(error.reason());
            error
        })
    }

    /// Runs work that takes long, such as tokenizing a book, beside the threads that serve others.
    ///
    /// # Errors
    /// Those of the work; 500 if it panics.
    pub async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> ApiResult<T> + Send + 'static,
    ) -> ApiResult<T> {
        let _permit = self.tokenizing.acquire().await;
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|_| Err(ApiError::internal("a defect of this program; please report it")))
    }
}
