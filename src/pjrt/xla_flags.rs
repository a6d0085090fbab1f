//! Checks `XLA_FLAGS` before a plugin is loaded: XLA ends the process at a flag that it does not
//! know, such as one for the XLA of another program.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Returns the names of flags in `XLA_FLAGS`. A value that does not begin with a dash is the name
/// of a file with flags.
///
/// # Errors
/// The file cannot be read.
pub(super) fn names(value: &str) -> Result<Vec<String>, String> {
    let value = value.trim();
    let text = if value.is_empty() || value.starts_with('-') {
        value.to_owned()
    } else {
        std::fs::read_to_string(value).map_err(|e| format!("the file {value:?} with flags cannot be read ({e})"))?
    };
    let flags = text.split_whitespace().filter_map(|word| word.trim_start_matches(['"', '\'']).strip_prefix('-'));
    let names = flags.map(|flag| flag.trim_start_matches('-').split('=').next().unwrap_or_default());
    Ok(names.map(|name| name.trim_end_matches(['"', '\'']).to_owned()).collect())
}

/// Returns the names that a plugin does not know. A library holds the name of each of its flags as
/// a C string, so a name that is not in the file is unknown.
///
/// # Errors
/// The file cannot be read.
pub(super) fn unknown(library: &Path, mut names: Vec<String>) -> io::Result<Vec<String>> {
    let mut file = File::open(library)?;
    let longest = names.iter().map(|name| name.len() + 1).max().unwrap_or(0);
    let mut window = Vec::new();
    while !names.is_empty() {
        // A name may lie across the border of two blocks.
        window.drain(..window.len().saturating_sub(longest));
        let read = file.by_ref().take(BLOCK).read_to_end(&mut window)?;
        if read == 0 {
            break;
        }
        names.retain(|name| memchr::memmem::find(&window, format!("{name}\0").as_bytes()).is_none());
    }
    Ok(names)
}

/// Bytes of a library that are searched at a time.
const BLOCK: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_xla_reads_them() {
        let names = |value| super::names(value).unwrap();
        assert_eq!(names(" --xla_a=1 --xla_b\n-xla_c='x y' \"--xla_d\""), ["xla_a", "xla_b", "xla_c", "xla_d"]);
        assert_eq!(names(""), [""; 0]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flags");
        std::fs::write(&file, "--xla_e=2\n").unwrap();
        assert_eq!(names(file.to_str().unwrap()), ["xla_e"]);
        assert!(super::names("/no/such/file").unwrap_err().contains("\"/no/such/file\" with flags cannot be read"));
    }

    #[test]
    fn flags_are_searched_in_the_whole_library() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("library");
        let mut bytes = vec![7; BLOCK as usize - 3];
        bytes.extend(b"xla_across\0");
        bytes.extend(b"xla_longer_name\0");
        std::fs::write(&file, bytes).unwrap();
        let ask = |names: &[&str]| unknown(&file, names.iter().map(|&name| name.to_owned()).collect()).unwrap();
        assert_eq!(ask(&["xla_across", "xla_longer", "xla_longer_name"]), ["xla_longer"]);
        assert_eq!(ask(&[]), [""; 0]);
    }
}
