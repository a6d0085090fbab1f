//! Host memory that a device buffer may borrow for its whole life (zero copy).

use std::{fs::File, ops::Range, path::Path, sync::Arc};

use super::error::{Error, Result};

/// Immutable host memory: a read-only mapping of a file, bytes of our own, or bytes of the program itself.
pub enum HostMemory {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
    Static(&'static [u8]),
}

impl HostMemory {
    /// Maps the file read-only. Nothing is read yet; pages come in when they are used.
    pub fn map(path: &Path) -> Result<Arc<Self>> {
        let io = |cause| Error::Io { path: path.to_owned(), cause };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is private and read-only. A file that another process truncates while it is mapped
        // raises SIGBUS on access; checkpoints are not rewritten in place (writers rename), and README says so.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(Arc::new(Self::Mapped(map)))
    }

    /// All bytes.
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
    /// The bytes `range` of `memory`. Panics if the range leaves it: ranges are checked when a file's header is read.
    pub fn new(memory: Arc<HostMemory>, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= memory.bytes().len(),
            "range {range:?} leaves the {} bytes of its memory",
            memory.bytes().len()
        );
        Self { memory, range }
    }

    /// The bytes of the range.
    pub fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[self.range.clone()]
    }

    /// A part of these bytes, at `range` relative to their start.
    pub fn slice(&self, range: Range<usize>) -> Self {
        Self::new(self.memory.clone(), self.range.start + range.start..self.range.start + range.end)
    }

    /// These bytes, those before them from the last address on that is a multiple of `alignment`, and as many after them that it
    /// is `alignment` more than these; and how many stand before. `None` where the memory ends earlier.
    pub fn aligned_around(&self, alignment: usize) -> Option<(Self, usize)> {
        let before = self.bytes().as_ptr() as usize % alignment;
        let start = self.range.start.checked_sub(before)?;
        let end = start + self.range.len() + alignment;
        (end <= self.memory.bytes().len()).then(|| (Self::new(self.memory.clone(), start..end), before))
    }

    /// Whether the first byte's address is a multiple of `alignment`.
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
