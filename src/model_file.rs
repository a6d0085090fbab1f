//! Files of models as they arrive: what is wrong with one that is not what its name says. Each
//! message is a sentence about "it", for the caller to put after the file's name.

use std::path::Path;

use serde_json::Value;

/// Says that only a file's Git LFS pointer is there, and what to do.
pub const LFS_POINTER: &str = "it is a Git LFS pointer, which stands for the file in a clone made without Git LFS. Run git lfs pull \
     in its directory, or give --model the model's name on Hugging Face to download it";

/// Returns whether these are the contents of a Git LFS pointer.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs")
}

/// Returns a file's text without the byte order mark that some editors put at its beginning.
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Parses a JSON file's text. A byte order mark at its beginning is ignored.
///
/// # Errors
/// It is a Git LFS pointer, or is not JSON.
pub fn parse_json(text: &str) -> Result<Value, String> {
    if is_lfs_pointer(text.as_bytes()) {
        return Err(LFS_POINTER.into());
    }
    serde_json::from_str(without_mark(text)).map_err(|e| format!("it is not valid JSON ({e}); download it again"))
}

/// Returns whether this is the name of a file, and not a path: an index must not reach outside its
/// directory.
pub fn is_file_name(name: &str) -> bool {
    Path::new(name).file_name() == Some(name.as_ref())
}

/// Describes weights in the quantised format `format`, which is not ours, and what to do.
pub fn quantized_by_others(format: &str) -> String {
    format!(
        "the weights are quantised in a format that this program does not read: {format}. Give the original bf16 checkpoint; \
         --weights int8 or --weights int4 quantises it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_is_ignored() {
        assert_eq!(parse_json("\u{feff}{\"a\": 1}"), Ok(serde_json::json!({"a": 1})));
        assert!(parse_json("\u{feff}\u{feff}{}").unwrap_err().contains("not valid JSON"));
        assert!(parse_json("").unwrap_err().contains("not valid JSON"));
    }

    #[test]
    fn paths_are_no_file_names() {
        assert!(is_file_name("model-00001-of-00002.safetensors"));
        for path in ["", ".", "..", "/", "a/", "a/b", "./a", "/a", "../a"] {
            assert!(!is_file_name(path), "{path}");
        }
    }

    #[test]
    fn git_lfs_pointers_are_recognised() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4945242264\n";
        assert!(parse_json(pointer).unwrap_err().contains("git lfs pull"));
        assert!(!is_lfs_pointer(b"version https://git"));
    }
}
