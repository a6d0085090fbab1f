//! Probes: is the process alive, does it take requests, and how is it?

use std::time::Duration;

use axum::{
    Json,
    extract::State as Shared,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    error::{ApiError, ApiResult},
    served::State,
};
use crate::engine::service::Phase;

/// A step that takes longer has hung. No step of any machine takes a hundredth of it.
const LONGEST_STEP: Duration = Duration::from_secs(300);

/// `/healthz`: 200 while the process can do its work, be it loading.
pub async fn alive(Shared(served): Shared<State>) -> Response {
    let phase = served.service.phase().borrow().clone();
    let step = served.service.since_last_step();
    let problem = match phase {
        Phase::Lost(reason) => Some(reason),
        // Loading may take as long as it takes.
        Phase::Loading(_) => None,
        Phase::Ready if step > LONGEST_STEP => Some(format!("a step has been running for {} s", step.as_secs())),
        Phase::Ready => None,
    };
    match problem {
        None => Json(json!({"status": "ok"})).into_response(),
        Some(problem) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "failed", "reason": problem}))).into_response()
        }
    }
}

/// `/readyz` and `/health`: 200 while requests are taken: the weights are placed, all programs are
/// compiled, and the server is not shutting down.
pub async fn ready(Shared(served): Shared<State>) -> Response {
    let phase = served.service.phase().borrow().clone();
    let body = match phase {
        Phase::Ready if served.service.is_draining() => json!({"status": "shutting down"}),
        Phase::Ready => return Json(json!({"status": "ok"})).into_response(),
        Phase::Loading(progress) => {
            let (done, total) = progress.programs;
            json!({
                "status": "loading",
                "weights_placed": progress.weights_placed,
                "programs": {"done": done, "total": total},
            })
        }
        Phase::Lost(reason) => json!({"status": "failed", "reason": reason}),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

/// `/metrics`, in the text format of OpenMetrics.
pub async fn metrics(Shared(served): Shared<State>) -> ApiResult<Response> {
    let is_ready = *served.service.phase().borrow() == Phase::Ready && !served.service.is_draining();
    let text = served.metrics.text(&served.service.stats(), is_ready);
    let text = text.map_err(|_| ApiError::internal("the metrics cannot be written; please report it"))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
