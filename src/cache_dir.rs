//! Where this program keeps what it can make or fetch again: plugins, compiled programs, the demo checkpoint.

use std::path::PathBuf;

/// `$XDG_CACHE_HOME/gemma-pjrt`, else `~/.cache/gemma-pjrt`; `None` where neither variable is set.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    Some(base.or_else(|| set("HOME").map(|home| home.join(".cache")))?.join("gemma-pjrt"))
}
