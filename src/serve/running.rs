//! The prompts of one HTTP request in the engine. Dropping them cancels those that are not
//! finished.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    error::{ApiError, ApiResult},
    record::Record,
    served::Served,
};
use crate::{
    engine::{
        Answer, Request,
        service::{Happened, Updates, Work},
    },
    runtime::Token,
};

/// Prompts under way.
pub struct Running {
    prompts: Vec<Prompt>,
    pub record: Record,
}

struct Prompt {
    updates: Updates,
    /// Answers that are not finished.
    remaining: usize,
}

/// What comes next: of which prompt, which of its answers, and what of it.
pub struct Part {
    pub prompt: usize,
    pub index: usize,
    pub part: PartKind,
}

pub enum PartKind {
    /// The answer has its slot.
    Start,
    More {
        tokens: Vec<Token>,
        text: String,
    },
    End(Box<Answer>),
}

impl Running {
    /// Queues all requests.
    ///
    /// # Errors
    /// One is refused; the others are cancelled.
    pub fn submit(served: &Served, requests: &[Request], key: &Arc<str>, mut record: Record) -> ApiResult<Self> {
        let works = requests.iter().map(|request| Work::Generate(Box::new(request.clone()))).collect();
        let updates = served.submit(works, key)?.into_iter().zip(requests);
        let prompts = updates.map(|(updates, request)| Prompt { updates, remaining: request.n }).collect();
        record.taken();
        Ok(Self { prompts, record })
    }

    /// Waits for the next part; `None` after all answers are finished.
    ///
    /// # Errors
    /// A request failed: there is nothing more.
    pub async fn next(&mut self) -> ApiResult<Option<Part>> {
        loop {
            if self.prompts.iter().all(|prompt| prompt.remaining == 0) {
                return Ok(None);
            }
            let (prompt, update) = poll_fn(|context| self.poll(context)).await;
            let Some(update) = update else {
                return Err(ApiError::internal("the engine's thread has ended; please report it"));
            };
            self.record.observe(&update);
            let (index, part) = match update.happened {
                Happened::Started { index, .. } => (index, PartKind::Start),
                Happened::Tokens { index, tokens, text } => (index, PartKind::More { tokens, text }),
                Happened::Finished { index, answer } => {
                    self.prompts[prompt].remaining -= 1;
                    (index, PartKind::End(Box::new(answer)))
                }
                Happened::Failed(failure) => return Err(failure.into()),
                Happened::Scored(_) => continue, // nothing is only scored here
            };
            return Ok(Some(Part { prompt, index, part }));
        }
    }

    /// The next update of any prompt that is not finished.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<(usize, Option<crate::engine::service::Update>)> {
        for (i, prompt) in self.prompts.iter_mut().enumerate().filter(|(_, prompt)| prompt.remaining > 0) {
            if let Poll::Ready(update) = prompt.updates.poll_next(context) {
                return Poll::Ready((i, update));
            }
        }
        Poll::Pending
    }
}
