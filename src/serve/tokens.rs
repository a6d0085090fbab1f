//! Text to tokens and back: `/tokenize`, `/detokenize`, `/tokenizer_info`, `/apply-template`. The
//! first three are vLLM's, which lm-evaluation-harness asks; llama-server's names of their fields
//! are taken, too.

use axum::{Json, extract::State as Shared};
use serde_json::{Value, json};

use super::{
    body::JsonObject,
    error::{ApiError, ApiResult},
    served::State,
};
use crate::{
    openai::{Fields, messages},
    tokenizer::{Message, Tokenizer, check_ids},
};

/// `/tokenize`: of `prompt` (or `content`), or of `messages` in the chat format.
pub async fn tokenize(Shared(served): Shared<State>, body: JsonObject) -> ApiResult<Json<Value>> {
    let of_thread = served.clone();
    served
        .beside(move || {
            let (mut fields, tokenizer) = (body.fields(), of_thread.tokenizer()?);
            of_thread.check_model(fields.take::<String>("model")?.as_deref())?;
            let tokens = match conversation(&mut fields)? {
                Some((messages, continues)) => tokenizer.encode_rendered(&render(tokenizer, &messages, continues)?)?,
                None => {
                    let (prompt, content) = (fields.take::<String>("prompt")?, fields.take::<String>("content")?);
                    let Some(text) = prompt.or(content) else {
                        return Err(ApiError::field("prompt", "\"prompt\" is missing: a text; or write \"messages\""));
                    };
                    match fields.take("add_special_tokens")?.unwrap_or(true) {
                        true => tokenizer.encode(&text)?,
                        false => tokenizer.encode_continuation(&text)?,
                    }
                }
            };
            let texts = tokens.iter().map(|&id| Ok(tokenizer.piece(id)?.text)).collect::<ApiResult<Vec<_>>>()?;
            Ok(Json(json!({
                "tokens": tokens,
                "count": tokens.len(),
                "max_model_len": of_thread.service.context(),
                "token_strs": texts,
            })))
        })
        .await
}

/// `/detokenize`: the text of `tokens`, without control tokens.
pub async fn detokenize(Shared(served): Shared<State>, body: JsonObject) -> ApiResult<Json<Value>> {
    let mut fields = body.fields();
    let tokenizer = served.tokenizer()?;
    served.check_model(fields.take::<String>("model")?.as_deref())?;
    let Some(tokens) = fields.take::<Vec<u32>>("tokens")? else {
        return Err(ApiError::field("tokens", "\"tokens\" is missing: a list of token ids"));
    };
    check_ids(&tokens, tokenizer.vocab_size()).map_err(|e| ApiError::field("tokens", e.to_string()))?;
    let text = tokenizer.decode(&tokens)?;
    Ok(Json(json!({"prompt": text, "content": text})))
}

/// `/tokenizer_info`
pub async fn info(Shared(served): Shared<State>) -> ApiResult<Json<Value>> {
    let tokenizer = served.tokenizer()?;
    let special = tokenizer.special();
    let name = |id: u32| Ok::<_, ApiError>(tokenizer.piece(id)?.text);
    Ok(Json(json!({
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": name(special.bos)?,
        "eos_token": name(special.eos)?,
        "pad_token": tokenizer.pad_token(),
        "chat_template": tokenizer.chat_template(),
        "add_bos_token": true,
        "vocab_size": tokenizer.vocab_size(),
        "model_max_length": served.service.context(),
    })))
}

/// `/apply-template`: a conversation as the chat template writes it, with its token ids.
pub async fn apply_template(Shared(served): Shared<State>, body: JsonObject) -> ApiResult<Json<Value>> {
    let (mut fields, tokenizer) = (body.fields(), served.tokenizer()?);
    let Some((messages, continues)) = conversation(&mut fields)? else {
        return Err(ApiError::field("messages", "\"messages\" is missing: the conversation"));
    };
    let chat = render(tokenizer, &messages, continues)?;
    Ok(Json(json!({"prompt": chat.text(), "tokens": tokenizer.encode_rendered(&chat)?})))
}

/// Takes a conversation, and whether its last message is continued.
fn conversation(fields: &mut Fields) -> ApiResult<Option<(Vec<Message>, bool)>> {
    let continues = fields.take("continue_final_message")?.unwrap_or(false);
    Ok(messages(fields)?.map(|messages| (messages, continues)))
}

fn render(tokenizer: &Tokenizer, messages: &[Message], continues: bool) -> ApiResult<crate::tokenizer::RenderedChat> {
    Ok(if continues { tokenizer.render_chat_to_continue(messages)? } else { tokenizer.render_chat(messages)? })
}
