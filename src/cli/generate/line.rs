//! One line of the input: a request with the fields of OpenAI's and vLLM's clients, alone or in
//! OpenAI's batch format.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    args::Args,
    fields::Fields,
    reply::{Body, Envelope},
};
use crate::{
    engine::Request,
    tokenizer::{Message, Tokenizer},
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
    let request = request(fields, args, prompts.stop_ids(raw, tokenizer))?;
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
    let request = request(body, args, prompts.stop_ids(true, tokenizer))?;
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
        let messages = fields.take("messages")?.map(Prompt::Messages);
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

enum Prompt {
    Text(String),
    /// Used as they are.
    Tokens(Vec<u32>),
    Messages(Vec<Message>),
}

impl Prompt {
    fn tokens(&self, raw: bool, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        Ok(match self {
            Self::Text(text) if raw => tokenizer.encode(text)?,
            Self::Text(text) => tokenizer.encode_chat(&[Message::user(text)])?,
            Self::Tokens(tokens) => tokens.clone(),
            Self::Messages(messages) => tokenizer.encode_chat(messages)?,
        })
    }
}

/// Returns the request that the remaining fields make, without its prompt. Its answer ends at one
/// of `stop_ids`.
fn request(mut fields: Fields, args: &Args, stop_ids: Vec<u32>) -> Result<Request> {
    fields.ignore(&WITHOUT_EFFECT);
    refuse_what_is_not_supported(&mut fields)?;
    let mut request = args.request(vec![], stop_ids)?;
    for (name, target) in [
        ("temperature", &mut request.params.temperature),
        ("top_p", &mut request.params.top_p),
        ("min_p", &mut request.params.min_p),
        ("repetition_penalty", &mut request.penalties.repetition),
        ("presence_penalty", &mut request.penalties.presence),
        ("frequency_penalty", &mut request.penalties.frequency),
    ] {
        *target = fields.take(name)?.unwrap_or(*target);
    }
    // In vLLM, -1 means all, as 0 does here.
    request.params.top_k = fields.take("top_k")?.map_or(request.params.top_k, |k| if k == -1 { 0 } else { k });
    request.params.seed = seed(&mut fields)?.unwrap_or(request.params.seed);
    request.max_tokens = max_tokens(&mut fields)?.unwrap_or(request.max_tokens);
    request.n = fields.take("n")?.unwrap_or(1);
    let one_for_each = "the best of several answers is not chosen here; write \"n\", and choose among the answers";
    fields.allow("best_of", &[json!(request.n)], one_for_each)?;
    request.logprobs = logprobs(&mut fields)?;
    request.echo = fields.take("echo")?.unwrap_or(false);
    if fields.take("ignore_eos")?.unwrap_or(false) {
        request.stop_ids.clear();
    }
    request.stop_ids.extend(fields.take::<Vec<u32>>("stop_token_ids")?.unwrap_or_default());
    request.stop = stop(&mut fields)?.unwrap_or(request.stop);
    for (id, bias) in fields.take::<BTreeMap<String, f32>>("logit_bias")?.unwrap_or_default() {
        let id = id.parse().with_context(|| format!("\"logit_bias\" names {id:?}, which is no token id"))?;
        request.logit_bias.push((id, bias));
    }
    fields.finish()?;
    Ok(request)
}

/// Fields of OpenAI's and vLLM's that do not change the tokens of an answer.
const WITHOUT_EFFECT: [&str; 16] = [
    "user",
    "stream",
    "stream_options",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "prediction",
    "priority",
    "request_id",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "cache_salt",
];

/// Refuses fields of OpenAI's and vLLM's that would change an answer in ways that are not
/// supported. Their defaults are accepted.
fn refuse_what_is_not_supported(fields: &mut Fields) -> Result<()> {
    let no_tools = "Gemma calls no tools; describe them in a message, and leave this out";
    let no_grammar = "answers cannot be held to a grammar; ask for the format in a message, and leave this out";
    let no_beams = "beam search is not supported; leave this out";
    let text_only = "answers are text; leave this out";
    let as_it_is = "only the default is supported; leave this out";
    let (no, yes, empty) = (json!(false), json!(true), json!([]));
    let refused = [
        ("tools", vec![empty.clone()], no_tools),
        ("tool_choice", vec![json!("none")], no_tools),
        ("functions", vec![empty.clone()], no_tools),
        ("function_call", vec![json!("none")], no_tools),
        ("web_search_options", vec![], no_tools),
        ("response_format", vec![json!({"type": "text"})], no_grammar),
        ("structured_outputs", vec![], no_grammar),
        ("guided_json", vec![], no_grammar),
        ("guided_regex", vec![], no_grammar),
        ("guided_choice", vec![], no_grammar),
        ("guided_grammar", vec![], no_grammar),
        ("use_beam_search", vec![no.clone()], no_beams),
        ("length_penalty", vec![json!(1), json!(1.0)], no_beams),
        ("early_stopping", vec![no.clone()], no_beams),
        ("modalities", vec![json!(["text"])], text_only),
        ("audio", vec![], text_only),
        ("reasoning_effort", vec![], "Gemma does not reason before it answers; leave this out"),
        ("suffix", vec![json!("")], "text before a suffix cannot be filled in; leave this out"),
        ("min_tokens", vec![json!(0)], "write \"ignore_eos\": true for answers of \"max_tokens\" tokens"),
        ("prompt_logprobs", vec![], "write \"logprobs\": N and \"echo\": true"),
        ("truncate_prompt_tokens", vec![json!(-1)], "prompts are not cut; shorten the prompt, and leave this out"),
        ("include_stop_str_in_output", vec![no.clone()], "the text ends before a stop string; leave this out"),
        ("skip_special_tokens", vec![yes.clone()], "text is without special tokens; see the answer's tokens"),
        ("spaces_between_special_tokens", vec![yes.clone(), no.clone()], as_it_is),
        ("detokenize", vec![yes.clone()], as_it_is),
        ("add_generation_prompt", vec![yes], as_it_is),
        ("continue_final_message", vec![no], "write \"prompt\" with \"raw\": true to continue a text"),
        ("add_special_tokens", vec![], "a prompt begins with one <bos>; write \"tokens\" for other ids"),
        ("chat_template", vec![], "the checkpoint's template is used; write \"prompt\" with \"raw\": true"),
        ("chat_template_kwargs", vec![json!({})], "the template takes no arguments; leave this out"),
        ("documents", vec![empty.clone()], "put the documents into a message, and leave this out"),
        ("bad_words", vec![empty.clone()], "write \"logit_bias\" with -100 for their tokens"),
        ("allowed_token_ids", vec![], "write \"logit_bias\" instead"),
        ("logits_processors", vec![empty], "write \"logit_bias\" instead"),
    ];
    refused.iter().try_for_each(|(name, values, advice)| fields.allow(name, values, advice))
}

/// Takes the seed. In vLLM, -1 means that none is given.
fn seed(fields: &mut Fields) -> Result<Option<u64>> {
    match fields.value("seed") {
        None => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(seed) => Ok(Some(seed)),
            None => bail!("\"seed\" is {value}: write a whole number from 0, or -1 for that of the command line"),
        },
    }
}

fn max_tokens(fields: &mut Fields) -> Result<Option<usize>> {
    match (fields.take("max_tokens")?, fields.take("max_completion_tokens")?) {
        (Some(a), Some(b)) if a != b => {
            bail!("\"max_tokens\" is {a}, and \"max_completion_tokens\" {b}: they mean the same; give one")
        }
        (a, b) => Ok(a.or(b)),
    }
}

/// Takes the number of most likely tokens to report: `"logprobs": 2`, or as in OpenAI's chats
/// `"logprobs": true, "top_logprobs": 2`.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "write a whole number, true or false")]
    enum Given {
        Wanted(bool),
        Top(usize),
    }
    let top = fields.take("top_logprobs")?;
    match (fields.take("logprobs")?, top) {
        (Some(Given::Wanted(true)), top) => Ok(Some(top.unwrap_or(0))),
        (Some(Given::Top(given)), None) => Ok(Some(given)),
        (Some(Given::Top(given)), Some(top)) if given == top => Ok(Some(given)),
        (None | Some(Given::Wanted(false)), None | Some(0)) => Ok(None),
        (_, Some(top)) => bail!("\"top_logprobs\" is {top}: write \"logprobs\": true beside it"),
    }
}

/// Takes the stop strings: one, or a list.
fn stop(fields: &mut Fields) -> Result<Option<Vec<String>>> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "write a string, or a list of strings")]
    enum Given {
        One(String),
        Several(Vec<String>),
    }
    Ok(fields.take("stop")?.map(|given| match given {
        Given::One(stop) => vec![stop],
        Given::Several(stops) => stops,
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::tokenizer::{TextFiles, minimal_tokenizer_json};

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
        assert_eq!(accepted(json!({"seed": u64::MAX})).params.seed, u64::MAX);
        assert_eq!(accepted(json!({"max_tokens": 9, "max_completion_tokens": 9})).max_tokens, 9);
        assert_eq!(accepted(json!({"n": 3, "best_of": 3})).n, 3);
        assert_eq!(accepted(json!({"ignore_eos": true, "stop_token_ids": [4]})).stop_ids, [4]);
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
            (json!({"response_format": {"type": "json_object"}}), ["json_object", "ask for the format in a message"]),
            (json!({"use_beam_search": true}), ["\"use_beam_search\" is true", "leave this out"]),
            (json!({"best_of": 4}), ["\"best_of\" is 4", "write \"n\""]),
            (json!({"prompt_logprobs": 1}), ["\"prompt_logprobs\"", "\"echo\": true"]),
            (json!({"seed": -2}), ["\"seed\" is -2", "from 0, or -1"]),
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
            (line("/v1/chat/completions", json!({"tools": [1], "messages": []})), "describe them"),
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
