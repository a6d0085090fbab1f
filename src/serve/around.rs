//! What is done around every handler: who may ask, ids, cross-origin headers, defects.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

use axum::{
    extract::{MatchedPath, Request, State as Shared},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    error::ApiError,
    guard::{Admitted, Caller, REQUEST_ID, request_id},
    served::State,
};

/// Checks a request, and writes what all responses have.
pub async fn check(Shared(served): Shared<State>, request: Request, next: Next) -> Response {
    let request_id = request_id(request.headers());
    let origin = request.headers().get(header::ORIGIN).cloned();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let mut response = match served.guard.admit(&request, &request_id) {
        Ok(Admitted::Preflight) => StatusCode::NO_CONTENT.into_response(),
        Ok(Admitted::Caller(caller)) => run(request, caller, next).await,
        Err(refusal) => refusal.into_response(),
    };
    served.metrics.answered(route.as_deref().unwrap_or("none"), response.status().as_u16());
    let headers = response.headers_mut();
    if let Some(origin) = origin.filter(|origin| served.guard.lists(origin)) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id"));
        if response.status() == StatusCode::NO_CONTENT {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS));
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        }
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        headers.insert(REQUEST_ID.clone(), id);
    }
    response
}

/// Those that OpenAI's clients send from browsers.
const ALLOWED_HEADERS: &str = "authorization, content-type, x-api-key, x-request-id, openai-organization, openai-project, \
                               x-stainless-arch, x-stainless-lang, x-stainless-os, x-stainless-package-version, \
                               x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, x-stainless-timeout";

/// Runs the handler. A panic in it is an error of this request alone.
async fn run(mut request: Request, caller: Caller, next: Next) -> Response {
    request.extensions_mut().insert(caller);
    let mut handler = pin!(next.run(request));
    std::future::poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(context)));
        let defect = || ApiError::internal("a defect of this program; please report it").into_response();
        polled.unwrap_or_else(|_| Poll::Ready(defect()))
    })
    .await
}
