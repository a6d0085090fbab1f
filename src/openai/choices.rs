//! Answers as OpenAI writes them, where tokens are texts: whole ones, and parts of a stream.

use serde_json::{Map, Value, json};

use crate::{
    engine::{Answer, Request, Stop},
    runtime::Token,
    tokenizer::{Piece, Tokenizer, TokenizerError},
};

type Result<T> = std::result::Result<T, TokenizerError>;

/// Writes the answers to a request.
#[derive(Clone, Copy)]
pub struct Choices<'r> {
    pub request: &'r Request,
    pub tokenizer: &'r Tokenizer,
}

impl Choices<'_> {
    /// Returns an element of the list `choices` of a `chat.completion`.
    ///
    /// # Errors
    /// The tokenizer cannot turn a token into text.
    pub fn chat(&self, index: usize, answer: &Answer) -> Result<Value> {
        Ok(json!({
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": null},
            "logprobs": self.chat_logprobs(&answer.tokens)?,
            "finish_reason": answer.finish_reason.name(),
            "stop_reason": stop_reason(answer),
        }))
    }

    /// Returns an element of the list `choices` of a `text_completion`, with the prompt's text
    /// first if it is wanted.
    ///
    /// # Errors
    /// As [`Self::chat`].
    pub fn completion(&self, index: usize, answer: &Answer) -> Result<Value> {
        let prompt = self.echoed()?;
        let mut offset = TextOffset::default();
        let logprobs = match self.request.logprobs {
            Some(_) => {
                let tokens = answer.prompt.iter().flatten().chain(&answer.tokens);
                self.completion_logprobs(answer.prompt.is_some(), tokens, &mut offset)?
            }
            None => Value::Null,
        };
        Ok(json!({
            "index": index,
            "text": prompt + &answer.text,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason.name(),
            "stop_reason": stop_reason(answer),
        }))
    }

    /// Returns the text that stands before an answer.
    ///
    /// # Errors
    /// As [`Self::chat`].
    pub fn echoed(&self) -> Result<String> {
        if self.request.echo { self.tokenizer.decode(&self.request.prompt) } else { Ok(String::new()) }
    }

    /// Returns the field `logprobs` of a choice of a chat, for these tokens; null if none are
    /// wanted.
    ///
    /// # Errors
    /// As [`Self::chat`].
    pub fn chat_logprobs(&self, tokens: &[Token]) -> Result<Value> {
        if self.request.logprobs.is_none() {
            return Ok(Value::Null);
        }
        let content = tokens.iter().map(|token| self.chat_token(token));
        Ok(json!({"content": content.collect::<Result<Vec<_>>>()?, "refusal": null}))
    }

    fn chat_token(&self, token: &Token) -> Result<Value> {
        let entry = |id: u32, logprob: f32| {
            let Piece { text, bytes } = self.tokenizer.piece(id)?;
            Ok(json!({"token": text, "logprob": finite(logprob), "bytes": bytes}))
        };
        let (own, top) = logprobs(token);
        let mut entry_of_token = entry(token.id, own)?;
        let top = top.iter().map(|&(id, logprob)| entry(id, logprob));
        entry_of_token["top_logprobs"] = top.collect::<Result<Vec<_>>>()?.into();
        Ok(entry_of_token)
    }

    /// Returns the lists of `logprobs` of a completion, for tokens whose text begins at `offset`,
    /// which moves behind them. The prompt's first token, if it is there, has no likelihood.
    ///
    /// # Errors
    /// As [`Self::chat`].
    pub fn completion_logprobs<'t>(
        &self,
        with_first: bool,
        scored: impl Iterator<Item = &'t Token>,
        offset: &mut TextOffset,
    ) -> Result<Value> {
        let (mut tokens, mut own, mut top, mut offsets) = (vec![], vec![], vec![], vec![]);
        let mut add = |piece: Piece, logprob: Value, likeliest: Value| {
            offsets.push(offset.0.saturating_sub(usize::from(piece.continues_character())));
            offset.0 += piece.chars();
            tokens.push(piece.text);
            own.push(logprob);
            top.push(likeliest);
        };
        if with_first {
            add(self.tokenizer.piece(self.request.prompt[0])?, Value::Null, Value::Null);
        }
        for token in scored {
            let (logprob, likeliest) = logprobs(token);
            let mut object = Map::new();
            for &(id, logprob) in likeliest {
                object.insert(self.tokenizer.piece(id)?.text, finite(logprob).into());
            }
            // lm-eval finds out whether the token is the likeliest one by looking for it here.
            let piece = self.tokenizer.piece(token.id)?;
            if !likeliest.is_empty() {
                object.insert(piece.text.clone(), finite(logprob).into());
            }
            add(piece, finite(logprob).into(), object.into());
        }
        Ok(json!({"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets}))
    }
}

/// The number of characters before the next token of a completion.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextOffset(usize);

/// Returns vLLM's `stop_reason`: the string or id that ended an answer; null if none did.
pub fn stop_reason(answer: &Answer) -> Value {
    match &answer.stopped_by {
        Some(Stop::Token(id)) => json!(id),
        Some(Stop::Text(text)) => json!(text),
        None => Value::Null,
    }
}

fn logprobs(token: &Token) -> (f32, &[(u32, f32)]) {
    token.logprobs.as_ref().map_or((f32::NEG_INFINITY, &[]), |logprobs| (logprobs.own, &logprobs.top))
}

/// Returns a log-probability as OpenAI writes it: -9999 for what is impossible.
pub fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
