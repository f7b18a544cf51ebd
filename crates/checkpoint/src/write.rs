//! The pruned copy of a checkpoint: complete, or not there at all.
//!
//! Weight files are streamed shard by shard, tensor by tensor in file order, with the same names, the same
//! dtypes, and byte for byte the same headers. They are read once: the digest of the original is taken along the way.
//! One matrix is in work at a time, the next one is being read, and up to two are being written. What lies beside them goes along
//! (see [`MAX_CARRIED_BYTES`]); the caller adds files of its own, which take the place of carried ones. An original
//! `README.md` that is replaced is kept as `README.base.md`: it states the base model's licence and authors.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use fedprune_mask::Digest;

pub use crate::carry::MAX_CARRIED_BYTES;
use crate::carry::{self, Survey};
use crate::checkpoint::{Checkpoint, Shard, Tensor};
use crate::content;
use crate::error::{BoxError, CheckpointError, reading, shorten};
use crate::read_ahead::{Loaded, ReadAhead};
use crate::shards::{INDEX_FILE, SINGLE_FILE, check_file_name};
use crate::staging::{self, Staging};
use crate::write_behind::{Buffer, WriteBehind, WriterGone};

/// A file that the caller adds to the copy.
pub struct ExtraFile<'a> {
    /// A plain, visible file name.
    pub name: String,
    /// What is in it.
    pub contents: Extra<'a>,
}

/// Contents of an added file.
pub enum Extra<'a> {
    /// These bytes.
    Bytes(Cow<'a, [u8]>),
    /// Those of another file.
    Copy(PathBuf),
    /// Written once the weights are, by a function that is told what they came to.
    Write {
        /// About how many bytes; for the check of free space.
        bytes: u64,
        /// Writes them.
        write: ExtraWriter<'a>,
    },
}

/// Writes an added file.
pub type ExtraWriter<'a> = Box<dyn Fn(&Pruned, &mut dyn Write) -> Result<(), BoxError> + 'a>;

/// What the pruned weights came to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pruned {
    /// Content digest of the copy: what [`Checkpoint::content_digest`] will say of it.
    pub content_digest: Digest,
    /// Content digest of the original, of the very bytes that were copied.
    pub base_digest: Digest,
    /// Name under which the original's model card is kept, when one of the added files replaces it.
    pub base_card: Option<String>,
}

/// What was written.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Written {
    /// The folder.
    pub folder: PathBuf,
    /// Content digest of the copy.
    pub content_digest: Digest,
    /// Content digest of the original, of the very bytes that were copied.
    pub base_digest: Digest,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Names of the files carried along, as they are called in the copy.
    pub carried: Vec<String>,
    /// Files left out.
    pub skipped: Vec<Skipped>,
    /// Name under which the original's model card is kept, when one of the added files replaced it.
    pub base_card: Option<String>,
}

/// A file of the original that is not in the copy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: &'static str,
}

/// Changes one matrix in place: layout index, stored bytes (row-major, little-endian).
pub type Edit<'a> = dyn FnMut(usize, &mut [u8]) -> Result<(), BoxError> + 'a;

/// Refuses a path for a copy that exists already, or whose parent does not. For a caller that wants to
/// know before it reads anything; [`write_pruned`] checks again.
///
/// # Errors
/// [`CheckpointError::OutExists`], [`CheckpointError::OutPath`].
pub fn check_out(out: &Path) -> Result<(), CheckpointError> {
    staging::check_out(out)
}

/// Refuses what would keep `checkpoint` from being copied, such as links out of its folder; for a caller that
/// wants to know before long work. [`write_pruned`] checks again.
///
/// # Errors
/// [`CheckpointError`], naming the file.
pub fn check_copyable(checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    carry::survey(checkpoint, &|_| false).map(|_| ())
}

impl Checkpoint {
    /// Bytes of all weight files, headers included: what the progress of [`write_pruned`] adds up to.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes().len() as u64).sum()
    }

    /// Whether the weights are listed by an index.
    pub(crate) fn is_sharded(&self) -> bool {
        !self.shards.iter().any(|shard| shard.name == SINGLE_FILE)
    }
}

/// Writes a copy of `checkpoint` to the new folder `out`, every prunable matrix passed through `edit`.
///
/// `edit` gets each matrix once, in file order (not layout order), and may fail, which also is the way to
/// cancel. `progress` is told the bytes of weight files written since its last call; they add up to
/// [`Checkpoint::file_bytes`].
///
/// # Errors
/// [`CheckpointError`]. Whatever fails, `out` does not exist afterwards and the temporary folder is removed.
pub fn write_pruned(
    checkpoint: &Checkpoint,
    out: &Path,
    edit: &mut Edit<'_>,
    extra: &[ExtraFile<'_>],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Written, CheckpointError> {
    staging::check_out(out)?;
    check_extra_names(checkpoint, extra)?;
    let Survey { carried, skipped, base_card } =
        carry::survey(checkpoint, &|name| extra.iter().any(|file| file.name == name))?;
    let mut needed_bytes = checkpoint.file_bytes();
    for bytes in carried.iter().map(|file| Ok(file.bytes)).chain(extra.iter().map(extra_bytes)) {
        needed_bytes = needed_bytes.saturating_add(bytes?);
    }
    let staging = Staging::begin(out, needed_bytes)?;

    let (mut bytes, hashes) = std::thread::scope(|scope| {
        let (mut writer, spare) = WriteBehind::begin(scope, progress);
        let mut reader = ReadAhead::begin(scope, checkpoint, spare);
        match stream(checkpoint, &staging, edit, &mut reader, &mut writer) {
            Ok(hashes) => Ok((writer.finish()?, hashes)),
            // the writer's error is the cause where the stream only found it gone
            Err(error) => Err(writer.abandon().err().or(error).expect("a writer that is gone has an error")),
        }
    })?;
    let digest = |hashes: &[Option<blake3::Hash>]| content::digest_of(&checkpoint.tensors, hashes);
    let pruned = Pruned { content_digest: digest(&hashes.written), base_digest: digest(&hashes.read), base_card };

    let mut names = Vec::with_capacity(carried.len());
    for carry::Carried { source, name, bytes: size } in &carried {
        bytes += copy_file(&staging, source, name, *size, MAX_CARRIED_BYTES)?;
        names.push(name.to_string_lossy().into_owned());
    }
    for file in extra {
        bytes += write_extra(&staging, file, &pruned)?;
    }
    staging.finish()?;
    Ok(Written {
        folder: out.to_owned(),
        content_digest: pruned.content_digest,
        base_digest: pruned.base_digest,
        bytes,
        carried: names,
        skipped,
        base_card: pruned.base_card,
    })
}

/// Hashes of the tensors that the model computes with.
struct Hashes {
    read: Vec<Option<blake3::Hash>>,
    written: Vec<Option<blake3::Hash>>,
}

/// All weight files, in order, to `writer`; no error of its own when the writer is gone.
fn stream(
    checkpoint: &Checkpoint,
    staging: &Staging,
    edit: &mut Edit<'_>,
    reader: &mut ReadAhead,
    writer: &mut WriteBehind<'_>,
) -> Result<Hashes, Option<CheckpointError>> {
    let none = vec![None; checkpoint.tensors.len()];
    let mut hashes = Hashes { read: none.clone(), written: none };
    for shard in &checkpoint.shards {
        let file = staging.create(OsStr::new(&shard.name), shard.bytes().len() as u64)?;
        writer.file(file)?;
        writer.append(Buffer::of(shard.bytes()[..shard.data_start].to_vec()))?;
        for &at in &shard.order {
            let tensor = &checkpoint.tensors[at];
            let (read, written) = match tensor.matrix {
                Some(index) => copy_edited(shard, tensor, index, edit, reader, writer)?,
                None => copy_windows(reader, writer)?,
            };
            hashes.read[at] = tensor.used.map(|_| read);
            hashes.written[at] = tensor.used.map(|_| written);
        }
    }
    Ok(hashes)
}

impl From<WriterGone> for Option<CheckpointError> {
    fn from(_: WriterGone) -> Self {
        None
    }
}

/// One prunable matrix through `edit`. Hashes before and after.
fn copy_edited(
    shard: &Shard,
    tensor: &Tensor,
    index: usize,
    edit: &mut Edit<'_>,
    reader: &mut ReadAhead,
    writer: &mut WriteBehind<'_>,
) -> Result<(blake3::Hash, blake3::Hash), Option<CheckpointError>> {
    let Loaded { mut buffer, hash } = reader.next()?;
    let read = hash.expect("a matrix is read in one piece");
    edit(index, buffer.bytes_mut()).map_err(|source| CheckpointError::Edit {
        tensor: tensor.name.clone(),
        path: shard.path.clone(),
        source,
    })?;
    let written = content::hash(buffer.bytes());
    writer.append(buffer)?;
    Ok((read, written))
}

/// Any other tensor: as it is, a window at a time.
fn copy_windows(
    reader: &mut ReadAhead,
    writer: &mut WriteBehind<'_>,
) -> Result<(blake3::Hash, blake3::Hash), Option<CheckpointError>> {
    loop {
        let Loaded { buffer, hash } = reader.next()?;
        writer.append(buffer)?;
        if let Some(hash) = hash {
            return Ok((hash, hash));
        }
    }
}

/// Copies a file whole, refusing one that has grown beyond `limit` bytes.
fn copy_file(staging: &Staging, source: &Path, name: &OsStr, bytes: u64, limit: u64) -> Result<u64, CheckpointError> {
    let mut reader = File::open(source).map_err(reading("open", source))?.take(limit.saturating_add(1));
    let mut file = staging.create(name, bytes)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => file.append(&buffer[..read])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(reading("read", source)(error)),
        }
    }
    if file.written() > limit {
        return Err(CheckpointError::TooLarge { path: source.to_owned(), bytes: file.written(), limit });
    }
    file.finish()
}

fn write_extra(staging: &Staging, extra: &ExtraFile<'_>, pruned: &Pruned) -> Result<u64, CheckpointError> {
    let name = OsStr::new(&extra.name);
    match &extra.contents {
        Extra::Bytes(bytes) => {
            let mut file = staging.create(name, bytes.len() as u64)?;
            file.append(bytes)?;
            file.finish()
        }
        Extra::Copy(source) => copy_file(staging, source, name, extra_bytes(extra)?, u64::MAX),
        Extra::Write { bytes, write } => {
            let mut buffered = BufWriter::new(staging.create(name, *bytes)?);
            let outcome = write(pruned, &mut buffered).and_then(|()| Ok(buffered.flush()?));
            let mut file = buffered.into_parts().0;
            // The file's own error says more than what the function made of it.
            match (file.take_failure(), outcome) {
                (Some(failure), _) => Err(failure),
                (None, Err(source)) => Err(CheckpointError::Extra { name: shorten(&extra.name), source }),
                (None, Ok(())) => file.finish(),
            }
        }
    }
}

/// Bytes that an added file will need.
fn extra_bytes(extra: &ExtraFile<'_>) -> Result<u64, CheckpointError> {
    match &extra.contents {
        Extra::Bytes(bytes) => Ok(bytes.len() as u64),
        Extra::Copy(source) => {
            let metadata = std::fs::metadata(source).map_err(reading("read", source))?;
            if !metadata.is_file() {
                return Err(reading("read", source)(std::io::Error::other("it is not a regular file")));
            }
            Ok(metadata.len())
        }
        Extra::Write { bytes, .. } => Ok(*bytes),
    }
}

fn check_extra_names(checkpoint: &Checkpoint, extra: &[ExtraFile<'_>]) -> Result<(), CheckpointError> {
    for (index, ExtraFile { name, .. }) in extra.iter().enumerate() {
        let bad = |problem| Err(CheckpointError::ExtraName { name: shorten(name), problem });
        if let Err(problem) = check_file_name(name) {
            return bad(problem);
        }
        // Either of the two names would make loaders read other weights than the pruned ones.
        let weights = [SINGLE_FILE, INDEX_FILE].contains(&name.as_str());
        if weights || checkpoint.shards.iter().any(|shard| shard.name == *name) {
            return bad("would replace the weights");
        }
        if extra[..index].iter().any(|earlier| earlier.name == *name) {
            return bad("is given twice");
        }
    }
    Ok(())
}
