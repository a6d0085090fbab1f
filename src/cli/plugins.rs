//! `plugins`: lists, installs, verifies and locates PJRT plugins.

use std::{io::Write, path::PathBuf};

use anyhow::{Result, bail};
use clap::Subcommand;

use super::{Outcome, note, progress::DownloadProgress};
use crate::plugins::{Installer, Kind, PINNED, installed, locate, pinned_for, verify};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the plugins that are installed or can be
    List,
    /// Install a plugin from the Python package index, after checking its sha256
    Install {
        /// Platform: cpu, tpu or cuda
        kind: Kind,
        /// Install this package instead of the platform's default
        #[arg(long, value_name = "NAME", conflicts_with = "from_file")]
        package: Option<String>,
        /// Install from a wheel on this machine
        #[arg(long, value_name = "WHEEL")]
        from_file: Option<PathBuf>,
        /// Never download anything
        #[arg(long)]
        offline: bool,
    },
    /// Check the sha256 of installed plugins
    Verify,
    /// Print the path of the plugin that would be used
    Path {
        /// Platform: cpu, tpu or cuda
        kind: Kind,
    },
}

pub fn run(args: &Args) -> Result<Outcome> {
    let mut out = std::io::stdout().lock();
    match &args.command {
        Command::List => {
            for pinned in PINNED {
                let here = installed(pinned.kind)?
                    .into_iter()
                    .any(|p| p.package == pinned.package && p.version == pinned.version);
                let state = if here { "installed" } else { "available" };
                let default = pinned_for(pinned.kind, None) == Some(pinned);
                writeln!(
                    out,
                    "{:<5} {state}  {} {}{}: {}",
                    pinned.kind,
                    pinned.package,
                    pinned.version,
                    if default { " (default)" } else { "" },
                    pinned.note
                )?;
            }
        }
        Command::Install { kind, package, from_file, offline } => {
            let mut installer = Installer { offline: *offline, progress: &mut DownloadProgress::of_plugin() };
            let plugin = match from_file {
                Some(wheel) => installer.install_file(*kind, wheel)?,
                None => {
                    let Some(pinned) = pinned_for(*kind, package.as_deref()) else {
                        let known: Vec<&str> = PINNED.iter().filter(|p| p.kind == *kind).map(|p| p.package).collect();
                        bail!(
                            "{} is not a known {kind} plugin; use one of {}",
                            package.as_deref().unwrap_or_default(),
                            known.join(", ")
                        );
                    };
                    installer.install(pinned)?
                }
            };
            writeln!(out, "{}", plugin.library.display())?;
        }
        Command::Verify => {
            let mut count = 0;
            for kind in Kind::ALL {
                for plugin in installed(kind)? {
                    verify(&plugin)?;
                    writeln!(out, "ok {kind} {} {} {}", plugin.package, plugin.version, plugin.library.display())?;
                    count += 1;
                }
            }
            if count == 0 {
                note("no plugin is installed; install one with: gemma-pjrt plugins install cpu");
            }
        }
        Command::Path { kind } => {
            let found = locate(*kind, None)?;
            writeln!(out, "{}", found.path.display())?;
        }
    }
    Ok(Outcome::Done)
}
