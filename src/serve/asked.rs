//! What a client of `/v1/chat/completions` or `/v1/completions` asks for, as requests of the
//! engine.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    error::{ApiError, ApiResult},
    served::Served,
};
use crate::{
    constraint::ConstraintError,
    engine::{Refusal, Request},
    openai::{CONSTRAINT_FIELDS, Fields, Prompt, messages, request},
    tokenizer::{Message, Tokenizer},
};

/// The most prompts of a request, and the most answers to all of them together.
const MAX_PROMPTS: usize = 1024;

/// The highest temperature, as in OpenAI's interface.
const MAX_TEMPERATURE: f32 = 2.0;

/// More bytes a token than any text has: longer texts are refused before they are tokenized.
const MAX_BYTES_PER_TOKEN: usize = 64;

/// Of completions; an answer in a chat may fill the context.
const DEFAULT_MAX_TOKENS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Chat,
    Completion,
}

/// What is sent in a stream beside text.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    /// One more chunk at the end, with the usage of all answers.
    pub include_usage: bool,
    /// The usage so far in each chunk.
    pub continuous_usage_stats: bool,
}

/// A client's request.
pub struct Asked {
    pub kind: Kind,
    /// One for each prompt; they differ in nothing else.
    pub requests: Vec<Request>,
    /// `None` if the answer is wanted whole.
    pub stream: Option<StreamOptions>,
    pub return_token_ids: bool,
}

impl Asked {
    /// Reads the fields of a request. Those that are unknown are ignored. `key` is whose it is:
    /// what it has in the cache is its own.
    ///
    /// # Errors
    /// A field is missing, wrong, or asks for what this server does not do; the model is unknown.
    pub fn read(kind: Kind, mut fields: Fields, served: &Served, key: &str) -> ApiResult<Self> {
        let tokenizer = served.tokenizer()?;
        served.check_model(fields.take::<String>("model")?.as_deref())?;
        let stream = fields.take("stream")?.unwrap_or(false);
        // An object, not a list of its values.
        let options: Option<Map<String, Value>> = fields.take("stream_options")?;
        let options: Option<StreamOptions> = match options.map(|object| serde_json::from_value(object.into())) {
            Some(Err(e)) => return Err(ApiError::field("stream_options", format!("\"stream_options\": {e}"))),
            given => given.and_then(Result::ok),
        };
        if options.is_some() && !stream {
            return Err(ApiError::field("stream_options", "\"stream_options\" is for \"stream\": true; leave it out"));
        }
        let return_token_ids = fields.take("return_token_ids")?.unwrap_or(false);
        let salt = cache_salt(key, fields.take::<String>("cache_salt")?.as_deref());
        let context = served.service.context();
        let prompts = match kind {
            Kind::Chat => vec![conversation(&mut fields, tokenizer, context)?],
            Kind::Completion => texts(&mut fields, tokenizer, context)?,
        };
        let stop_ids = match kind {
            Kind::Chat => tokenizer.chat_stop_ids(),
            Kind::Completion => tokenizer.stop_ids().ids.clone(),
        };
        let base = Request { max_tokens: usize::MAX, stop_ids, cache_salt: salt, ..served.defaults.clone() };
        let form = CONSTRAINT_FIELDS.into_iter().find(|name| fields.has(name));
        let mut request = request(&mut fields, base)?;
        if request.max_tokens == usize::MAX {
            request.max_tokens = if kind == Kind::Chat { context } else { DEFAULT_MAX_TOKENS.max(request.min_tokens) };
        }
        if let Some(constraint) = &request.constraint {
            // The engine finds it compiled.
            let refused = |e: ConstraintError| ApiError::field(form.unwrap_or("response_format"), e.to_string());
            served.text()?.grammars.compile(constraint).map_err(refused)?;
        }
        if kind == Kind::Chat && request.echo {
            return Err(ApiError::field("echo", "\"echo\" is of /v1/completions; leave it out"));
        }
        let temperature = request.params.temperature;
        if temperature > MAX_TEMPERATURE {
            let message = format!("\"temperature\" is {temperature}, which is not from 0 to {MAX_TEMPERATURE}");
            return Err(ApiError::field("temperature", message));
        }
        if request.n.saturating_mul(prompts.len()) > MAX_PROMPTS {
            let message =
                format!("{} prompts with \"n\": {} are more than {MAX_PROMPTS} answers", prompts.len(), request.n);
            return Err(ApiError::field("n", message));
        }
        let requests = prompts.into_iter().map(|prompt| {
            // An answer ends where its context does.
            let max_tokens = request.max_tokens.min((context + 1).saturating_sub(prompt.len()).max(1));
            let max_tokens = if request.max_tokens == 0 { 0 } else { max_tokens };
            Request { prompt, max_tokens, ..request.clone() }
        });
        Ok(Self {
            kind,
            requests: requests.collect(),
            stream: stream.then(|| options.unwrap_or_default()),
            return_token_ids,
        })
    }
}

/// Returns the salt of a key's requests: nobody learns from the time of an answer what another key
/// asked before (CVE-2025-46570).
pub fn cache_salt(key: &str, salt: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, salt).hash(&mut hasher);
    hasher.finish()
}

/// Refuses a text that is longer than any that fits, without tokenizing it.
pub fn check_length(text: &str, context: usize) -> ApiResult<()> {
    let at_least = text.len() / MAX_BYTES_PER_TOKEN;
    if at_least > context {
        return Err(Refusal::TooLong { tokens: at_least, context: context as i64 }.into());
    }
    Ok(())
}

/// Takes the conversation of a chat. Returns its tokens.
fn conversation(fields: &mut Fields, tokenizer: &Tokenizer, context: usize) -> ApiResult<Vec<u32>> {
    let Some(messages) = messages(fields)? else {
        return Err(ApiError::field("messages", "\"messages\" is missing: the conversation"));
    };
    // The template writes what there is.
    fields.allow("add_special_tokens", &[json!(false)], "the chat template writes <bos>; leave this out")?;
    let continues = fields.take("continue_final_message")?.unwrap_or(false);
    let begins = fields.take("add_generation_prompt")?.unwrap_or(!continues);
    if begins == continues {
        let message = "\"add_generation_prompt\" begins an answer and \"continue_final_message\" continues one: one of them is \
                       true";
        return Err(ApiError::field("add_generation_prompt", message));
    }
    chat_tokens(&messages, continues, tokenizer, context)
}

/// Returns the tokens of a conversation, up to the start of the answer or the end of the message
/// that it continues.
pub fn chat_tokens(
    messages: &[Message],
    continues: bool,
    tokenizer: &Tokenizer,
    context: usize,
) -> ApiResult<Vec<u32>> {
    messages.iter().try_for_each(|message| check_length(&message.content, context))?;
    let chat =
        if continues { tokenizer.render_chat_to_continue(messages)? } else { tokenizer.render_chat(messages)? };
    Ok(tokenizer.encode_rendered(&chat)?)
}

/// Takes the prompts of a completion. Returns their tokens.
fn texts(fields: &mut Fields, tokenizer: &Tokenizer, context: usize) -> ApiResult<Vec<Vec<u32>>> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "give a text, a list of texts, a list of token ids, or a list of such lists")]
    enum Given {
        Text(String),
        Tokens(Vec<u32>),
        Texts(Vec<String>),
        Lists(Vec<Vec<u32>>),
    }
    fields.allow("messages", &[], "it is of /v1/chat/completions; write \"prompt\"")?;
    let with_bos = fields.take("add_special_tokens")?.unwrap_or(true);
    let prompts: Vec<Prompt> = match fields.take("prompt")? {
        None => return Err(ApiError::field("prompt", "\"prompt\" is missing: text, or token ids")),
        Some(Given::Text(text)) => vec![Prompt::Text(text)],
        Some(Given::Tokens(tokens)) => vec![Prompt::Tokens(tokens)],
        Some(Given::Texts(texts)) => texts.into_iter().map(Prompt::Text).collect(),
        Some(Given::Lists(lists)) => lists.into_iter().map(Prompt::Tokens).collect(),
    };
    let is_empty = |prompt: &Prompt| match prompt {
        Prompt::Text(text) => text.is_empty(),
        Prompt::Tokens(tokens) => tokens.is_empty(),
        Prompt::Messages(messages) => messages.is_empty(),
    };
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS || prompts.iter().any(is_empty) {
        let message = format!("\"prompt\" has {} prompts; give from 1 to {MAX_PROMPTS}, none empty", prompts.len());
        return Err(ApiError::field("prompt", message));
    }
    let tokens = |prompt: Prompt| match &prompt {
        Prompt::Text(text) => {
            check_length(text, context)?;
            Ok(if with_bos { tokenizer.encode(text)? } else { tokenizer.encode_continuation(text)? })
        }
        _ => Ok(prompt.tokens(true, tokenizer)?),
    };
    prompts.into_iter().map(tokens).collect()
}

/// Refuses a field that stands for what no endpoint here does.
pub fn refuse_stored_state(fields: &mut Fields) -> ApiResult<()> {
    let advice = "answers are not stored; send the whole conversation";
    for (name, value) in
        [("previous_response_id", json!(null)), ("conversation", json!(null)), ("background", json!(false))]
    {
        fields.allow(name, &[value], advice)?;
    }
    Ok(())
}
