//! One line of the input: a request with the fields of OpenAI's and vLLM's clients, alone or in
//! OpenAI's batch format.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    args::Args,
    reply::{Body, Envelope},
};
use crate::{
    engine::Request,
    openai::{Fields, Prompt, messages, request},
    tokenizer::Tokenizer,
};

/// A line of the input.
pub struct Line {
    /// Anything; it is copied to the output. Null if the line has none, or is not a JSON object.
    pub id: Value,
    pub envelope: Envelope,
    /// The request and the form of its answer, or the reason why there is none.
    pub request: Result<(Request, Body), String>,
}

impl Line {
    /// Reads a line. Fields that it leaves out are as on the command line.
    pub fn parse(text: &str, args: &Args, tokenizer: &Tokenizer) -> Self {
        let invalid = |reason: String| Self {
            id: Value::Null,
            envelope: Envelope::Plain,
            request: Err(format!("this is no valid request: {reason}")),
        };
        let object = match serde_json::from_str(text) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return invalid("it is no JSON object, such as {\"prompt\": \"...\"}".into()),
            Err(e) => return invalid(e.to_string()),
        };
        let is_openai = ["custom_id", "method", "url", "body"].iter().any(|name| object.contains_key(*name));
        let (id, envelope) = if is_openai { ("custom_id", Envelope::OpenAi) } else { ("id", Envelope::Plain) };
        let mut fields = Fields::new(object);
        let id = fields.value(id).unwrap_or_default();
        let request = match envelope {
            Envelope::Plain => plain(fields, args, tokenizer),
            Envelope::OpenAi => openai(fields, &id, args, tokenizer),
        };
        Self { id, envelope, request: request.map_err(|e| format!("{e:#}")) }
    }

    /// Returns the tokens of the prompt together with its longest answer. 0 if there is no request.
    pub fn tokens(&self) -> usize {
        self.request.as_ref().map_or(0, |(request, _)| request.prompt.len().saturating_add(request.max_tokens))
    }
}

fn plain(mut fields: Fields, args: &Args, tokenizer: &Tokenizer) -> Result<(Request, Body)> {
    let prompts = Prompts::take(&mut fields)?;
    let raw = fields.take("raw")?.unwrap_or(args.raw);
    fields.ignore(&["model"]);
    let request = request(&mut fields, args.request(vec![], prompts.stop_ids(raw, tokenizer))?)?;
    fields.finish()?;
    if request.echo && request.logprobs.is_none() {
        bail!("\"echo\" is for the prompt's log-probabilities: write \"logprobs\": N beside it, or leave it out");
    }
    Ok((Request { prompt: prompts.only()?.tokens(raw, tokenizer)?, ..request }, Body::Plain))
}

/// Reads a line of OpenAI's batch format.
fn openai(mut fields: Fields, id: &Value, args: &Args, tokenizer: &Tokenizer) -> Result<(Request, Body)> {
    let Some(id) = id.as_str() else { bail!("\"custom_id\" must be a string; answers are told apart by it") };
    fields.allow("method", &[json!("POST")], "write \"POST\"")?;
    let url: String = fields.take("url")?.unwrap_or_default();
    let body: Map<String, Value> = fields.take("body")?.context("\"body\" is missing: the request's own fields")?;
    fields.finish()?;

    let is_chat = url.ends_with("/v1/chat/completions");
    if !is_chat && !url.ends_with("/v1/completions") {
        bail!("\"url\" is {url:?}: write \"/v1/chat/completions\" or \"/v1/completions\"");
    }
    let mut body = Fields::new(body);
    let model = body.take("model")?.unwrap_or_else(|| args.model.model.clone());
    let prompts = Prompts::take(&mut body)?;
    let request = request(&mut body, args.request(vec![], prompts.stop_ids(true, tokenizer))?)?;
    body.finish()?;
    let prompt = prompts.only()?;
    match (&prompt, is_chat) {
        (Prompt::Text(_), true) => bail!("\"prompt\" is of /v1/completions; write \"messages\""),
        (Prompt::Messages(_), false) => bail!("\"messages\" is of /v1/chat/completions; write \"prompt\""),
        _ if is_chat && request.echo => bail!("\"echo\" is of /v1/completions; leave it out"),
        _ => {}
    }
    let body = match is_chat {
        true => Body::Chat { id: format!("chatcmpl-{id}"), model },
        false => Body::Completion { id: format!("cmpl-{id}"), model },
    };
    Ok((Request { prompt: prompt.tokens(true, tokenizer)?, ..request }, body))
}

/// The prompts that a line gives: it should be one.
struct Prompts([Option<Prompt>; 3]);

impl Prompts {
    fn take(fields: &mut Fields) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "give one text or one list of token ids; for several, write a line for each")]
        enum Given {
            Text(String),
            Tokens(Vec<u32>),
            OneText([String; 1]),
            OneTokens([Vec<u32>; 1]),
        }
        let prompt = fields.take("prompt")?.map(|given| match given {
            Given::Text(text) | Given::OneText([text]) => Prompt::Text(text),
            Given::Tokens(tokens) | Given::OneTokens([tokens]) => Prompt::Tokens(tokens),
        });
        let messages = messages(fields)?.map(Prompt::Messages);
        let tokens = fields.take("tokens")?.map(Prompt::Tokens);
        Ok(Self([prompt, messages, tokens]))
    }

    /// Ids that end an answer: in the chat format the end of a turn is one.
    fn stop_ids(&self, raw: bool, tokenizer: &Tokenizer) -> Vec<u32> {
        let is_chat = |prompt: &Prompt| match prompt {
            Prompt::Text(_) => !raw,
            Prompt::Tokens(_) => false,
            Prompt::Messages(_) => true,
        };
        let chat = self.0.iter().flatten().any(is_chat);
        if chat { tokenizer.chat_stop_ids() } else { tokenizer.stop_ids().ids.clone() }
    }

    fn only(self) -> Result<Prompt> {
        let mut given = self.0.into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(prompt), None) => Ok(prompt),
            _ => bail!("give one of \"prompt\", \"messages\" and \"tokens\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        constraint::Constraint,
        tokenizer::{TextFiles, minimal_tokenizer_json},
    };

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Line {
        let tokenizer = minimal_tokenizer_json(300).to_string();
        let tokenizer = Tokenizer::new(tokenizer.as_bytes(), &TextFiles::default()).unwrap();
        let cli = Cli::parse_from(["generate", "--seed", "7", "--top-k", "3", "--stop", "#"]);
        Line::parse(line, &cli.args, &tokenizer)
    }

    #[track_caller]
    fn accepted(mut fields: Value) -> Request {
        fields["tokens"] = json!([2, 5]);
        parse(&fields.to_string()).request.unwrap().0
    }

    #[track_caller]
    fn refused(mut fields: Value) -> String {
        fields["tokens"] = json!([2, 5]);
        parse(&fields.to_string()).request.unwrap_err()
    }

    #[test]
    fn fields_mean_what_openai_and_vllm_mean() {
        let request = accepted(json!({"stop": "x", "top_k": -1, "seed": -1, "max_completion_tokens": 9}));
        assert_eq!((request.stop, request.params.top_k), (vec!["x".to_owned()], 0));
        assert_eq!((request.params.seed, request.max_tokens), (7, 9));
        assert_eq!(accepted(json!({"stop": ["x", "y"]})).stop, ["x", "y"]);
        assert_eq!(accepted(json!({"top_k": 0})).params.top_k, 0);
        assert_eq!(accepted(json!({"seed": -2})).params.seed, u64::MAX - 1);
        assert_eq!(accepted(json!({"temperature": "0.7"})).params.temperature, 0.7);
        assert_eq!(accepted(json!({"min_tokens": 3})).min_tokens, 3);
        assert_eq!(accepted(json!({"seed": u64::MAX})).params.seed, u64::MAX);
        assert_eq!(accepted(json!({"max_tokens": 9, "max_completion_tokens": 9})).max_tokens, 9);
        assert_eq!(accepted(json!({"n": 3, "best_of": 3})).n, 3);
        assert_eq!(accepted(json!({"ignore_eos": true, "stop_token_ids": [4]})).stop_ids, [4]);
        assert_eq!(accepted(json!({})).constraint, None);
        let format = json!({"response_format": {"type": "json_object"}});
        assert_eq!(accepted(format).constraint, Some(Constraint::JsonObject));
        assert_eq!(accepted(json!({"guided_regex": "a+"})).constraint, Some(Constraint::Regex("a+".into())));
        for (given, wanted) in [
            (json!({"logprobs": true, "top_logprobs": 2}), Some(2)),
            (json!({"logprobs": true}), Some(0)),
            (json!({"logprobs": 2}), Some(2)),
            (json!({"logprobs": 2, "top_logprobs": 2}), Some(2)),
            (json!({"logprobs": 0}), Some(0)),
            (json!({"logprobs": false, "top_logprobs": 0}), None),
            (json!({"logprobs": null, "top_logprobs": null}), None),
        ] {
            assert_eq!(accepted(given.clone()).logprobs, wanted, "{given}");
        }
    }

    #[test]
    fn a_limit_beyond_all_numbers_is_the_longest_answer() {
        let line = parse(r#"{"tokens": [2, 5], "max_tokens": 18446744073709551615}"#);
        assert_eq!(line.tokens(), usize::MAX);
        assert_eq!(parse("{}").tokens(), 0);
    }

    #[test]
    fn null_means_that_a_field_is_not_given() {
        let names = ["prompt", "messages", "raw", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "n"];
        let more =
            ["stop", "stop_token_ids", "logit_bias", "logprobs", "echo", "tools", "response_format", "user", "id"];
        for name in names.into_iter().chain(more) {
            let request = accepted(json!({name: null}));
            assert_eq!((request.stop, request.params.seed, request.n), (vec!["#".to_owned()], 7, 1), "{name}");
        }
    }

    #[test]
    fn fields_that_change_nothing_are_accepted() {
        let all = json!({
            "model": "gemma", "user": "me", "stream": true, "stream_options": {}, "store": false, "metadata": {"a": 1},
            "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "use_beam_search": false,
            "length_penalty": 1.0, "early_stopping": false, "skip_special_tokens": true, "min_tokens": 0, "best_of": 1,
        });
        accepted(all);
    }

    #[test]
    fn fields_that_cannot_be_honoured_are_refused_with_what_to_write() {
        for (given, words) in [
            (json!({"tools": [{"type": "function"}]}), ["\"tools\" is [", "describe them in a message"]),
            (json!({"functions": [{}]}), ["\"functions\" is", "leave this out"]),
            (json!({"min_tokens": -1}), ["\"min_tokens\" is -1", "expected usize"]),
            (json!({"response_format": {"type": "xml"}}), ["\"xml\"", "json_schema"]),
            (json!({"regex": "a", "choices": ["a"]}), ["\"choices\" and \"regex\"", "give one"]),
            (json!({"use_beam_search": true}), ["\"use_beam_search\" is true", "leave this out"]),
            (json!({"best_of": 4}), ["\"best_of\" is 4", "write \"n\""]),
            (json!({"prompt_logprobs": 1}), ["\"prompt_logprobs\"", "\"echo\": true"]),
            (json!({"seed": 1.5}), ["\"seed\" is 1.5", "a whole number"]),
            (json!({"logprobs": -1}), ["\"logprobs\" is -1", "a whole number"]),
            (json!({"top_logprobs": 2}), ["\"top_logprobs\" is 2", "\"logprobs\": true"]),
            (json!({"max_tokens": 1, "max_completion_tokens": 2}), ["\"max_tokens\" is 1", "give one"]),
            (json!({"stop": 1}), ["\"stop\" is 1", "a list of strings"]),
            (json!({"n": "two"}), ["\"n\" is \"two\"", "expected usize"]),
            (json!({"prompt": ["a", "b"]}), ["\"prompt\" is [\"a\",\"b\"]", "a line for each"]),
            (json!({"logit_bias": {"x": 1}}), ["\"logit_bias\"", "no token id"]),
            (json!({"max_token": 3}), ["there is no field \"max_token\"", "did you mean \"max_tokens\"?"]),
        ] {
            let error = refused(given);
            assert!(words.iter().all(|word| error.contains(word)), "{words:?} is not in: {error}");
        }
    }

    #[test]
    fn the_id_of_a_line_that_fails_is_kept() {
        for (line, id) in [
            (r#"{"id": "a", "promt": "x"}"#, json!("a")),
            (r#"{"id": 3, "prompt": "x", "n": "two"}"#, json!(3)),
            (r#"{"messages": 1, "id": {"my": [1]}}"#, json!({"my": [1]})),
            (r#"{"custom_id": "c", "url": "/v1/embeddings", "body": {"input": "x"}}"#, json!("c")),
            (r#"{"custom_id": "c", "prompt": "x"}"#, json!("c")),
            (r#"{"id": 1, "prompt": "x""#, Value::Null),
            ("[1]", Value::Null),
            ("prompt", Value::Null),
        ] {
            let parsed = parse(line);
            assert!(parsed.request.is_err(), "{line}");
            assert_eq!(parsed.id, id, "{line}");
        }
    }

    #[test]
    fn openai_lines_become_requests() {
        let line = |url: &str, body: Value| {
            parse(&json!({"custom_id": "c", "method": "POST", "url": url, "body": body}).to_string())
        };
        let chat = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4});
        let (request, body) = line("/v1/chat/completions", chat.clone()).request.unwrap();
        assert_eq!((request.max_tokens, request.params.seed), (4, 7));
        assert_eq!(body, Body::Chat { id: "chatcmpl-c".into(), model: "m".into() });
        for prompt in [json!([2, 5]), json!([[2, 5]])] {
            let (request, body) = line("/v1/completions", json!({"prompt": prompt})).request.unwrap();
            assert_eq!(request.prompt, [2, 5]);
            assert_eq!(body, Body::Completion { id: "cmpl-c".into(), model: "demo".into() });
        }
        for (line, words) in [
            (line("/v1/completions", chat.clone()), "write \"prompt\""),
            (line("/v1/chat/completions", json!({"prompt": "x"})), "write \"messages\""),
            (line("/v1/responses", chat.clone()), "\"url\" is \"/v1/responses\""),
            (
                line("/v1/chat/completions", json!({"tools": [1], "messages": [{"role": "user", "content": "x"}]})),
                "describe them",
            ),
            (line("/v1/completions", json!({"promt": "x"})), "did you mean \"prompt\"?"),
            (parse(&json!({"custom_id": "c", "method": "GET", "body": chat}).to_string()), "write \"POST\""),
            (parse(&json!({"url": "/v1/chat/completions", "body": chat}).to_string()), "\"custom_id\" must be"),
            (parse(&json!({"custom_id": "c", "url": "/v1/chat/completions"}).to_string()), "\"body\" is missing"),
            (parse(&json!({"custom_id": "c", "body": chat, "colour": 1}).to_string()), "no field \"colour\""),
        ] {
            assert_eq!(line.envelope, Envelope::OpenAi);
            let error = line.request.unwrap_err();
            assert!(error.contains(words), "{words} is not in: {error}");
        }
    }
}
