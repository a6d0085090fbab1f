//! The directory of files that can be made or fetched again: plugins, compiled programs, quantised
//! weights.

use std::path::PathBuf;

/// Returns `$XDG_CACHE_HOME/gemma-pjrt`, else `~/.cache/gemma-pjrt`; `None` where neither
/// `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    Some(base.or_else(|| set("HOME").map(|home| home.join(".cache")))?.join("gemma-pjrt"))
}
