//! Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use crate::{
    engine::{
        Refusal,
        service::{Failure, ServiceError},
    },
    openai::FieldError,
    tokenizer::TokenizerError,
};

/// The longest message, in characters: what a client sent is not sent back in full.
const MAX_MESSAGE: usize = 2000;

/// Seconds after which a client may try again where there is no room now.
const RETRY_AFTER: u32 = 1;

pub type ApiResult<T> = Result<T, ApiError>;

/// An error of a request.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    pub message: String,
    retry_after: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let message = match message.char_indices().nth(MAX_MESSAGE) {
            Some((end, _)) => format!("{} ...", &message[..end]),
            None => message,
        };
        Self { status, kind, code, param: None, message, retry_after: None }
    }

    /// A request that is wrong in itself.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// A request whose field is wrong.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::invalid(message) }
    }

    /// A request that is wrong for HTTP: a method, a type or size of the body.
    pub fn http(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", None, message)
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", None, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", None, message)
    }

    /// A model that this server does not have.
    pub fn unknown_model(name: &str, served: &[String]) -> Self {
        let message = format!("the model {name:?} is not served here; use {}", served.join(" or "));
        let code = Some("model_not_found");
        let error = Self::new(StatusCode::NOT_FOUND, "not_found_error", code, message);
        Self { param: Some("model".into()), ..error }
    }

    pub fn not_supported(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "not_supported_error", None, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }

    /// There is no room, or no model, now; there may be soon, or elsewhere.
    pub fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", Some(code), message);
        Self { retry_after: Some(RETRY_AFTER), ..error }
    }

    /// Names a field as the client does, where a request was read as one of another endpoint.
    pub fn renaming(mut self, names: &[(&str, &str)]) -> Self {
        for (theirs, ours) in names {
            let renamed = self.param.as_deref().and_then(|param| param.strip_prefix(theirs));
            if let Some(rest) = renamed {
                self.param = Some(format!("{ours}{rest}"));
                self.message = self.message.replace(theirs, ours);
                return self;
            }
        }
        self
    }

    /// Returns the object that the answer's body, or an event of a stream, is.
    pub fn body(&self) -> Value {
        let Self { kind, code, param, message, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }

    /// Returns the words for metrics: few, and none of the client's.
    pub fn reason(&self) -> &'static str {
        self.code.unwrap_or(self.kind)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // OpenAI's clients repeat 5xx, 408, 409 and 429 unless they are told not to.
        let repeats = matches!(self.status.as_u16(), 408 | 429 | 503);
        let should_retry = HeaderName::from_static("x-should-retry");
        headers.insert(should_retry, HeaderValue::from_static(if repeats { "true" } else { "false" }));
        response.extensions_mut().insert(self);
        response
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        Self { param: error.param, ..Self::invalid(error.problem) }
    }
}

impl From<TokenizerError> for ApiError {
    fn from(error: TokenizerError) -> Self {
        let param = match &error {
            TokenizerError::Template(_) => Some("messages".to_owned()),
            _ => None,
        };
        Self { param, ..Self::invalid(error.to_string()) }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooLong { tokens, context } => {
                let message = format!(
                    "the prompt is too long: this model's maximum context length is {context} tokens, and the prompt has \
                     {tokens}, which leaves no room for an answer; shorten it"
                );
                let code = Some("context_length_exceeded");
                Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message)
            }
            Refusal::BadConstraint(_) => Self::field("response_format", refusal.to_string()),
            Refusal::BadParameter(out_of_range) => Self::field(out_of_range.name, out_of_range.problem),
            Refusal::UnknownToken { .. } | Refusal::EmptyPrompt => Self::field("prompt", refusal.to_string()),
            Refusal::QueueFull { .. } => Self::unavailable("overloaded", refusal.to_string()),
            Refusal::ShuttingDown => Self::unavailable("shutting_down", refusal.to_string()),
        }
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let message = error.to_string();
        match error {
            ServiceError::Refused(refusal) => refusal.into(),
            ServiceError::QueueFull { .. } => Self::unavailable("overloaded", message),
            ServiceError::Loading => Self::unavailable("loading", message),
            ServiceError::ShuttingDown => Self::unavailable("shutting_down", message),
            ServiceError::Lost(_) => Self::unavailable("engine_lost", message),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::DeadlineExceeded(_) => Self::unavailable("deadline_exceeded", message),
            Failure::ShuttingDown => Self::unavailable("shutting_down", message),
            Failure::Step(_) => Self::internal(message),
            Failure::Constraint(_) => Self::field("response_format", message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_look_for_is_there() {
        let too_long = ApiError::from(Refusal::TooLong { tokens: 300, context: 256 });
        assert_eq!(too_long.status, 400);
        let error = &too_long.body()["error"];
        assert_eq!(error["code"], "context_length_exceeded");
        // LangChain and LiteLLM look for these words.
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("prompt is too long") && message.contains("this model's maximum context length is 256")
        );
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 4);
    }

    #[test]
    fn a_long_message_is_cut() {
        let error = ApiError::invalid("ä".repeat(100_000));
        assert!(error.message.chars().count() < MAX_MESSAGE + 10);
    }

    #[test]
    fn repeating_is_advised_where_it_helps() {
        for (error, advice) in [
            (ApiError::unavailable("overloaded", "full"), "true"),
            (ApiError::internal("broken"), "false"),
            (ApiError::invalid("wrong"), "false"),
        ] {
            let response = error.into_response();
            assert_eq!(response.headers()["x-should-retry"], advice);
        }
        let full = ApiError::unavailable("overloaded", "full").into_response();
        assert_eq!((full.status().as_u16(), &full.headers()["retry-after"]), (503, &HeaderValue::from_static("1")));
    }
}
