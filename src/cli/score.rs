//! `score`: the log-likelihood of a text, token by token.

use std::{io::Write, path::PathBuf, time::Instant};

use anyhow::{Result, bail};
use serde_json::json;

use super::{
    Outcome, interrupt,
    model_args::{ModelArgs, parse_tokens, read_text},
};
use crate::{checkpoint::write_safetensors, hlo::DType, runtime::Session};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The text to score [default: standard input]. One <bos> is put in front
    #[arg(conflicts_with = "prompt_tokens")]
    text: Option<String>,
    /// Token ids instead of a text, used as they are: 2,106,1645
    #[arg(long, value_name = "IDS", value_parser = parse_tokens)]
    // The full path keeps clap from taking the list for a repeated option.
    prompt_tokens: Option<std::vec::Vec<u32>>,
    #[command(flatten)]
    model: ModelArgs,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Write the logits after each token to this safetensors file: tensor "logits", `f32 [tokens,
    /// vocab]`
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
}

pub fn run(args: &Args, started: Instant) -> Result<Outcome> {
    interrupt::install();
    let opened = args.model.open()?;
    let text = match &args.prompt_tokens {
        Some(_) => String::new(),
        None => read_text(args.text.as_deref(), None)?,
    };
    let platform = args.model.platform(&opened)?;
    let tokens = match &args.prompt_tokens {
        Some(tokens) => tokens.clone(),
        None => opened.tokenizer()?.encode(&text)?,
    };
    if tokens.len() < 2 {
        bail!("the text is empty: there is no token to score");
    }
    opened.check_prompt(&tokens, 0)?;
    let loaded = args.model.load(&opened, &platform)?;
    let cache_len = opened.cache_len(tokens.len() as i64);
    let mut session = Session::new(loaded.model.clone(), 1, cache_len)?;
    let scored = session.score(&tokens, args.logits.is_some())?;

    if let (Some(path), Some(logits)) = (&args.logits, &scored.logits) {
        let dims = vec![tokens.len() as i64, opened.config.vocab_size];
        write_safetensors(path, &[("logits".into(), DType::F32, dims)], |_, out| {
            out.write_all(bytemuck::cast_slice(logits))
        })?;
    }
    // Sums in f64: thousands of f32 terms would lose the third decimal.
    let total: f64 = scored.logprobs.iter().map(|&p| f64::from(p)).sum();
    let perplexity = (-total / scored.logprobs.len() as f64).exp();
    let mut out = std::io::stdout().lock();
    if args.json {
        let object = json!({
            "tokens": tokens,
            "logprobs": scored.logprobs,
            "greedy": scored.greedy,
            "total": total,
            "perplexity": perplexity,
            "seconds": started.elapsed().as_secs_f64(),
        });
        writeln!(out, "{object}")?;
        return Ok(Outcome::Done);
    }
    for ((&token, &logprob), &greedy) in tokens[1..].iter().zip(&scored.logprobs).zip(&scored.greedy) {
        let text = opened.tokenizer()?.decode(&[token])?;
        let mark = if greedy == token { "*" } else { " " };
        writeln!(out, "{logprob:>12.6} {mark} {token:>7} {text:?}")?;
    }
    writeln!(out, "total {total:.6}, perplexity {perplexity:.4}, {} tokens (* most likely)", scored.logprobs.len())?;
    Ok(Outcome::Done)
}
