//! The forms of an answer: this program's own, and the objects of OpenAI's interface.
//!
//! An answer depends on its line alone: ids come from the line's own, and no time is in it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    engine::{Answer, Request},
    openai::Choices,
    runtime::Token,
    tokenizer::{Tokenizer, TokenizerError},
};

/// The form of an output line, answered or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// `{"index", "id", "choices", "usage"}` or `{"index", "id", "error"}`.
    Plain,
    /// `{"id", "custom_id", "response", "error"}`, as in OpenAI's batches.
    OpenAi,
}

/// The reason why a line has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request is wrong.
    Refused,
    /// The step that it was in failed.
    Step,
}

impl Envelope {
    /// Returns the output line of an answer.
    pub fn answered(self, index: usize, id: &Value, body: Value) -> Value {
        match (self, body) {
            (Self::OpenAi, body) => openai_line(index, id, 200, body),
            (Self::Plain, Value::Object(body)) => {
                let named = [("index".to_owned(), json!(index)), ("id".to_owned(), id.clone())];
                named.into_iter().chain(body).collect::<Map<_, _>>().into()
            }
            (Self::Plain, body) => body,
        }
    }

    /// Returns the output line of a request that has no answer.
    pub fn failed(self, index: usize, id: &Value, failure: Failure, error: &str) -> Value {
        if self == Self::Plain {
            return json!({"index": index, "id": id, "error": error});
        }
        let (status, kind) = match failure {
            Failure::Refused => (400, "invalid_request_error"),
            Failure::Step => (500, "server_error"),
        };
        let body = json!({"error": {"message": error, "type": kind, "param": null, "code": null}});
        openai_line(index, id, status, body)
    }
}

/// Returns a line as in OpenAI's output files. A request that was refused has its error in the
/// response, too; the line's own is for requests without a response, of which there are none.
fn openai_line(index: usize, id: &Value, status: u16, body: Value) -> Value {
    json!({
        "id": format!("batch_req_{index}"),
        "custom_id": id,
        "response": {"status_code": status, "request_id": format!("req_{index}"), "body": body},
        "error": null,
    })
}

/// The form of the answers themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    Plain,
    /// OpenAI's `chat.completion`.
    Chat {
        id: String,
        model: String,
    },
    /// OpenAI's `text_completion`.
    Completion {
        id: String,
        model: String,
    },
}

/// The answers to a request, by their numbers.
pub type Answers = BTreeMap<usize, Answer>;

impl Body {
    /// Returns the answers in this form.
    ///
    /// # Errors
    /// The tokenizer cannot turn a token into text.
    pub fn json(&self, request: &Request, answers: &Answers, tokenizer: &Tokenizer) -> Result<Value, TokenizerError> {
        let (id, model, object) = match self {
            Self::Plain => return Ok(plain(request, answers)),
            Self::Chat { id, model } => (id, model, "chat.completion"),
            Self::Completion { id, model } => (id, model, "text_completion"),
        };
        let choices = Choices { request, tokenizer };
        let choice = |(&index, answer): (&usize, &Answer)| match self {
            Self::Chat { .. } => choices.chat(index, answer),
            _ => choices.completion(index, answer),
        };
        let (prompt, completion) = (request.prompt.len(), completion_tokens(answers));
        Ok(json!({
            "id": id,
            "object": object,
            "created": 0,
            "model": model,
            "choices": answers.iter().map(choice).collect::<Result<Vec<_>, _>>()?,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }))
    }
}

fn completion_tokens(answers: &Answers) -> usize {
    answers.values().map(Answer::generated).sum()
}

fn plain(request: &Request, answers: &Answers) -> Value {
    let first = &answers[&0];
    let choice = |(index, answer): (&usize, &Answer)| {
        let mut choice = json!({
            "index": index,
            "text": answer.text,
            "tokens": answer.tokens.iter().map(|token| token.id).collect::<Vec<_>>(),
            "finish_reason": answer.finish_reason.name(),
        });
        if request.logprobs.is_some() {
            choice["logprobs"] = answer.tokens.iter().map(plain_logprobs).collect();
        }
        choice
    };
    let mut object = json!({
        "choices": answers.iter().map(choice).collect::<Vec<_>>(),
        "usage": {
            "prompt_tokens": request.prompt.len(),
            "cached_tokens": first.cached,
            "completion_tokens": completion_tokens(answers),
        },
    });
    if let Some(prompt) = &first.prompt {
        object["prompt_logprobs"] = prompt.iter().map(plain_logprobs).collect();
    }
    object
}

fn plain_logprobs(token: &Token) -> Value {
    let logprobs = token.logprobs.as_ref();
    let top = logprobs.map_or(&[][..], |logprobs| &logprobs.top);
    let top: Vec<Value> = top.iter().map(|(id, logprob)| json!({"token": id, "logprob": logprob})).collect();
    json!({"token": token.id, "logprob": logprobs.map(|logprobs| logprobs.own), "top": top})
}
