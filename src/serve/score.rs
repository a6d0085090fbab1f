//! `/v1/score`: how likely each of several choices follows a context.

use axum::{Extension, Json, extract::State as Shared};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    asked::{cache_salt, chat_tokens, check_length},
    body::JsonObject,
    error::{ApiError, ApiResult},
    guard::Caller,
    record::Record,
    served::{Served, State},
};
use crate::{
    engine::{
        ScoreRequest,
        service::{Happened, Work},
    },
    openai::{Fields, finite, messages},
};

/// The most choices of a request.
const MAX_CHOICES: usize = 256;

/// A choice, as text or as token ids.
#[derive(Deserialize)]
#[serde(untagged, expecting = "give a text, or a list of token ids")]
enum Text {
    Text(String),
    Tokens(Vec<u32>),
}

/// `/v1/score`
pub async fn score(
    Shared(served): Shared<State>,
    Extension(caller): Extension<Caller>,
    body: JsonObject,
) -> ApiResult<Json<Value>> {
    let (of_thread, key) = (served.clone(), caller.key.clone());
    let request = served.beside(move || read(body.fields(), &of_thread, &key)).await?;
    let lengths: Vec<usize> = request.continuations.iter().map(Vec::len).collect();
    let prompt_tokens = request.context.len() + lengths.iter().sum::<usize>();
    let mut record = Record::new(&served, &caller, "/v1/score", false, prompt_tokens);
    let mut updates = served.submit(vec![Work::Score(request)], &caller.key)?.remove(0);
    record.taken();
    while let Some(update) = updates.next().await {
        record.observe(&update);
        match update.happened {
            Happened::Scored(likelihoods) => {
                let choice = |(index, (likelihood, tokens)): (usize, (crate::engine::Likelihood, usize))| {
                    json!({
                        "index": index,
                        "logprob": finite(likelihood.logprob as f32),
                        "tokens": tokens,
                        "is_greedy": likelihood.is_greedy,
                    })
                };
                let scored: Vec<Value> = likelihoods.into_iter().zip(lengths).enumerate().map(choice).collect();
                return Ok(Json(json!({
                    "id": format!("score-{}", caller.request_id),
                    "object": "list",
                    "model": served.name(),
                    "system_fingerprint": served.fingerprint,
                    "data": scored,
                    "usage": {
                        "prompt_tokens": prompt_tokens,
                        "completion_tokens": 0,
                        "total_tokens": prompt_tokens,
                    },
                })));
            }
            Happened::Failed(failure) => return Err(failure.into()),
            _ => {}
        }
    }
    Err(ApiError::internal("the engine's thread has ended; please report it"))
}

fn read(mut fields: Fields, served: &Served, key: &str) -> ApiResult<ScoreRequest> {
    let tokenizer = served.tokenizer()?;
    served.check_model(fields.take::<String>("model")?.as_deref())?;
    let salt = cache_salt(key, fields.take::<String>("cache_salt")?.as_deref());
    let context = match (fields.take::<Text>("prompt")?, messages(&mut fields)?) {
        (Some(Text::Text(text)), None) => {
            check_length(&text, served.service.context())?;
            tokenizer.encode(&text)?
        }
        (Some(Text::Tokens(tokens)), None) => tokens,
        (None, Some(messages)) => chat_tokens(&messages, false, tokenizer, served.service.context())?,
        _ => {
            return Err(ApiError::field(
                "prompt",
                "give one of \"prompt\" and \"messages\": what comes before the choices",
            ));
        }
    };
    let choices: Vec<Text> = fields.take("choices")?.unwrap_or_default();
    if choices.is_empty() || choices.len() > MAX_CHOICES {
        let message = format!("\"choices\" has {}; give from 1 to {MAX_CHOICES} texts", choices.len());
        return Err(ApiError::field("choices", message));
    }
    let tokens = |choice: Text| match choice {
        Text::Text(text) => {
            check_length(&text, served.service.context())?;
            Ok(tokenizer.encode_continuation(&text)?)
        }
        Text::Tokens(tokens) => Ok(tokens),
    };
    let continuations = choices.into_iter().map(tokens).collect::<ApiResult<Vec<_>>>()?;
    if let Some(empty) = continuations.iter().position(Vec::is_empty) {
        return Err(ApiError::field("choices", format!("choices[{empty}] is empty; give a text")));
    }
    Ok(ScoreRequest { context: context.into(), continuations, cache_salt: salt })
}
