//! candle on the measurements of `../measure.py`: `candle-peer MODEL PROMPTS DECODE DEPTH`, one JSON object on standard output.
//! In f32; bf16 was not tried.

use std::{fs, time::Instant};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::gemma::{Config, Model};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, prompts, decode, depth] = &args[..] else { anyhow::bail!("MODEL PROMPTS DECODE DEPTH") };
    let mut config: serde_json::Value = serde_json::from_str(&fs::read_to_string(format!("{dir}/config.json"))?)?;
    if config["hidden_activation"].is_string() {
        config["hidden_act"].take(); // candle takes only one of the two
    }
    let config: Config = serde_json::from_value(config)?;
    let mut files: Vec<_> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    // SAFETY: nobody changes the files meanwhile.
    let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, &Device::Cpu)? };
    let mut model = Model::new(false, &config, weights)?;

    let tokens = |n: usize| (0..n).map(|i| 100 + (i * 7919 % 200_000) as u32).collect::<Vec<u32>>();
    let mut forward = |ids: &[u32], start: usize| -> Result<(u32, f64)> {
        if start == 0 {
            model.clear_kv_cache();
        }
        let started = Instant::now();
        let logits = model.forward(&Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?, start)?;
        let next = logits.flatten_all()?.argmax(0)?.to_scalar::<u32>()?;
        Ok((next, started.elapsed().as_secs_f64()))
    };
    let mut prefill = serde_json::Map::new();
    for prompt in prompts.split(',') {
        let len: usize = prompt.parse().context("a prompt's length")?;
        prefill.insert(prompt.to_owned(), (len as f64 / forward(&tokens(len), 0)?.1).into());
    }
    let (depth, decode): (usize, usize) = (depth.parse()?, decode.parse()?);
    let (mut next, _) = forward(&tokens(depth), 0)?;
    let mut seconds = 0.0;
    for at in depth..depth + decode {
        let (token, took) = forward(&[next], at)?;
        next = token;
        seconds += took;
    }
    println!("{}", serde_json::json!({"prefill": prefill, "decode": decode as f64 / seconds}));
    Ok(())
}
