//! The fields of OpenAI's and vLLM's requests, but for the prompt.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::{
    constraint::constraint,
    fields::{FieldError, Fields, Result},
};
use crate::engine::Request;

/// Takes the fields that change a request, whose other parts are as in `request`. Ids that end it
/// are added to those that it has.
///
/// # Errors
/// A field has a wrong type, or asks for what is not supported. Ranges are the engine's to check.
pub fn request(fields: &mut Fields, mut request: Request) -> Result<Request> {
    fields.ignore(&WITHOUT_EFFECT);
    refuse_what_is_not_supported(fields)?;
    for (name, target) in [
        ("temperature", &mut request.params.temperature),
        ("top_p", &mut request.params.top_p),
        ("min_p", &mut request.params.min_p),
        ("repetition_penalty", &mut request.penalties.repetition),
        ("presence_penalty", &mut request.penalties.presence),
        ("frequency_penalty", &mut request.penalties.frequency),
    ] {
        *target = fields.number(name)?.unwrap_or(*target);
    }
    // In vLLM, -1 means all, as 0 does here.
    request.params.top_k = fields.take("top_k")?.map_or(request.params.top_k, |k| if k == -1 { 0 } else { k });
    request.params.seed = seed(fields)?.unwrap_or(request.params.seed);
    request.max_tokens = max_tokens(fields)?.unwrap_or(request.max_tokens);
    request.n = fields.take("n")?.unwrap_or(1);
    let one_for_each = "the best of several answers is not chosen here; write \"n\", and choose among the answers";
    fields.allow("best_of", &[json!(request.n)], one_for_each)?;
    request.logprobs = logprobs(fields)?;
    request.echo = fields.take("echo")?.unwrap_or(false);
    if fields.take("ignore_eos")?.unwrap_or(false) {
        request.stop_ids.clear();
    }
    request.stop_ids.extend(fields.take::<Vec<u32>>("stop_token_ids")?.unwrap_or_default());
    request.stop = stop(fields)?.unwrap_or(request.stop);
    for (id, bias) in fields.take::<BTreeMap<String, f32>>("logit_bias")?.unwrap_or_default() {
        let wrong = |_| FieldError::new("logit_bias", format!("\"logit_bias\" names {id:?}, which is no token id"));
        let id = id.parse().map_err(wrong)?;
        request.logit_bias.push((id, bias));
    }
    request.constraint = constraint(fields, request.constraint)?;
    request.min_tokens = fields.take("min_tokens")?.unwrap_or(request.min_tokens);
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
        ("use_beam_search", vec![no.clone()], no_beams),
        ("length_penalty", vec![json!(1), json!(1.0)], no_beams),
        ("early_stopping", vec![no.clone()], no_beams),
        ("modalities", vec![json!(["text"])], text_only),
        ("audio", vec![], text_only),
        ("reasoning_effort", vec![], "Gemma does not reason before it answers; leave this out"),
        ("suffix", vec![json!("")], "text before a suffix cannot be filled in; leave this out"),
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
            // OpenAI's seeds are any int64.
            None => match value.as_i64() {
                Some(seed) => Ok(Some(seed as u64)),
                None => Err(FieldError::new("seed", format!("\"seed\" is {value}: write a whole number of 64 bits"))),
            },
        },
    }
}

fn max_tokens(fields: &mut Fields) -> Result<Option<usize>> {
    match (fields.take("max_tokens")?, fields.take("max_completion_tokens")?) {
        (Some(a), Some(b)) if a != b => {
            let problem =
                format!("\"max_tokens\" is {a}, and \"max_completion_tokens\" {b}: they mean the same; give one");
            Err(FieldError::new("max_completion_tokens", problem))
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
        (_, Some(top)) => {
            let problem = format!("\"top_logprobs\" is {top}: write \"logprobs\": true beside it");
            Err(FieldError::new("top_logprobs", problem))
        }
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
