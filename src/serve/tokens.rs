//! Text to tokens and back: `/tokenize`, `/detokenize`, `/tokenizer_info`, `/apply-template`. The
//! first three are vLLM's, which lm-evaluation-harness asks; llama-server's names of their fields
//! are taken, too.

use axum::{Json, extract::State as Shared};
use serde_json::{Value, json};

use super::{
    body::JsonObject,
    error::{ApiError, ApiResult},
    served::{Served, State},
};
use crate::{
    openai::{Fields, messages},
    tokenizer::{Message, RenderedChat, Tokenizer, check_ids},
};

/// `/tokenize`: of `prompt` (or `content`), or of `messages` in the chat format.
pub async fn tokenize(Shared(served): Shared<State>, body: JsonObject) -> ApiResult<Json<Value>> {
    beside(served, body, |served, tokenizer, mut fields| {
        let (prompt, content) = (fields.take::<String>("prompt")?, fields.take::<String>("content")?);
        let with_bos = fields.take("add_special_tokens")?.unwrap_or(true);
        let tokens = match (conversation(&mut fields)?, prompt.or(content)) {
            (Some((messages, continues)), None) => {
                tokenizer.encode_rendered(&render(tokenizer, &messages, continues)?)?
            }
            (None, Some(text)) if with_bos => tokenizer.encode(&text)?,
            (None, Some(text)) => tokenizer.encode_continuation(&text)?,
            _ => return Err(ApiError::field("prompt", "give one of \"prompt\", a text, and \"messages\"")),
        };
        let texts = tokens.iter().map(|&id| Ok(tokenizer.piece(id)?.text)).collect::<ApiResult<Vec<_>>>()?;
        Ok(json!({
            "tokens": tokens,
            "count": tokens.len(),
            "max_model_len": served.service.context(),
            "token_strs": texts,
        }))
    })
    .await
}

/// `/detokenize`: the text of `tokens`, without control tokens.
pub async fn detokenize(Shared(served): Shared<State>, body: JsonObject) -> ApiResult<Json<Value>> {
    beside(served, body, |_, tokenizer, mut fields| {
        let Some(tokens) = fields.take::<Vec<u32>>("tokens")? else {
            return Err(ApiError::field("tokens", "\"tokens\" is missing: a list of token ids"));
        };
        check_ids(&tokens, tokenizer.vocab_size()).map_err(|e| ApiError::field("tokens", e.to_string()))?;
        let text = tokenizer.decode(&tokens)?;
        Ok(json!({"prompt": text, "content": text}))
    })
    .await
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
    beside(served, body, |_, tokenizer, mut fields| {
        let Some((messages, continues)) = conversation(&mut fields)? else {
            return Err(ApiError::field("messages", "\"messages\" is missing: the conversation"));
        };
        let chat = render(tokenizer, &messages, continues)?;
        Ok(json!({"prompt": chat.text(), "tokens": tokenizer.encode_rendered(&chat)?}))
    })
    .await
}

/// Reads a request and answers it on a thread that nothing else waits for.
async fn beside(
    served: State,
    body: JsonObject,
    answer: impl FnOnce(&Served, &Tokenizer, Fields) -> ApiResult<Value> + Send + 'static,
) -> ApiResult<Json<Value>> {
    let of_thread = served.clone();
    let run = move || {
        let mut fields = body.fields();
        of_thread.check_model(fields.take::<String>("model")?.as_deref())?;
        answer(&of_thread, of_thread.tokenizer()?, fields)
    };
    served.beside(run).await.map(Json)
}

/// Takes a conversation, and whether its last message is continued.
fn conversation(fields: &mut Fields) -> ApiResult<Option<(Vec<Message>, bool)>> {
    let continues = fields.take("continue_final_message")?.unwrap_or(false);
    Ok(messages(fields)?.map(|messages| (messages, continues)))
}

fn render(tokenizer: &Tokenizer, messages: &[Message], continues: bool) -> ApiResult<RenderedChat> {
    Ok(if continues { tokenizer.render_chat_to_continue(messages)? } else { tokenizer.render_chat(messages)? })
}
