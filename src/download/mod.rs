//! Progress reports and hashing, for all downloads.

mod proxy;
mod retry;

pub(crate) use proxy::proxy_for;
pub(crate) use retry::patiently;

use std::io::{self, Read, Write};

use sha2::Digest;

/// A receiver of a download's progress.
pub trait Progress {
    /// A download of `total` bytes begins; 0 if the size is unknown.
    fn start(&mut self, what: &str, total: u64);
    /// More bytes have arrived.
    fn advance(&mut self, bytes: u64);
    /// The download is over, in success or failure.
    fn finish(&mut self);
}

/// Copies everything, and feeds it to `hasher`. `progress` gets the size of each block.
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

/// Formats a hash in hexadecimal digits.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
