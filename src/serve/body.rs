//! The body of a request: a JSON object of a bounded size, in a bounded time.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{StatusCode, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::error::{ApiError, ApiResult};
use crate::openai::Fields;

/// The longest body. A prompt of 8192 tokens has about 100 kB; a thousand of them fit.
pub const MAX_BODY: usize = 16 << 20;

/// The longest time that a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The fields of a body that is a JSON object.
pub struct JsonObject(pub Map<String, Value>);

impl JsonObject {
    pub fn fields(mut self) -> Fields {
        self.0.values_mut().for_each(whole_numbers);
        Fields::new(self.0)
    }
}

impl<S: Send + Sync> FromRequest<S> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        // A page of another site can send anything else without asking first.
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
            let message = format!("the body's content type is {kind:?}; send application/json");
            return Err(ApiError::http(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
        }
        let bytes = read(body).await?;
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(_) => {
                Err(ApiError::invalid("the body is no JSON object, such as {\"model\": ..., \"messages\": [...]}"))
            }
            Err(e) => Err(ApiError::invalid(format!("the body is no JSON: {e}"))),
        }
    }
}

/// Makes numbers such as 2.0 whole: some languages write all numbers so.
fn whole_numbers(value: &mut Value) {
    const EXACT: f64 = (1_u64 << 53) as f64;
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() <= EXACT);
            if let Some(whole) = whole {
                *value = (whole as i64).into();
            }
        }
        Value::Array(list) => list.iter_mut().for_each(whole_numbers),
        Value::Object(object) => object.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

async fn read(body: Body) -> ApiResult<bytes::Bytes> {
    let collected = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(BODY_TIMEOUT, collected).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            let message = format!("the body is longer than {MAX_BODY} bytes; send less in one request");
            Err(ApiError::http(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Ok(Err(e)) => Err(ApiError::invalid(format!("the body could not be read: {e}"))),
        Err(_) => {
            let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
            Err(ApiError::http(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}
