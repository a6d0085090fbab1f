//! What the targets share. Each reads its input as a user's file would be read, by the readers of
//! the program itself.

use std::{
    alloc::System,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use cap::Cap;
use gemma_pjrt::tokenizer::{TextFiles, Tokenizer, minimal_tokenizer_json};

/// The memory that a reader may take for an input of some kilobytes. An allocation above it aborts.
const MEMORY: usize = 1 << 30;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, MEMORY);

/// Lets panics be errors where the program makes them errors. For `init` of targets: libFuzzer's
/// own hook ends the process at every panic.
pub fn expect_shielded_panics() {
    let ends = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !gemma_pjrt::shield::is_shielded() {
            ends(panic);
        }
    }));
}

/// Runs a target on a thread of its own: the tokenizers crate keeps a cache for each thread, with
/// all tokenizers that were ever used there.
pub fn on_own_thread(target: impl FnOnce() + Send) {
    std::thread::scope(|scope| drop(scope.spawn(target).join()));
}

/// Splits an input into `N` files at NUL bytes, which no text file has. The last one takes the
/// rest. Those that are not there are empty.
pub fn parts<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut parts = data.splitn(N, |&byte| byte == 0);
    std::array::from_fn(|_| parts.next().unwrap_or_default())
}

/// Returns a part as text. `None` if it is empty or is not UTF-8.
pub fn text(part: &[u8]) -> Option<&str> {
    std::str::from_utf8(part).ok().filter(|text| !text.is_empty())
}

/// Returns a directory of this process below `TMPDIR`.
pub fn dir(name: &str) -> PathBuf {
    static ROOT: LazyLock<PathBuf> =
        LazyLock::new(|| tempfile::Builder::new().prefix("fuzz-").tempdir().expect("TMPDIR can be written").keep());
    let dir = ROOT.join(name);
    fs::create_dir_all(&dir).expect("TMPDIR can be written");
    dir
}

/// Writes a file, or removes it if it would be empty.
pub fn put(path: &Path, contents: &[u8]) {
    if contents.is_empty() {
        let _ = fs::remove_file(path);
    } else {
        fs::write(path, contents).expect("TMPDIR can be written");
    }
}

/// The size of [`small_tokenizer`]'s vocabulary.
pub const VOCAB: usize = 480;

/// Makes a tokenizer of bytes and Gemma's control tokens.
pub fn small_tokenizer(files: &TextFiles) -> Result<Tokenizer, gemma_pjrt::tokenizer::TokenizerError> {
    static JSON: LazyLock<String> = LazyLock::new(|| minimal_tokenizer_json(VOCAB).to_string());
    Tokenizer::new(JSON.as_bytes(), files)
}
