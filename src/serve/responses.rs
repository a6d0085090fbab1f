//! `/v1/responses`, without a memory: each request has its whole conversation.

use axum::{
    Extension, Json,
    extract::State as Shared,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use super::{
    asked::{Asked, Kind, refuse_stored_state},
    body::JsonObject,
    completions::unix_time,
    error::{ApiError, ApiResult},
    guard::Caller,
    record::Record,
    running::{Part, PartKind, Running},
    served::State,
    sse::{self, Closed, Events},
};
use crate::{
    engine::{Answer, FinishReason},
    openai::{Fields, shortened},
};

/// `POST /v1/responses`
pub async fn create(
    Shared(served): Shared<State>,
    Extension(caller): Extension<Caller>,
    body: JsonObject,
) -> ApiResult<Response> {
    let (of_thread, key) = (served.clone(), caller.key.clone());
    let (asked, format) = served
        .beside(move || {
            let chat = as_chat(body.fields())?;
            let format = chat["response_format"].clone();
            let asked = Asked::read(Kind::Chat, Fields::new(chat), &of_thread, &key);
            let names =
                [("messages", "input"), ("max_tokens", "max_output_tokens"), ("response_format", "text.format")];
            Ok((asked.map_err(|error| error.renaming(&names))?, format))
        })
        .await?;
    if asked.requests[0].n != 1 {
        return Err(ApiError::field("n", "a response is one answer; leave \"n\" out"));
    }
    let (streams, tokens) = (asked.stream.is_some(), asked.requests[0].prompt.len());
    let record = Record::new(&served, &caller, "/v1/responses", streams, tokens);
    let running = Running::submit(&served, &asked.requests, &caller.key, record)?;
    let params = asked.requests[0].params;
    let reply = Reply {
        id: format!("resp_{}", caller.request_id),
        message_id: format!("msg_{}", caller.request_id),
        created: unix_time(),
        model: served.name().to_owned(),
        max_output_tokens: asked.requests[0].max_tokens,
        temperature: params.temperature,
        top_p: params.top_p,
        format: if format.is_null() { json!({"type": "text"}) } else { format },
    };
    match streams {
        false => Ok(Json(reply.whole(running).await?).into_response()),
        true => Ok(sse::respond(move |events| reply.stream(running, events))),
    }
}

/// Returns the fields as those of a chat. Fields that mean nothing there stay, and are ignored or
/// refused as they would be there.
fn as_chat(mut fields: Fields) -> ApiResult<Map<String, Value>> {
    refuse_stored_state(&mut fields)?;
    let mut messages = Vec::new();
    if let Some(instructions) = fields.take::<String>("instructions")? {
        messages.push(json!({"role": "system", "content": instructions}));
    }
    match fields.value("input") {
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) if !items.is_empty() => {
            for (i, item) in items.into_iter().enumerate() {
                messages.push(message(item, i)?);
            }
        }
        Some(other) => {
            let message = format!("\"input\" is {}: give a text, or a list of messages", shortened(&other));
            return Err(ApiError::field("input", message));
        }
        None => return Err(ApiError::field("input", "\"input\" is missing: a text, or a list of messages")),
    }
    fields.allow("messages", &[], "write \"input\"")?;
    fields.allow("max_tokens", &[], "write \"max_output_tokens\"")?;
    fields.allow("max_completion_tokens", &[], "write \"max_output_tokens\"")?;
    let of_chats = "it is of /v1/chat/completions; leave it out";
    for name in ["logprobs", "return_token_ids", "continue_final_message"] {
        fields.allow(name, &[json!(false)], of_chats)?;
    }
    let plain = json!({"include_obfuscation": false});
    fields.allow("stream_options", &[json!({}), plain], "events are sent as they are; leave it out")?;
    fields.allow("top_logprobs", &[json!(0)], of_chats)?;
    fields.allow("response_format", &[], "write \"text\": {\"format\": ...}")?;
    // The same object as in a chat, with the schema beside its type.
    let format = fields.take::<Map<String, Value>>("text")?.and_then(|mut text| text.remove("format"));
    fields.allow("truncation", &[json!("disabled")], "prompts are not cut; leave this out")?;
    fields.allow("include", &[json!([])], "only the answer's text is included; leave this out")?;
    fields.allow("reasoning", &[json!({})], "Gemma does not reason before it answers; leave this out")?;
    fields.allow("tool_choice", &[json!("auto"), json!("none")], "Gemma calls no tools; leave this out")?;
    let max_tokens = fields.take::<usize>("max_output_tokens")?;
    let mut chat = fields.into_rest();
    chat.insert("response_format".into(), format.unwrap_or_default());
    chat.insert("messages".into(), messages.into());
    chat.insert("max_tokens".into(), json!(max_tokens));
    Ok(chat)
}

/// Returns an item of `input` as a message of a chat.
fn message(item: Value, index: usize) -> ApiResult<Value> {
    let Value::Object(mut item) = item else {
        return Err(ApiError::field(
            format!("input[{index}]"),
            format!("input[{index}] is no message; give an object"),
        ));
    };
    let kind = item.remove("type").unwrap_or_else(|| "message".into());
    if kind != "message" {
        let problem = format!("input[{index}] is of type {kind}; Gemma 1 reads messages of text");
        return Err(ApiError::field(format!("input[{index}]"), problem));
    }
    if let Some(Value::Array(parts)) = item.get_mut("content") {
        for part in parts {
            if part["type"] == "input_text" || part["type"] == "output_text" {
                part["type"] = "text".into();
            }
        }
    }
    Ok(json!({"role": item.remove("role"), "content": item.remove("content")}))
}

/// What a response says beside its text.
struct Reply {
    id: String,
    message_id: String,
    created: u64,
    model: String,
    max_output_tokens: usize,
    temperature: f32,
    top_p: f32,
    /// The form that the answer is held to.
    format: Value,
}

impl Reply {
    async fn whole(self, mut running: Running) -> ApiResult<Value> {
        let mut answer = None;
        while let Some(Part { part, .. }) = running.next().await? {
            if let PartKind::End(end) = part {
                answer = Some(end);
            }
        }
        let answer = answer.ok_or_else(|| ApiError::internal("the answer has no end; please report it"))?;
        Ok(self.finished(&answer, &running.record).1)
    }

    /// Returns the last event's name, and the response.
    fn finished(&self, answer: &Answer, record: &Record) -> (&'static str, Value) {
        let is_whole = answer.finish_reason == FinishReason::Stop;
        let status = if is_whole { "completed" } else { "incomplete" };
        let mut response = self.response(status, vec![self.item(status, &answer.text)]);
        if !is_whole {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let (prompt, cached, completion) = record.tokens();
        response["usage"] = json!({
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + completion,
        });
        (if is_whole { "response.completed" } else { "response.incomplete" }, response)
    }

    fn response(&self, status: &str, output: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "instructions": null,
            "metadata": {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": false,
            "previous_response_id": null,
            "max_output_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "tool_choice": "none",
            "tools": [],
            "store": false,
            "text": {"format": self.format},
            "truncation": "disabled",
            "usage": null,
        })
    }

    fn item(&self, status: &str, text: &str) -> Value {
        json!({
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [self.part(text)],
        })
    }

    fn part(&self, text: &str) -> Value {
        json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
    }

    async fn stream(self, mut running: Running, events: Events) -> Result<(), Closed> {
        let mut writer = Writer { events, next: 0 };
        let begun = self.response("in_progress", vec![]);
        writer.send("response.created", json!({"response": begun})).await?;
        writer.send("response.in_progress", json!({"response": begun})).await?;
        let empty = json!({"id": self.message_id, "type": "message", "role": "assistant", "status": "in_progress", "content": []});
        writer.send("response.output_item.added", json!({"output_index": 0, "item": empty})).await?;
        let place = json!({"item_id": self.message_id, "output_index": 0, "content_index": 0});
        let at_place = |name: &str, value: Value| {
            let mut fields = place.clone();
            fields[name] = value;
            fields
        };
        writer.send("response.content_part.added", at_place("part", self.part(""))).await?;
        loop {
            match running.next().await {
                Ok(Some(Part { part: PartKind::More { text, .. }, .. })) if !text.is_empty() => {
                    let mut fields = at_place("delta", text.into());
                    fields["logprobs"] = json!([]);
                    writer.send("response.output_text.delta", fields).await?;
                }
                Ok(Some(Part { part: PartKind::End(answer), .. })) => {
                    let mut fields = at_place("text", answer.text.as_str().into());
                    fields["logprobs"] = json!([]);
                    writer.send("response.output_text.done", fields).await?;
                    writer.send("response.content_part.done", at_place("part", self.part(&answer.text))).await?;
                    let (name, response) = self.finished(&answer, &running.record);
                    let item = response["output"][0].clone();
                    writer.send("response.output_item.done", json!({"output_index": 0, "item": item})).await?;
                    return writer.send(name, json!({"response": response})).await;
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(error) => {
                    let mut response = self.response("failed", vec![]);
                    response["error"] = json!({"code": "server_error", "message": error.message});
                    return writer.send("response.failed", json!({"response": response})).await;
                }
            }
        }
    }
}

/// Numbers the events of a stream.
struct Writer {
    events: Events,
    next: u64,
}

impl Writer {
    async fn send(&mut self, name: &str, mut fields: Value) -> Result<(), Closed> {
        fields["type"] = name.into();
        fields["sequence_number"] = self.next.into();
        self.next += 1;
        self.events.named(name, &fields).await
    }
}
