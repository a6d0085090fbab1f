//! Writing files that appear under their names whole or not at all.

use std::{
    fs::{self, File, Metadata},
    io::{self, BufWriter, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Returns the path with a suffix appended to its name.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Writes a file under its name with `.tmp` appended, and renames it when all of it is on the disk.
///
/// An error leaves no temporary file. A process that is killed leaves one, which the next attempt
/// overwrites, so that attempts do not fill the disk. If another process writes the same file, this
/// one waits until it is done.
///
/// # Errors
/// The file cannot be written, or `write` fails.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    write_and_rename(path, |file| {
        buffered(file, write)?;
        file.sync_all()
    })?;
    // What the caller removes next must not be gone before the new name is on the disk. Some file
    // systems cannot sync a directory.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(dir).and_then(|dir| dir.sync_all());
    Ok(())
}

/// Writes a file as [`write_whole`] does, but does not wait for the disk. After a power cut it may
/// be damaged, so its reader must check its contents.
///
/// # Errors
/// The file cannot be written, or `write` fails.
pub fn write_checked(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    write_and_rename(path, |file| buffered(file, write))
}

fn buffered(file: &File, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    // Dropping the writer would write the rest again after an error.
    out.into_inner().map(|_| ()).map_err(io::IntoInnerError::into_error)
}

fn write_and_rename(path: &Path, write: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let temporary = beside(path, ".tmp");
    let file = open_locked(&temporary)?;
    let attempt = || {
        file.set_len(0)?; // what a killed process left
        write(&file)?;
        fs::rename(&temporary, path)
    };
    attempt().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// Opens a file, or creates it, and waits for its lock, where the file system has locks.
fn open_locked(path: &Path) -> io::Result<File> {
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        // The process that had the lock has renamed or removed the file.
        if file.lock().is_err() || is_at(&file, path) {
            return Ok(file);
        }
    }
}

/// Returns whether this open file is the one that the path names.
pub fn is_at(file: &File, path: &Path) -> bool {
    let same = |there: &Metadata, ours: &Metadata| (there.dev(), there.ino()) == (ours.dev(), ours.ino());
    matches!((path.metadata(), file.metadata()), (Ok(there), Ok(ours)) if same(&there, &ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(beside(&path, ".tmp"), "what a killed process left").unwrap();
        write_whole(&path, |out| out.write_all(b"one")).unwrap();
        let failed = write_whole(&path, |out| {
            out.write_all(b"two")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        write_checked(&path, |out| out.write_all(b"three")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn writers_of_one_file_wait_for_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::thread::scope(|scope| {
            for digit in b'0'..b'8' {
                let path = &path;
                scope.spawn(move || {
                    write_checked(path, |out| (0..100).try_for_each(|_| out.write_all(&[digit; 1000]))).unwrap();
                });
            }
        });
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() == 100_000 && bytes.iter().all(|&byte| byte == bytes[0]));
    }
}
