//! Host memory that a device buffer can borrow for its whole life (zero copy).

use std::{fs::File, ops::Range, path::Path, sync::Arc};

use super::error::{Error, Result};

/// Immutable host memory: a read-only mapping of a file, owned bytes, or bytes of the program
/// itself.
pub enum HostMemory {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
    Static(&'static [u8]),
}

impl HostMemory {
    /// Maps a file read-only. Pages are read when they are used.
    ///
    /// # Errors
    /// The file cannot be opened or mapped.
    pub fn map(path: &Path) -> Result<Arc<Self>> {
        let io = |cause| Error::Io { path: path.to_owned(), cause };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is private and read-only. A file that another process truncates while
        // it is mapped raises SIGBUS on access; checkpoints are not rewritten in place (writers
        // rename), and README says so.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Arc::new(Self::Mapped(map)))
    }

    /// Returns all bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
            Self::Static(bytes) => bytes,
        }
    }
}

/// A range of [`HostMemory`] that keeps the memory alive.
#[derive(Clone)]
pub struct HostBytes {
    memory: Arc<HostMemory>,
    range: Range<usize>,
}

impl HostBytes {
    /// Returns a range of `memory`.
    ///
    /// # Panics
    /// If the range leaves the memory. Ranges of files are checked when their headers are read.
    pub fn new(memory: Arc<HostMemory>, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= memory.bytes().len(),
            "range {range:?} leaves the {} bytes of its memory",
            memory.bytes().len()
        );
        Self { memory, range }
    }

    /// Returns the bytes of the range.
    pub fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[self.range.clone()]
    }

    /// Returns a part of these bytes, at `range` relative to their start.
    ///
    /// # Panics
    /// If the range leaves the memory.
    pub fn slice(&self, range: Range<usize>) -> Self {
        Self::new(self.memory.clone(), self.range.start + range.start..self.range.start + range.end)
    }

    /// Extends the range down to an address that is a multiple of `alignment`, and up so that it is
    /// `alignment` bytes longer than before. Returns the new range and the number of bytes before
    /// the old one. `None` if it would leave the memory.
    pub fn aligned_around(&self, alignment: usize) -> Option<(Self, usize)> {
        let before = self.bytes().as_ptr() as usize % alignment;
        let start = self.range.start.checked_sub(before)?;
        let end = start + self.range.len() + alignment;
        (end <= self.memory.bytes().len()).then(|| (Self::new(self.memory.clone(), start..end), before))
    }

    /// Returns whether the first byte's address is a multiple of `alignment`.
    pub fn is_aligned(&self, alignment: usize) -> bool {
        (self.bytes().as_ptr() as usize).is_multiple_of(alignment)
    }
}

impl From<Vec<u8>> for HostBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self::new(Arc::new(HostMemory::Owned(bytes)), range)
    }
}
