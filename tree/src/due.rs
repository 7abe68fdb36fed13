//! The chunks of a tree that must come, in the order in which they come. Pure.

use plexus_proto::work::ChunkBatch;

use crate::manifest::Chunk;

/// Most bytes of a batch once it is decompressed; senders stop a chunk beyond 2 MiB.
pub const BATCH_MAX: usize = 4 << 20;

/// What came instead of a chunk that is due.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something else than what was asked for.
    #[error("chunks came that were not asked for, or do not decompress")]
    Batch,
    /// Not the bytes that were named.
    #[error("chunk does not have the digest it was sent for")]
    Digest,
}

/// What must come still.
#[derive(Debug, Default)]
pub struct Due {
    /// Places of chunks in their manifest, ascending.
    missing: Vec<u32>,
    /// How many of them came.
    came: usize,
}

impl Due {
    /// These places are missing, each once.
    pub fn new(mut missing: Vec<u32>) -> Self {
        missing.sort_unstable();
        Self { missing, came: 0 }
    }

    /// What must come, as pairs of first and count.
    pub fn need(&self) -> Vec<u32> {
        let mut pairs: Vec<u32> = Vec::new();
        for &place in &self.missing[self.came..] {
            match pairs.as_mut_slice() {
                [.., first, count] if *first + *count == place => *count += 1,
                _ => pairs.extend([place, 1]),
            }
        }
        pairs
    }

    /// True when nothing more must come.
    pub fn is_whole(&self) -> bool {
        self.came == self.missing.len()
    }

    /// Checks the chunks of a batch, which must be the next ones of `all`, and hands each with its place to `write`.
    ///
    /// # Errors
    /// Something else than the chunks that are due, or what `write` says.
    pub fn take<E: From<Error>>(
        &mut self,
        all: &[Chunk],
        batch: &ChunkBatch,
        mut write: impl FnMut(u32, &Chunk, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let plain;
        let mut data: &[u8] = match batch.plain_size as usize {
            0 => &batch.data,
            size if size <= BATCH_MAX => {
                plain = zstd::bulk::decompress(&batch.data, size).map_err(|_| Error::Batch)?;
                &plain
            }
            _ => return Err(Error::Batch.into()),
        };
        while !data.is_empty() {
            let place = *self.missing.get(self.came).ok_or(Error::Batch)?;
            let chunk = all.get(place as usize).ok_or(Error::Batch)?;
            let (bytes, rest) = data.split_at_checked(chunk.length as usize).ok_or(Error::Batch)?;
            if *blake3::hash(bytes).as_bytes() != chunk.digest {
                return Err(Error::Digest.into());
            }
            write(place, chunk, bytes)?;
            self.came += 1;
            data = rest;
        }
        Ok(())
    }
}
