//! A conversation whose keys and values stay in the cache: each turn prefills only what is new.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Driven, Engine, Event, FinishReason, Request, RequestId, Workload, drive};
use crate::{
    runtime::{Error, Model, Result},
    sampling::Params,
    tokenizer::{Message, RenderedChat, Role, Tokenizer},
};

/// A conversation in the only slot of an engine.
pub struct Conversation {
    tokenizer: Arc<Tokenizer>,
    engine: Engine,
    /// Instructions before the first message.
    system: Option<String>,
    /// Questions and answers in turn.
    messages: Vec<Message>,
    /// The conversation as it stood after each of the last turns.
    rendered: Vec<RenderedTurns>,
}

/// A conversation up to the end of an answer, as the chat template writes it. An answer's tokens
/// are those that the model chose, which need not be those that its text would be tokenized into.
struct RenderedTurns {
    chat: RenderedChat,
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

impl Conversation {
    /// An empty conversation of up to `context` tokens. `system` is put before its first message.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the cache does not fit.
    pub fn new(model: Arc<Model>, tokenizer: Arc<Tokenizer>, context: i64, system: Option<String>) -> Result<Self> {
        let engine = Engine::new(model, tokenizer.clone(), 1, context)?;
        Ok(Self { tokenizer, engine, system, messages: vec![], rendered: vec![] })
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
        self.engine.cached_tokens()
    }

    /// Most tokens that the conversation can have.
    pub fn context(&self) -> i64 {
        self.engine.cache_len()
    }

    /// Goes on from another conversation: whole turns, beginning with the user. What the cache
    /// holds of it stays.
    ///
    /// # Errors
    /// Messages that are not questions and answers in turn.
    pub fn replace(&mut self, messages: Vec<Message>, system: Option<String>) -> Result<()> {
        let role = |at: usize| if at.is_multiple_of(2) { Role::User } else { Role::Assistant };
        if !messages.len().is_multiple_of(2) || messages.iter().enumerate().any(|(at, m)| m.role != role(at)) {
            return Err(Error::Invalid(
                "a conversation is made of questions and answers in turn: user, assistant, user, assistant ...".into(),
            ));
        }
        (self.messages, self.system) = (messages, system);
        self.rendered.clear();
        Ok(())
    }

    /// Takes the last turn back and returns its question; `None` if there is no turn.
    pub fn undo(&mut self) -> Option<String> {
        self.messages.pop()?;
        self.rendered.pop();
        self.messages.pop().map(|question| question.content)
    }

    /// Asks, and returns the answer, which `on_text` gets piece by piece: it is called for each
    /// token, and may end the answer.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if fewer than `room` tokens are left for an answer; the conversation
    /// stays as it was. So it does after any other error, but then the cache is empty.
    pub fn ask(
        &mut self,
        question: &str,
        max_tokens: usize,
        room: usize,
        params: Params,
        mut on_text: impl FnMut(&str) -> Option<FinishReason>,
    ) -> Result<Turn> {
        let (mut chat, tokens) = self.prompt(question)?;
        if tokens.len() + room > self.context() as usize {
            return Err(Error::ContextFull { prompt: tokens.len(), room, context: self.context() });
        }
        let request =
            Request { params, stop_ids: self.tokenizer.chat_stop_ids(), ..Request::greedy(tokens.clone(), max_tokens) };
        let (cached, started) = (self.engine.stats().cached, Instant::now());
        let (mut answer, mut new, mut prefill) = (String::new(), vec![], None);
        let finish_reason = self.run(request, &mut |piece, tokens| {
            prefill.get_or_insert_with(|| started.elapsed());
            answer.push_str(piece);
            new.extend_from_slice(tokens);
            on_text(piece)
        })?;
        let kept = (self.engine.stats().cached - cached) as usize;
        let prefill = prefill.unwrap_or_default();
        let decode = started.elapsed() - prefill;
        let prompt = tokens.len();
        self.messages.extend([Message::user(question), Message::assistant(&answer)]);
        chat.push_str(&answer);
        self.rendered.push(RenderedTurns { chat, tokens: [tokens, new.clone()].concat() });
        Ok(Turn { answer, prompt, kept, tokens: new, finish_reason, prefill, decode })
    }

    /// Runs one request; `on_new` gets text and tokens as they come, and may end it.
    fn run(
        &mut self,
        request: Request,
        on_new: &mut dyn FnMut(&str, &[u32]) -> Option<FinishReason>,
    ) -> Result<FinishReason> {
        self.engine.prepare(&request)?;
        let mut turn = RunningTurn { request: Some(request), id: None, on_new, finish_reason: None };
        let driven = drive(&mut self.engine, &mut turn)?;
        if let (Driven::Stopped, Some(id)) = (driven, turn.id) {
            self.engine.cancel(id);
        }
        turn.finish_reason.ok_or_else(|| Error::Invalid("the answer has no end".into()))
    }

    /// Drops the oldest turns until there are `room` tokens for an answer to this question; returns
    /// how many turns that took.
    ///
    /// # Errors
    /// [`Error::ContextFull`] if the question alone is too long; then nothing is dropped.
    pub fn drop_oldest(&mut self, question: &str, room: usize) -> Result<usize> {
        let all = std::mem::take(&mut self.messages);
        self.rendered.clear();
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
    fn prompt(&self, question: &str) -> Result<(RenderedChat, Vec<u32>)> {
        let system = self.system.iter().map(Message::system);
        let messages: Vec<Message> =
            system.chain(self.messages.iter().cloned()).chain([Message::user(question)]).collect();
        let chat = self.tokenizer.render_chat(&messages)?;
        // The end of a turn is a token of its own, so that what follows can be cut into tokens
        // alone. A template may have trimmed the answer; then it is another text, and is written
        // anew.
        if let Some(rendered) = self.rendered.last()
            && let Some(new) = chat.strip_prefix(&rendered.chat)
            && let Some(ids) = self.tokenizer.encode_next_turn(&new)?
        {
            return Ok((chat, [rendered.tokens.clone(), ids].concat()));
        }
        let tokens = self.tokenizer.encode_rendered(&chat)?;
        Ok((chat, tokens))
    }
}

/// The only request of an engine.
struct RunningTurn<'f> {
    request: Option<Request>,
    id: Option<RequestId>,
    on_new: &'f mut dyn FnMut(&str, &[u32]) -> Option<FinishReason>,
    finish_reason: Option<FinishReason>,
}

impl Workload for RunningTurn<'_> {
    type Error = Error;

    fn submit(&mut self, engine: &mut Engine) -> Result<bool> {
        if let Some(request) = self.request.take() {
            let id = engine.submit(request).map_err(|refusal| Error::Invalid(refusal.to_string()))?;
            self.id = Some(id);
        }
        Ok(false)
    }

    fn event(&mut self, _: &mut Engine, event: Event) -> Result<()> {
        match event {
            Event::Tokens { tokens, text, .. } if self.finish_reason.is_none() => {
                let tokens: Vec<u32> = tokens.iter().map(|token| token.id).collect();
                self.finish_reason = (self.on_new)(&text, &tokens);
            }
            Event::Finished { answer, .. } => {
                self.finish_reason.get_or_insert(answer.finish_reason);
            }
            Event::Failed { error, .. } => return Err(Error::Invalid(error)),
            Event::Started { .. } | Event::Tokens { .. } | Event::Scored { .. } => {}
        }
        Ok(())
    }

    fn goes_on(&self) -> bool {
        self.finish_reason.is_none()
    }
}
