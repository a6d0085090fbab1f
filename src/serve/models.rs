//! What is served: `/v1/models`, `/version`, `/openapi.json`.

use axum::{
    Json,
    extract::{Path, State as Shared, rejection::PathRejection},
    http::header,
    response::IntoResponse,
};
use serde_json::{Value, json};

use super::{
    error::{ApiError, ApiResult},
    served::{Served, State},
};

/// The interface, as OpenAPI 3.1.
const OPENAPI: &str = include_str!("openapi.json");

fn model(served: &Served, name: &str) -> Value {
    let (params, penalties) = (served.defaults.params, served.defaults.penalties);
    json!({
        "id": name,
        "object": "model",
        "created": served.started,
        "owned_by": "gemma-pjrt",
        "root": served.name(),
        "parent": null,
        "max_model_len": served.service.context(),
        // What requests have that leave fields out.
        "defaults": {
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            "seed": params.seed,
            "repetition_penalty": penalties.repetition,
            "presence_penalty": penalties.presence,
            "frequency_penalty": penalties.frequency,
        },
    })
}

/// `/v1/models`
pub async fn list(Shared(served): Shared<State>) -> Json<Value> {
    let all: Vec<Value> = served.names.iter().map(|name| model(&served, name)).collect();
    Json(json!({"object": "list", "data": all}))
}

/// `/v1/models/{name}`, where a name may have slashes.
pub async fn one(Shared(served): Shared<State>, name: Result<Path<String>, PathRejection>) -> ApiResult<Json<Value>> {
    let Path(name) = name.map_err(|wrong| ApiError::invalid(wrong.body_text()))?;
    match served.names.contains(&name) {
        true => Ok(Json(model(&served, &name))),
        false => Err(ApiError::unknown_model(&name, &served.names)),
    }
}

/// `/version`
pub async fn version(Shared(served): Shared<State>) -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION"), "system_fingerprint": served.fingerprint}))
}

/// `/openapi.json`
pub async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}
