//! `/v1/chat/completions` and `/v1/completions`, whole or as a stream.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension, Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use super::{
    asked::{Asked, Kind, StreamOptions},
    body::JsonObject,
    error::{ApiError, ApiResult},
    guard::Caller,
    record::Record,
    running::{Part, PartKind, Running},
    served::State,
    sse::{self, Closed, Events},
};
use crate::{
    engine::{Answer, Request},
    openai::{Choices, TextOffset, stop_reason},
    runtime::Token,
};

pub async fn chat(
    Shared(served): Shared<State>,
    Extension(caller): Extension<Caller>,
    body: JsonObject,
) -> ApiResult<Response> {
    answer(Kind::Chat, served, caller, body).await
}

pub async fn completion(
    Shared(served): Shared<State>,
    Extension(caller): Extension<Caller>,
    body: JsonObject,
) -> ApiResult<Response> {
    answer(Kind::Completion, served, caller, body).await
}

async fn answer(kind: Kind, served: State, caller: Caller, body: JsonObject) -> ApiResult<Response> {
    let (of_thread, key) = (served.clone(), caller.key.clone());
    let asked = served.beside(move || Asked::read(kind, body.fields(), &of_thread, &key)).await?;
    let tokens = asked.requests.iter().map(|request| request.prompt.len()).sum();
    let route = if kind == Kind::Chat { "/v1/chat/completions" } else { "/v1/completions" };
    let record = Record::new(&served, &caller, route, asked.stream.is_some(), tokens);
    let running = Running::submit(&served, &asked.requests, &caller.key, record)?;
    let reply = Reply { id: caller.request_id.clone(), created: unix_time(), served, asked };
    match reply.asked.stream {
        None => reply.whole(running).await.map(|body| Json(body).into_response()),
        Some(options) => Ok(sse::respond(move |events| reply.stream(running, options, events))),
    }
}

/// Returns the seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// What an answer has beside its choices.
struct Reply {
    id: std::sync::Arc<str>,
    created: u64,
    served: State,
    asked: Asked,
}

impl Reply {
    fn choices(&self, prompt: usize) -> ApiResult<Choices<'_>> {
        Ok(Choices { request: &self.asked.requests[prompt], tokenizer: self.served.tokenizer()? })
    }

    /// Returns an object with these choices.
    fn object(&self, choices: Value, is_chunk: bool) -> Map<String, Value> {
        let (prefix, object) = match (self.asked.kind, is_chunk) {
            (Kind::Chat, false) => ("chatcmpl", "chat.completion"),
            (Kind::Chat, true) => ("chatcmpl", "chat.completion.chunk"),
            (Kind::Completion, _) => ("cmpl", "text_completion"),
        };
        let mut fields = Map::new();
        fields.insert("id".into(), format!("{prefix}-{}", self.id).into());
        fields.insert("object".into(), object.into());
        fields.insert("created".into(), self.created.into());
        fields.insert("model".into(), self.served.name().into());
        fields.insert("system_fingerprint".into(), self.served.fingerprint.as_str().into());
        fields.insert("choices".into(), choices);
        fields
    }

    /// The place of an answer in the list of all: prompts first, as in OpenAI's interface.
    fn index(&self, prompt: usize, index: usize) -> usize {
        prompt * self.asked.requests[prompt].n + index
    }

    /// Waits for all answers.
    async fn whole(self, mut running: Running) -> ApiResult<Value> {
        let mut answers = BTreeMap::new();
        while let Some(Part { prompt, index, part }) = running.next().await? {
            if let PartKind::End(answer) = part {
                answers.insert((prompt, index), answer);
            }
        }
        let mut choices = Vec::with_capacity(answers.len());
        for ((prompt, index), answer) in &answers {
            let (writer, place) = (self.choices(*prompt)?, self.index(*prompt, *index));
            let mut choice = match self.asked.kind {
                Kind::Chat => writer.chat(place, answer)?,
                Kind::Completion => writer.completion(place, answer)?,
            };
            self.add_token_ids(&mut choice, *prompt, &answer.tokens, true);
            choices.push(choice);
        }
        let mut object = self.object(choices.into(), false);
        self.add_prompt_token_ids(&mut object);
        object.insert("usage".into(), running.record.usage(0));
        object.insert("timings".into(), running.record.timings());
        Ok(object.into())
    }

    /// Adds vLLM's `token_ids` to a choice, if they are wanted.
    fn add_token_ids(&self, choice: &mut Value, prompt: usize, tokens: &[Token], with_prompt: bool) {
        if self.asked.return_token_ids {
            choice["token_ids"] = tokens.iter().map(|token| token.id).collect();
            if self.asked.kind == Kind::Completion && with_prompt {
                choice["prompt_token_ids"] = json!(self.asked.requests[prompt].prompt);
            }
        }
    }

    /// Adds vLLM's `prompt_token_ids` to a chat's answer, if they are wanted.
    fn add_prompt_token_ids(&self, object: &mut Map<String, Value>) {
        if self.asked.return_token_ids && self.asked.kind == Kind::Chat {
            object.insert("prompt_token_ids".into(), json!(self.asked.requests[0].prompt));
        }
    }

    /// Sends all answers as they come. An error ends the stream, as an event.
    async fn stream(self, mut running: Running, options: StreamOptions, events: Events) -> Result<(), Closed> {
        let mut progress = Progress::new(&self.asked.requests);
        loop {
            let part = match running.next().await {
                Ok(Some(part)) => part,
                Ok(None) => break,
                Err(error) => return finish_with(&events, &error).await,
            };
            let choice = match self.chunk(&mut progress, part) {
                Ok(choice) => choice,
                Err(error) => return finish_with(&events, &error).await,
            };
            let Some((choice, is_first)) = choice else { continue };
            let mut object = self.object(json!([choice]), true);
            if is_first {
                self.add_prompt_token_ids(&mut object);
            }
            if options.continuous_usage_stats {
                object.insert("usage".into(), running.record.usage(progress.unfinished_tokens()));
            } else if options.include_usage {
                object.insert("usage".into(), Value::Null);
            }
            events.data(&object.into()).await?;
        }
        if options.include_usage {
            let mut object = self.object(json!([]), true);
            object.insert("usage".into(), running.record.usage(0));
            object.insert("timings".into(), running.record.timings());
            events.data(&object.into()).await?;
        }
        events.done().await
    }

    /// Returns the choice of a chunk that tells of a part, and whether it is the first one; `None`
    /// if there is nothing to tell.
    fn chunk(&self, progress: &mut Progress, part: Part) -> ApiResult<Option<(Value, bool)>> {
        let Part { prompt, index, part } = part;
        let (writer, place) = (self.choices(prompt)?, self.index(prompt, index));
        let state = &mut progress.answers[place];
        // The prompt's log-probabilities come with the whole answer.
        let comes_whole = writer.request.echo && writer.request.logprobs.is_some();
        let choice = match part {
            PartKind::Start if self.asked.kind == Kind::Chat => {
                self.chat_chunk(place, json!({"role": "assistant", "content": ""}))
            }
            PartKind::Start if writer.request.echo && !comes_whole => {
                json!({"index": place, "text": writer.echoed()?, "logprobs": null, "finish_reason": null})
            }
            PartKind::Start => return Ok(None),
            PartKind::More { tokens, text } => {
                state.tokens += tokens.len();
                if comes_whole || tokens.is_empty() && text.is_empty() {
                    return Ok(None);
                }
                let mut choice = match self.asked.kind {
                    Kind::Chat => {
                        let mut choice = self.chat_chunk(place, json!({"content": text}));
                        choice["logprobs"] = writer.chat_logprobs(&tokens)?;
                        choice
                    }
                    Kind::Completion => {
                        let logprobs = match writer.request.logprobs {
                            Some(_) => writer.completion_logprobs(false, tokens.iter(), &mut state.offset)?,
                            None => Value::Null,
                        };
                        json!({"index": place, "text": text, "logprobs": logprobs, "finish_reason": null})
                    }
                };
                self.add_token_ids(&mut choice, prompt, &tokens, !state.has_prompt_ids);
                state.has_prompt_ids = true;
                choice
            }
            PartKind::End(answer) => {
                state.tokens = 0; // they are in the record now
                self.last_chunk(writer, place, &answer, comes_whole, prompt)?
            }
        };
        let is_first = !std::mem::replace(&mut progress.has_begun, true);
        Ok(Some((choice, is_first)))
    }

    fn chat_chunk(&self, place: usize, delta: Value) -> Value {
        json!({"index": place, "delta": delta, "logprobs": null, "finish_reason": null})
    }

    /// Returns the choice of the chunk that ends an answer.
    fn last_chunk(
        &self,
        writer: Choices<'_>,
        place: usize,
        answer: &Answer,
        comes_whole: bool,
        prompt: usize,
    ) -> ApiResult<Value> {
        if comes_whole {
            let mut choice = writer.completion(place, answer)?;
            self.add_token_ids(&mut choice, prompt, &answer.tokens, true);
            return Ok(choice);
        }
        let mut choice = match self.asked.kind {
            Kind::Chat => self.chat_chunk(place, json!({})),
            Kind::Completion => json!({"index": place, "text": "", "logprobs": null}),
        };
        choice["finish_reason"] = answer.finish_reason.name().into();
        choice["stop_reason"] = stop_reason(answer);
        Ok(choice)
    }
}

/// Sends an error as the last event of a stream.
async fn finish_with(events: &Events, error: &ApiError) -> Result<(), Closed> {
    events.data(&error.body()).await?;
    events.done().await
}

/// What was sent of each answer.
struct Progress {
    answers: Vec<AnswerProgress>,
    has_begun: bool,
}

#[derive(Clone, Default)]
struct AnswerProgress {
    offset: TextOffset,
    /// Tokens so far; 0 again when it is finished.
    tokens: usize,
    has_prompt_ids: bool,
}

impl Progress {
    fn new(requests: &[Request]) -> Self {
        let answers = requests.iter().map(|request| request.n).sum();
        Self { answers: vec![AnswerProgress::default(); answers], has_begun: false }
    }

    fn unfinished_tokens(&self) -> usize {
        self.answers.iter().map(|answer| answer.tokens).sum()
    }
}
