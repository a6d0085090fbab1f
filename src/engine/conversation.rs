//! A conversation whose keys and values stay in the cache: each turn prefills only what is new.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Engine, Event, FinishReason, Request};
use crate::{
    runtime::{Error, Model, Result},
    sampling::Params,
    tokenizer::{Message, Role, Tokenizer},
};

/// A conversation in the only slot of an engine.
pub struct Conversation<'t> {
    tokenizer: &'t Tokenizer,
    model: Arc<Model>,
    engine: Engine<'t>,
    /// Text before the first message: Gemma has no system role.
    system: Option<String>,
    /// Questions and answers in turn.
    messages: Vec<Message>,
    /// The conversation as it stood after each of the last turns.
    written: Vec<Written>,
}

/// A conversation up to the end of an answer, as the chat template writes it. An answer's tokens are those that the model
/// chose, which need not be those that its text would be cut into.
struct Written {
    text: String,
    tokens: Vec<u32>,
}

/// A finished turn.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The answer's text.
    pub answer: String,
    /// Tokens of the whole conversation up to the answer.
    pub prompt: usize,
    /// How many of them were in the cache.
    pub kept: usize,
    pub tokens: Vec<u32>,
    pub finish_reason: FinishReason,
    /// Until the first token, and from then on.
    pub prefill: Duration,
    pub decode: Duration,
}

impl<'t> Conversation<'t> {
    /// An empty conversation of up to `context` tokens. `system` is put before its first message.
    pub fn new(model: Arc<Model>, tokenizer: &'t Tokenizer, context: i64, system: Option<String>) -> Result<Self> {
        let engine = Engine::new(model.clone(), tokenizer, 1, context)?;
        Ok(Self { tokenizer, model, engine, system, messages: vec![], written: vec![] })
    }

    /// Questions and answers so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The text before the first message.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Tokens in the cache.
    pub fn cached(&self) -> usize {
        self.engine.held()
    }

    /// Most tokens that the conversation can have.
    pub fn context(&self) -> i64 {
        self.engine.cache_len()
    }

    /// Goes on from another conversation: whole turns, beginning with the user. What the cache holds of it stays.
    pub fn replace(&mut self, messages: Vec<Message>, system: Option<String>) -> Result<()> {
        let role = |at: usize| if at.is_multiple_of(2) { Role::User } else { Role::Assistant };
        if !messages.len().is_multiple_of(2) || messages.iter().enumerate().any(|(at, m)| m.role != role(at)) {
            return Err(Error::Invalid(
                "a conversation is made of questions and answers in turn: user, assistant, user, assistant ...".into(),
            ));
        }
        (self.messages, self.system) = (messages, system);
        self.written.clear();
        Ok(())
    }

    /// Takes the last turn back and returns its question; `None` if there is no turn.
    pub fn undo(&mut self) -> Option<String> {
        self.messages.pop()?;
        self.written.pop();
        self.messages.pop().map(|question| question.content)
    }

    /// Asks, and returns the answer, which `on_text` gets piece by piece: it is called for each token, and may end the answer.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if fewer than `room` tokens are left for an answer; the conversation stays as it was. So it does
    /// after any other error, but then the cache is empty.
    pub fn ask(
        &mut self,
        question: &str,
        max_tokens: usize,
        room: usize,
        params: Params,
        mut on_text: impl FnMut(&str) -> Option<FinishReason>,
    ) -> Result<Turn> {
        let (text, tokens) = self.prompt(question)?;
        if tokens.len() + room > self.context() as usize {
            return Err(Error::ContextFull { prompt: tokens.len(), room, context: self.context() });
        }
        let request =
            Request { params, stop_ids: self.tokenizer.stop_ids(), ..Request::greedy(tokens.clone(), max_tokens) };
        let (cached, started) = (self.engine.stats().cached, Instant::now());
        let (mut answer, mut new, mut prefill) = (String::new(), vec![], None);
        let finish_reason = self.run(request, |piece, tokens| {
            prefill.get_or_insert_with(|| started.elapsed());
            answer.push_str(piece);
            new.extend_from_slice(tokens);
            on_text(piece)
        });
        let finish_reason = match finish_reason {
            Ok(reason) => reason,
            Err(error) => {
                // A failed step takes the caches with it.
                if let Ok(engine) = Engine::new(self.model.clone(), self.tokenizer, 1, self.context()) {
                    self.engine = engine;
                }
                return Err(error);
            }
        };
        let kept = (self.engine.stats().cached - cached) as usize;
        let prefill = prefill.unwrap_or_default();
        let decode = started.elapsed() - prefill;
        let prompt = tokens.len();
        self.messages.extend([Message::user(question), Message::assistant(&answer)]);
        self.written.push(Written { text: text + &answer, tokens: [tokens, new.clone()].concat() });
        Ok(Turn { answer, prompt, kept, tokens: new, finish_reason, prefill, decode })
    }

    /// Runs one request; `on_new` gets text and tokens as they come, and may end it.
    fn run(
        &mut self,
        request: Request,
        mut on_new: impl FnMut(&str, &[u32]) -> Option<FinishReason>,
    ) -> Result<FinishReason> {
        self.engine.prepare(&request)?;
        let id = self.engine.submit(request)?;
        loop {
            for event in self.engine.step()? {
                match event {
                    Event::Tokens { tokens, text, .. } => {
                        let tokens: Vec<u32> = tokens.iter().map(|token| token.id).collect();
                        if let Some(reason) = on_new(&text, &tokens) {
                            self.engine.cancel(id);
                            return Ok(reason);
                        }
                    }
                    Event::Finished { answer, .. } => return Ok(answer.finish_reason),
                }
            }
        }
    }

    /// Drops the oldest turns until there are `room` tokens for an answer to this question; returns how many turns that took.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if the question alone is too long; then nothing is dropped.
    pub fn drop_oldest(&mut self, question: &str, room: usize) -> Result<usize> {
        let all = std::mem::take(&mut self.messages);
        self.written.clear();
        for dropped in 0..=all.len() / 2 {
            self.messages = all[2 * dropped..].to_vec();
            if self.prompt(question)?.1.len() + room <= self.context() as usize {
                return Ok(dropped);
            }
        }
        let prompt = self.prompt(question)?.1.len();
        self.messages = all;
        Err(Error::ContextFull { prompt, room, context: self.context() })
    }

    /// The conversation with one more question, as the template writes it and as tokens.
    fn prompt(&self, question: &str) -> Result<(String, Vec<u32>)> {
        let mut messages = self.messages.clone();
        messages.push(Message::user(question));
        if let Some(system) = &self.system {
            messages[0].content = format!("{system}\n\n{}", messages[0].content);
        }
        let text = self.tokenizer.render_chat(&messages)?;
        if let Some(written) = self.written.last() {
            // The end of a turn is a token of its own, so that what follows can be cut into tokens alone. A template may have
            // trimmed the answer; then it is another text, and is written anew.
            if let Some(new) = text.strip_prefix(&written.text).filter(|new| new.starts_with("<end_of_turn>")) {
                let tokens = [written.tokens.clone(), self.tokenizer.encode_continuation(new)?].concat();
                return Ok((text, tokens));
            }
        }
        let tokens = self.tokenizer.encode(&text)?;
        Ok((text, tokens))
    }
}
