//! What all downloads share: telling how they go, and hashing what arrives.

use std::io::{self, Read, Write};

use sha2::Digest;

/// Tells how a download goes.
pub trait Progress {
    /// A download of so many bytes begins; 0 if that is not known.
    fn start(&mut self, what: &str, total: u64);
    /// So many more bytes have arrived.
    fn advance(&mut self, bytes: u64);
    /// The download is over, in success or failure.
    fn finish(&mut self);
}

/// Copies everything, and feeds it to `hasher`.
pub(crate) fn copy_hashed(
    from: &mut impl Read,
    to: &mut impl Write,
    hasher: &mut impl Digest,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
        progress(n as u64);
    }
}

/// A hash as text.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
