//! One streamed answer: when its tokens arrived.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use serde::Deserialize;
use serde_json::Value;

use super::{
    client::{Failure, FailureKind, Server, error_message},
    sse::Events,
};

/// A request that was sent, and what came of it.
pub(super) struct Record {
    pub sent: Instant,
    pub ended: Instant,
    pub result: Result<Answer, Failure>,
}

/// An answer that arrived whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// Chunks with tokens, in the order of their arrival.
    pub chunks: Vec<TokenChunk>,
    /// The server's count of the prompt's tokens.
    pub prompt_tokens: Option<u64>,
    /// How many of these it had in a cache.
    pub cached_tokens: Option<u64>,
    /// The tokens of the answer: the server's count, or else the number of chunks.
    pub tokens: u64,
    pub counted_by_server: bool,
}

/// Tokens that arrived together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TokenChunk {
    /// The time since the request was sent.
    pub at: Duration,
    /// Their number. It is not whole where the server counts only the answer, which is then divided
    /// evenly among its chunks.
    pub tokens: f64,
}

impl Answer {
    /// Returns the time to the first token (TTFT).
    pub fn first_token(&self) -> Option<Duration> {
        self.chunks.first().map(|chunk| chunk.at)
    }

    /// Returns the time for each token after the first chunk (TPOT), in seconds. A first chunk with
    /// one token makes this the usual (end - TTFT) / (tokens - 1).
    pub fn time_per_token(&self) -> Option<f64> {
        let (first, last) = (self.chunks.first()?, self.chunks.last()?);
        let tokens: f64 = self.chunks[1..].iter().map(|chunk| chunk.tokens).sum();
        (tokens > 0.0).then(|| (last.at - first.at).as_secs_f64() / tokens)
    }

    /// Returns the gaps between tokens (ITL) in seconds, each with the number of tokens that it
    /// stands for: the gap before a chunk is divided among the chunk's tokens.
    pub fn gaps(&self) -> impl Iterator<Item = (f64, f64)> {
        let gap = |pair: &[TokenChunk]| ((pair[1].at - pair[0].at).as_secs_f64() / pair[1].tokens, pair[1].tokens);
        self.chunks.windows(2).map(gap)
    }
}

/// Sends a request that asks for a stream, and reads the answer to its end.
pub(super) async fn ask(server: &Server, path: &str, body: Bytes, timeout: Duration) -> Record {
    let sent = Instant::now();
    let answer = async {
        let reply = server.open(path, body).await?;
        read(reply.into_body(), sent).await
    };
    let result = tokio::time::timeout(timeout, answer).await;
    let late =
        |_| Err(Failure::new(FailureKind::Timeout, format!("no whole answer within {} s", timeout.as_secs_f64())));
    Record { sent, ended: Instant::now(), result: result.unwrap_or_else(late) }
}

async fn read(mut body: Incoming, sent: Instant) -> Result<Answer, Failure> {
    let (mut events, mut stream) = (Events::default(), Stream::default());
    while let Some(frame) = body.frame().await {
        let at = sent.elapsed();
        match frame {
            Ok(frame) => {
                for event in events.push(frame.data_ref().map_or(&[][..], |data| data)) {
                    stream.take(&event, at)?;
                }
            }
            Err(_) if stream.is_done => break,
            Err(error) => {
                return Err(Failure::new(FailureKind::ClosedEarly, format!("{:#}", anyhow::Error::new(error))));
            }
        }
    }
    stream.finish()
}

/// A chunk of `/v1/completions` or `/v1/chat/completions`, as far as it is measured.
#[derive(Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    role: Option<String>,
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptTokens>,
}

#[derive(Deserialize)]
struct PromptTokens {
    cached_tokens: Option<u64>,
}

impl Choice {
    /// Returns whether a token arrived: text, or an empty text for a token that has made none yet,
    /// such as the first bytes of a character. The chunk that only names the role and the one that
    /// only ends the answer have none.
    fn has_token(&self) -> bool {
        let is_running = self.finish_reason.is_none();
        let is_token = |text: &String, may_be_empty: bool| !text.is_empty() || may_be_empty;
        let of_delta = |delta: &Delta| {
            let may_be_empty = is_running && delta.role.is_none();
            [&delta.content, &delta.reasoning_content].into_iter().flatten().any(|text| is_token(text, may_be_empty))
        };
        self.text.as_ref().is_some_and(|text| is_token(text, is_running)) || self.delta.as_ref().is_some_and(of_delta)
    }
}

/// The state of a stream after the events so far.
#[derive(Default)]
struct Stream {
    chunks: Vec<TokenChunk>,
    usage: Option<Usage>,
    /// The tokens of the answer by the newest count in a chunk (`continuous_usage_stats`).
    counted: Option<u64>,
    has_ended: bool,
    is_done: bool,
}

impl Stream {
    fn take(&mut self, event: &[u8], at: Duration) -> Result<(), Failure> {
        if self.is_done {
            return Ok(());
        }
        if event.starts_with(b"[DONE]") {
            self.is_done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(event).map_err(|error| {
            Failure::new(FailureKind::Malformed, format!("{error} in {}", String::from_utf8_lossy(event)))
        })?;
        if let Some(error) = chunk.error {
            return Err(Failure::new(FailureKind::InStream, error_message(&error)));
        }
        let choice = chunk.choices.as_ref().and_then(|choices| choices.first());
        if let Some(choice) = choice {
            self.has_ended |= choice.finish_reason.is_some();
            match chunk.usage.as_ref().and_then(|usage| usage.completion_tokens) {
                Some(total) => {
                    let new = total.saturating_sub(self.counted.unwrap_or_default());
                    self.counted = Some(total);
                    if new > 0 {
                        self.chunks.push(TokenChunk { at, tokens: new as f64 });
                    }
                }
                None if choice.has_token() => self.chunks.push(TokenChunk { at, tokens: 1.0 }),
                None => (),
            }
        }
        self.usage = chunk.usage.or(self.usage.take());
        Ok(())
    }

    /// Returns the answer, if its end arrived.
    fn finish(self) -> Result<Answer, Failure> {
        if !self.is_done && !self.has_ended {
            let kind = FailureKind::ClosedEarly;
            return Err(Failure::new(kind, "the stream ended without a finish_reason and without [DONE]"));
        }
        let usage = self.usage.as_ref();
        let total = usage.and_then(|usage| usage.completion_tokens);
        let mut chunks = self.chunks;
        let arrived: f64 = chunks.iter().map(|chunk| chunk.tokens).sum();
        let tokens = total.unwrap_or(arrived as u64);
        if tokens > 0 && arrived == 0.0 {
            return Err(Failure::new(
                FailureKind::Malformed,
                format!("usage counts {tokens} tokens, but none arrived"),
            ));
        }
        // Chunks that were not counted by the server carry equal parts of the answer.
        if self.counted.is_none() {
            chunks.iter_mut().for_each(|chunk| chunk.tokens *= tokens as f64 / arrived);
        }
        Ok(Answer {
            chunks,
            prompt_tokens: usage.and_then(|usage| usage.prompt_tokens),
            cached_tokens: usage.and_then(|usage| usage.prompt_tokens_details.as_ref()?.cached_tokens),
            tokens,
            counted_by_server: total.is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads chunks that arrive 10 ms after each other.
    fn read_chunks(chunks: &[&str]) -> Result<Answer, Failure> {
        let mut stream = Stream::default();
        for (i, chunk) in chunks.iter().enumerate() {
            stream.take(chunk.as_bytes(), Duration::from_millis(10 * (i as u64 + 1)))?;
        }
        stream.finish()
    }

    fn at_and_tokens(answer: &Answer) -> Vec<(u128, f64)> {
        answer.chunks.iter().map(|chunk| (chunk.at.as_millis(), chunk.tokens)).collect()
    }

    #[test]
    fn only_chunks_with_tokens_count() {
        let answer = read_chunks(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[{"delta":{"content":"A"}}]}"#,
            r#"{"choices":[{"delta":{"content":""}}]}"#,
            r#"{"choices":[{"delta":{"content":"é"}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}"#,
            "[DONE]",
        ])
        .unwrap();
        assert_eq!(at_and_tokens(&answer), [(20, 1.0), (30, 1.0), (40, 1.0)]);
        assert_eq!((answer.prompt_tokens, answer.cached_tokens, answer.tokens), (Some(7), Some(2), 3));
        assert_eq!(answer.first_token(), Some(Duration::from_millis(20)));
        assert!((answer.time_per_token().unwrap() - 0.01).abs() < 1e-9);
    }

    #[test]
    fn the_last_token_and_the_end_may_share_a_chunk() {
        let answer = read_chunks(&[
            r#"{"choices":[{"text":"A","finish_reason":null}]}"#,
            r#"{"choices":[{"text":"B","finish_reason":"length"}]}"#,
        ])
        .unwrap();
        assert_eq!((answer.tokens, answer.counted_by_server), (2, false));
        let answer = read_chunks(&[
            r#"{"choices":[{"text":"A","finish_reason":null}]}"#,
            r#"{"choices":[{"text":"","finish_reason":"length"}]}"#,
        ])
        .unwrap();
        assert_eq!(answer.tokens, 1);
    }

    #[test]
    fn chunks_of_several_tokens_are_divided() {
        // Counted in each chunk: 1, 4 and 3 tokens.
        let answer = read_chunks(&[
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":{"completion_tokens":0}}"#,
            r#"{"choices":[{"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}"#,
            r#"{"choices":[{"delta":{"content":"bcde"}}],"usage":{"completion_tokens":5}}"#,
            r#"{"choices":[{"delta":{"content":"fgh"},"finish_reason":"length"}],"usage":{"completion_tokens":8}}"#,
            "[DONE]",
        ])
        .unwrap();
        assert_eq!(at_and_tokens(&answer), [(20, 1.0), (30, 4.0), (40, 3.0)]);
        let gaps: Vec<(f64, f64)> = answer.gaps().collect();
        assert!((gaps[0].0 - 0.0025).abs() < 1e-9 && gaps[0].1 == 4.0, "{gaps:?}");
        assert!((answer.time_per_token().unwrap() - 0.02 / 7.0).abs() < 1e-9);

        // Counted at the end only: 6 tokens in 3 chunks.
        let answer = read_chunks(&[
            r#"{"choices":[{"text":"ab"}]}"#,
            r#"{"choices":[{"text":"cd"}]}"#,
            r#"{"choices":[{"text":"ef","finish_reason":"length"}],"usage":null}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":6}}"#,
            "[DONE]",
        ])
        .unwrap();
        assert_eq!(at_and_tokens(&answer), [(10, 2.0), (20, 2.0), (30, 2.0)]);
        assert!((answer.time_per_token().unwrap() - 0.005).abs() < 1e-9);
    }

    #[test]
    fn failures_are_told_apart() {
        let kind = |chunks: &[&str]| read_chunks(chunks).unwrap_err().kind;
        let token = r#"{"choices":[{"text":"a"}]}"#;
        assert_eq!(kind(&[token]), FailureKind::ClosedEarly);
        assert_eq!(kind(&[]), FailureKind::ClosedEarly);
        assert_eq!(kind(&[token, "<html>"]), FailureKind::Malformed);
        assert_eq!(kind(&[r#"{"choices":[],"usage":{"completion_tokens":3}}"#, "[DONE]"]), FailureKind::Malformed);
        let failed = read_chunks(&[token, r#"{"error":{"message":"step failed","code":500}}"#]).unwrap_err();
        assert_eq!((failed.kind, failed.message.as_str()), (FailureKind::InStream, "step failed"));
    }

    #[test]
    fn an_answer_without_tokens_has_no_times() {
        let answer = read_chunks(&[r#"{"choices":[{"text":"","finish_reason":"stop"}]}"#, "[DONE]"]).unwrap();
        assert_eq!((answer.tokens, answer.first_token(), answer.time_per_token()), (0, None, None));
    }
}
