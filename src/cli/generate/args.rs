//! The command line of `generate`.

use std::path::PathBuf;

use anyhow::Result;

use super::constraint_args::ConstraintArgs;
use crate::{
    cli::model_args::{ModelArgs, PenaltyArgs, SamplingArgs, parse_tokens},
    engine::Request,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prompt [default: standard input]
    #[arg(conflicts_with_all = ["prompt_file", "prompt_tokens", "input"])]
    pub prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_tokens", "input"])]
    pub prompt_file: Option<PathBuf>,
    /// The prompt as token ids, used as they are: 2,106,1645
    #[arg(long, value_name = "IDS", value_parser = parse_tokens, conflicts_with = "input")]
    // The full path keeps clap from taking the list for a repeated option.
    pub prompt_tokens: Option<std::vec::Vec<u32>>,
    /// Read many prompts from a file, one JSON object per line: {"prompt": "..."}, or "messages",
    /// or "tokens". Other fields override this command line: "max_tokens", "temperature", "seed",
    /// "n", "logprobs" and others. An interrupted run resumes where it stopped
    #[arg(long, value_name = "FILE", requires = "output", conflicts_with = "json")]
    pub input: Option<PathBuf>,
    /// Write the answers to --input to this file, in the same order
    #[arg(long, value_name = "FILE", requires = "input")]
    pub output: Option<PathBuf>,
    /// Prompts of --input that run at the same time on each replica of the model (the mesh's DATA
    /// axis)
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..), requires = "input")]
    pub slots: u16,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Continue the text as it is, without the chat format
    #[arg(long)]
    pub raw: bool,
    /// The most tokens to generate
    #[arg(long, short = 'n', value_name = "N", default_value = "256", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub penalties: PenaltyArgs,
    /// End the text before this string (may be repeated)
    #[arg(long, value_name = "STR")]
    pub stop: Vec<String>,
    #[command(flatten)]
    pub constraint: ConstraintArgs,
    /// Print one JSON object instead of streaming text
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// Returns the request that this command line makes of a prompt, whose answer ends at one of
    /// these ids.
    ///
    /// # Errors
    /// A sampling parameter or penalty is out of range.
    pub fn request(&self, prompt: Vec<u32>, stop_ids: Vec<u32>) -> Result<Request> {
        Ok(Request {
            params: self.sampling.params()?,
            penalties: self.penalties.penalties()?,
            stop_ids,
            stop: self.stop.clone(),
            constraint: self.constraint.constraint(),
            ..Request::greedy(prompt, self.max_tokens as usize)
        })
    }
}
