//! `devices`: the platform, its plugin and its devices.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::{Outcome, model_args::PlatformArgs, process::size};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    platform: PlatformArgs,
    /// Virtual devices to create on CPU
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=256))]
    cpu_devices: u16,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Outcome> {
    let platform = args.platform.open(usize::from(args.cpu_devices))?;
    let client = &platform.client;
    let (major, minor) = client.api().version();
    let attributes = client.api().attributes()?;
    let mut devices = Vec::new();
    for device in client.devices()? {
        let memories = device.memories()?.iter().map(|m| m.kind()).collect::<Result<Vec<_>, _>>()?;
        let stats = device.memory_stats().ok();
        devices.push((device, memories, stats));
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        let device_json = devices
            .iter()
            .map(|(device, memories, stats)| {
                Ok(json!({
                    "id": device.id()?,
                    "kind": device.kind()?,
                    "local_hardware_id": device.local_hardware_id()?,
                    "memories": memories,
                    "bytes_limit": stats.and_then(|s| s.bytes_limit),
                    "bytes_in_use": stats.map(|s| s.bytes_in_use),
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        let object = json!({
            "platform": client.platform_name()?,
            "platform_version": client.platform_version()?,
            "plugin": platform.plugin.path,
            "plugin_source": platform.plugin.source.to_string(),
            "pjrt_api": format!("{major}.{minor}"),
            "extensions": client.api().extensions(),
            "devices": device_json,
        });
        writeln!(out, "{object}")?;
        return Ok(Outcome::Done);
    }
    writeln!(out, "platform    {} ({})", client.platform_name()?, client.platform_version()?)?;
    writeln!(out, "plugin      {} (from {})", platform.plugin.path.display(), platform.plugin.source)?;
    writeln!(out, "PJRT API    {major}.{minor}, {} entry points", client.api().num_slots())?;
    writeln!(out, "extensions  {}", client.api().extensions().join(", "))?;
    for (name, value) in attributes {
        writeln!(out, "attribute   {name} = {value:?}")?;
    }
    for (device, memories, stats) in devices {
        let memory = stats.map_or("no memory figures".to_owned(), |s| {
            let limit = s.bytes_limit.map_or("unknown".to_owned(), |limit| size(limit as u64));
            format!("{} of {limit} in use", size(s.bytes_in_use as u64))
        });
        let (kind, id) = (device.kind()?, device.id()?);
        writeln!(out, "device {id:<4} {kind}, memories {}, {memory}", memories.join(", "))?;
    }
    Ok(Outcome::Done)
}
