//! Bodies of requests, and the fields beyond OpenAI's that the server takes.

use hyper::body::Bytes;
use serde_json::{Map, Value, json};

use super::client::{Failure, FailureKind};

#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
pub(super) enum Endpoint {
    Completions,
    Chat,
}

impl Endpoint {
    pub fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Completions => "completions",
            Self::Chat => "chat",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Prompt {
    /// Token ids; `/v1/completions` only.
    Ids(Vec<u32>),
    /// A text, or a message of the user.
    Text(String),
    /// A conversation; `/v1/chat/completions` only.
    Messages(Value),
}

/// The optional fields that the server takes, not merely ignores or refuses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Dialect {
    /// Answers go on to their full length.
    pub ignore_eos: bool,
    /// The last chunk counts the answer's tokens (`stream_options.include_usage`).
    pub usage: bool,
    /// Every chunk counts the tokens so far (`stream_options.continuous_usage_stats`).
    pub continuous_usage: bool,
}

impl Dialect {
    /// From most to least. A server that refuses a field refuses the request, so the first that is
    /// answered is the server's.
    pub const ALL: [Self; 5] = [
        Self { ignore_eos: true, usage: true, continuous_usage: true },
        Self { ignore_eos: true, usage: true, continuous_usage: false },
        Self { ignore_eos: false, usage: true, continuous_usage: true },
        Self { ignore_eos: false, usage: true, continuous_usage: false },
        Self { ignore_eos: false, usage: false, continuous_usage: false },
    ];

    /// Returns whether a failure may come from a field that the server does not know.
    pub fn is_refusal(failure: &Failure) -> bool {
        matches!(failure.kind, FailureKind::Status(400 | 422))
    }
}

/// Makes the bodies of requests.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub endpoint: Endpoint,
    pub model: String,
    pub temperature: f64,
    pub dialect: Dialect,
    /// Fields that the user adds; they win.
    pub extra: Map<String, Value>,
}

impl Requests {
    pub fn body(&self, prompt: &Prompt, max_tokens: u32) -> Bytes {
        let mut body = json!({
            "model": self.model,
            "max_tokens": max_tokens,
            "temperature": self.temperature,
            "stream": true,
        });
        let (field, value) = match (self.endpoint, prompt) {
            (Endpoint::Completions, Prompt::Ids(ids)) => ("prompt", json!(ids)),
            (Endpoint::Completions, Prompt::Text(text)) => ("prompt", json!(text)),
            (Endpoint::Chat, Prompt::Text(text)) => ("messages", json!([{"role": "user", "content": text}])),
            (Endpoint::Chat, Prompt::Messages(messages)) => ("messages", messages.clone()),
            (Endpoint::Chat, Prompt::Ids(_)) | (Endpoint::Completions, Prompt::Messages(_)) => {
                unreachable!("prompts are made for their endpoint")
            }
        };
        body[field] = value;
        if self.dialect.usage {
            body["stream_options"] = json!({"include_usage": true});
        }
        if self.dialect.continuous_usage {
            body["stream_options"]["continuous_usage_stats"] = json!(true);
        }
        if self.dialect.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        for (name, value) in &self.extra {
            body[name.as_str()] = value.clone();
        }
        body.to_string().into()
    }
}
