//! `inspect`: a model's sizes, tensors and tokenizer, what each of its files means, and whether it
//! can be run.

use std::{collections::BTreeMap, io::Write};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::{Outcome, model_files::ModelFiles, process::size};
use crate::{
    checkpoint::ALIGNMENT,
    gemma::tensors::num_parameters,
    runtime::{StoredModel, select},
    tokenizer::Tokenizer,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model's directory, its name on Hugging Face, or "demo"
    #[arg(value_name = "MODEL")]
    model: String,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let files = ModelFiles::locate(&args.model, true).context("inspect downloads nothing")?;
    let config = files.config()?;
    let checkpoint = files.checkpoint()?;
    let mut types: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut total = 0;
    let mut aligned = 0;
    for tensor in checkpoint.tensors().values() {
        let name = tensor.dtype.as_ref().map_or_else(Clone::clone, |dtype| dtype.name().to_owned());
        let bytes = tensor.bytes.bytes().len() as u64;
        let entry = types.entry(name).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
        total += bytes;
        aligned += if tensor.bytes.is_aligned(ALIGNMENT) { bytes } else { 0 };
    }
    let (config, fit) = match select(&checkpoint, &config) {
        Ok(StoredModel { config, .. }) => (config, Ok(())),
        Err(problem) => (config, Err(problem)),
    };
    let tokenizer = files.tokenizer();
    let text = tokenizer.as_ref().ok().map(TextReport::of);
    let meanings = files.meanings(&checkpoint)?;
    let kv_bytes = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;

    let mut out = std::io::stdout().lock();
    if args.json {
        let object = json!({
            "config": config.to_json(),
            "parameters": num_parameters(&config),
            "weight_bytes": total,
            "aligned_bytes": aligned,
            "kv_bytes_per_token_bf16": kv_bytes,
            "types": types,
            "tensors": checkpoint.tensors().iter().map(|(name, t)| {
                json!({"name": name, "shape": t.dims, "file": t.file.file_name().map(|f| f.to_string_lossy())})
            }).collect::<Vec<_>>(),
            "problem": fit.as_ref().err().map(ToString::to_string),
            "tokenizer_problem": tokenizer.as_ref().err().map(ToString::to_string),
            "text": text,
            "files": meanings,
        });
        writeln!(out, "{object}")?;
    } else {
        let c = &config;
        writeln!(
            out,
            "config      {} layers, hidden {}, mlp {}",
            c.num_hidden_layers, c.hidden_size, c.intermediate_size
        )?;
        let (heads, kv, dim) = (c.num_attention_heads, c.num_key_value_heads, c.head_dim);
        writeln!(out, "attention   {heads} heads, {kv} key/value heads, head_dim {dim}")?;
        writeln!(
            out,
            "vocabulary  {} (output layer {})",
            c.vocab_size,
            if c.tie_word_embeddings { "tied" } else { "own" }
        )?;
        writeln!(
            out,
            "context     {} tokens, {} of KV cache each (bf16)",
            c.max_position_embeddings,
            size(kv_bytes as u64)
        )?;
        writeln!(out, "parameters  {}", num_parameters(c))?;
        for (name, (count, bytes)) in &types {
            writeln!(out, "weights     {count} tensors {name}, {}", size(*bytes))?;
        }
        writeln!(out, "zero copy   {} of {} on one CPU device", size(aligned), size(total))?;
        match (&text, &tokenizer) {
            (Some(text), _) => text.write(&mut out)?,
            (None, Err(e)) => writeln!(out, "tokenizer   {e}")?,
            (None, Ok(_)) => {}
        }
        for (i, (file, meaning)) in meanings.iter().enumerate() {
            writeln!(out, "{:12}{file}: {meaning}", if i == 0 { "files" } else { "" })?;
        }
        if args.tensors {
            for (name, tensor) in checkpoint.tensors() {
                let dtype = tensor.dtype.as_ref().map_or_else(Clone::clone, |dtype| dtype.name().to_owned());
                let bytes = size(tensor.bytes.bytes().len() as u64);
                writeln!(out, "  {name} {dtype}{:?} {bytes}", tensor.dims)?;
            }
        }
    }
    fit?;
    tokenizer?;
    Ok(Outcome::Done)
}

/// The part of the report on tokens and the chat format.
#[derive(Serialize)]
struct TextReport {
    tokens: usize,
    bos: u32,
    eos: u32,
    stop_ids: Vec<u32>,
    stop_ids_from: &'static str,
    /// Ids that end an answer in the chat format.
    chat_stop_ids: Vec<u32>,
    template: &'static str,
    /// True if the template has a system role; `None` if there is no template that can be used.
    takes_system_messages: Option<bool>,
    template_problem: Option<String>,
}

impl TextReport {
    fn of(tokenizer: &Tokenizer) -> Self {
        let (special, stop) = (tokenizer.special(), tokenizer.stop_ids());
        let takes_system = tokenizer.takes_system_messages();
        Self {
            tokens: tokenizer.vocab_size(),
            bos: special.bos,
            eos: special.eos,
            stop_ids: stop.ids.clone(),
            stop_ids_from: stop.source,
            chat_stop_ids: tokenizer.chat_stop_ids(),
            template: tokenizer.template_source(),
            takes_system_messages: takes_system.as_ref().ok().copied(),
            template_problem: takes_system.err().map(|e| e.to_string()),
        }
    }

    fn write(&self, out: &mut impl Write) -> Result<()> {
        writeln!(out, "tokenizer   {} entries, <bos> {}, <eos> {}", self.tokens, self.bos, self.eos)?;
        let (ids, from, chat) = (&self.stop_ids, self.stop_ids_from, &self.chat_stop_ids);
        writeln!(out, "stop ids    {ids:?} ({from}), and {chat:?} in the chat format")?;
        let roles = match (self.takes_system_messages, &self.template_problem) {
            (Some(true), _) => "instructions are a message of their own",
            (_, None) => "instructions go into the first turn of the user",
            (_, Some(problem)) => problem,
        };
        writeln!(out, "template    {}; {roles}", self.template)?;
        Ok(())
    }
}
