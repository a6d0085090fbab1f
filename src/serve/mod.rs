//! The model behind OpenAI's interface, over HTTP.
//!
//! ```text
//! connections ─► guard ─► handlers ─► service (the engine's thread)
//!  TCP, TLS,     keys,    one file an    bounded, fair queue
//!  Unix socket   hosts    endpoint           │
//!                            ▲               │
//!                            └── updates ◄───┘
//! ```
//!
//! Handlers tokenize on other threads than those that stream, and never wait for the engine but for
//! updates. A client that leaves drops its handler or its stream, and with it its updates, which
//! cancels its request.

mod around;
mod asked;
mod body;
mod completions;
mod connections;
mod error;
mod guard;
mod health;
mod metrics;
mod models;
mod page;
mod record;
mod responses;
mod running;
mod score;
mod served;
mod sse;
mod tls;
mod tokens;

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware,
    routing::{get, post},
};

pub use completions::unix_time;
pub use connections::Listener;
pub use error::ApiError;
pub use guard::{ApiKey, Guard};
pub use metrics::Metrics;
pub use record::ACCESS_LOG;
pub use served::{Served, State, Text};
pub use tls::Tls;

/// Returns the server's endpoints.
pub fn router(served: State) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(completions::chat))
        .route("/v1/completions", post(completions::completion))
        .route("/v1/responses", post(responses::create))
        .route("/v1/score", post(score::score))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/embeddings", post(embeddings))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::info))
        .route("/apply-template", post(tokens::apply_template))
        .route("/version", get(models::version))
        .route("/openapi.json", get(models::openapi))
        .route("/metrics", get(health::metrics))
        .route("/healthz", get(health::alive))
        .route("/ping", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/health", get(health::ready))
        .merge(page::routes())
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(served.clone(), around::check))
        .with_state(served)
}

async fn embeddings() -> ApiError {
    ApiError::not_supported("Gemma 1 has no embeddings of texts; use a model that has")
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::not_found(format!("there is no {:?} here; /openapi.json lists what there is", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{:?} does not take {method}; /openapi.json lists what there is", uri.path());
    ApiError::http(StatusCode::METHOD_NOT_ALLOWED, message)
}
