//! A checkpoint folder, opened and checked; its weights mapped, not read.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use fedprune_mask::{DType, Layout, Matrix, WeightsView};
use memmap2::{Mmap, MmapOptions};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::architecture::{self, Expected};
use crate::config::ModelConfig;
use crate::error::{CheckpointError, reading, shorten};
use crate::header;
use crate::shards::{self, Index, WeightFiles};

/// Bytes that one thread reads at a time.
const READ_BYTES: usize = 4 << 20;

/// An opened checkpoint: configuration, layout, and every tensor by name.
///
/// Opening reads `config.json`, the index and the headers, and checks every tensor's shape and dtype;
/// weights are read from the mapped files when used. See the [crate] on files that change meanwhile.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    config: ModelConfig,
    layout: Layout,
    pub(crate) shards: Vec<Shard>,
    /// All stored tensors, sorted by name.
    pub(crate) tensors: Vec<Tensor>,
    /// Tensor index of each layout entry.
    pub(crate) matrices: Vec<usize>,
    /// For each block, the parts of the shards that hold it.
    blocks: Vec<Vec<(usize, Range<usize>)>>,
}

/// A tensor as stored, borrowed from the mapped file.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Storage format.
    pub dtype: DType,
    /// (out_features, in_features) of a matrix, (features) of a vector.
    pub shape: &'a [usize],
    /// Row-major, little-endian; at any alignment.
    pub bytes: &'a [u8],
    /// The file that holds it.
    pub file: &'a Path,
}

/// A tensor as it is stored, in whatever format.
#[derive(Debug, Clone)]
pub struct StoredTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Storage format, as safetensors names it.
    pub dtype: String,
    /// Its dimensions.
    pub shape: &'a [usize],
    /// As they lie in the mapped file.
    pub bytes: &'a [u8],
    /// Layout index of a prunable matrix.
    pub matrix: Option<usize>,
}

/// One mapped weight file.
#[derive(Debug)]
pub(crate) struct Shard {
    pub name: String,
    pub path: PathBuf,
    #[cfg(unix)]
    file: File,
    map: Mmap,
    /// Length of the length field and the header, in bytes.
    pub data_start: usize,
    /// Indices into [`Checkpoint::tensors`], in file order.
    pub order: Vec<usize>,
}

/// One stored tensor.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Index of its shard.
    pub shard: usize,
    /// Bytes of that file.
    pub range: Range<usize>,
    /// Set when the model computes with it.
    pub used: Option<DType>,
    /// Layout index of a prunable matrix.
    pub matrix: Option<usize>,
}

impl Shard {
    fn open(folder: &Path, name: String) -> Result<(Self, Vec<header::Stored>), CheckpointError> {
        let path = folder.join(&name);
        // A pipe would block; only regular files are opened.
        if !std::fs::metadata(&path).map_err(reading("read", &path))?.is_file() {
            return Err(reading("read", &path)(std::io::Error::other("it is not a regular file")));
        }
        let file = File::open(&path).map_err(reading("open", &path))?;
        // SAFETY: the mapping is read-only. It is sound as long as nobody truncates or rewrites the file
        // meanwhile, which no reader of mapped files can enforce; the crate documentation says so and the
        // writers concerned replace files by renaming.
        let map = unsafe { MmapOptions::new().map(&file) }.map_err(reading("map", &path))?;
        let header = header::parse(&path, &map)?;
        let shard = Self {
            name,
            path,
            #[cfg(unix)]
            file,
            map,
            data_start: header.data_start,
            order: Vec::new(),
        };
        Ok((shard, header.tensors))
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Copies bytes of the file into `buffer`, which is as long as the range: where each is looked at once and then changed,
    /// that is cheaper than mapping their pages.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], also for a file that was truncated meanwhile.
    pub fn read(&self, range: Range<usize>, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        let parts = buffer.par_chunks_mut(READ_BYTES).enumerate();
        let read = |(part, bytes): (usize, &mut [u8])| {
            let start = range.start + part * READ_BYTES;
            #[cfg(unix)]
            std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, start as u64)?;
            #[cfg(not(unix))]
            bytes.copy_from_slice(&self.map[start..start + bytes.len()]);
            Ok(())
        };
        parts.try_for_each(read).map_err(reading("read", &self.path))
    }

    /// Gives the resident pages of a range back to the system; the next access reads the file again.
    ///
    /// Pages at the edges are dropped whole, neighbours and all: that costs them a page fault, nothing
    /// else. Advice that the system does not take changes nothing, so its errors do not matter.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if range.end <= self.map.len() && !range.is_empty() {
            // SAFETY: the mapping is of a file, shared and read-only, so that dropped pages come back with
            // the same contents: borrowed slices stay valid and keep their values.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Checkpoint {
    /// Opens a folder with `config.json` and its weights; reads no weights.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file, the tensor and the remedy, when anything is missing, damaged,
    /// contradictory or not supported.
    pub fn open(folder: &Path) -> Result<Self, CheckpointError> {
        if !folder.is_dir() {
            return Err(CheckpointError::NotAFolder { path: folder.to_owned() });
        }
        let config_path = folder.join("config.json");
        let config = ModelConfig::read(&config_path)?;
        let WeightFiles { names, index } = shards::find(folder)?;

        let mut shards = Vec::with_capacity(names.len());
        let mut tensors: Vec<Tensor> = Vec::new();
        for (index, name) in names.into_iter().enumerate() {
            let (shard, stored) = Shard::open(folder, name)?;
            shards.push(shard);
            tensors.extend(stored.into_iter().map(|header::Stored { name, dtype, shape, range }| Tensor {
                name,
                dtype,
                shape,
                shard: index,
                range,
                used: None,
                matrix: None,
            }));
        }
        tensors.sort_by(|left, right| left.name.cmp(&right.name));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(CheckpointError::DuplicateTensor {
                tensor: shorten(&pair[0].name),
                first: shards[pair[0].shard].path.clone(),
                second: shards[pair[1].shard].path.clone(),
            });
        }
        if let Some(index) = &index {
            check_index(index, &shards, &tensors)?;
        }

        let mut matrices = Vec::new();
        let mut entries: Vec<Matrix> = Vec::new();
        let mut blocks: Vec<Vec<(usize, Range<usize>)>> = Vec::new();
        for expected in architecture::expected(&config) {
            let at = check_tensor(folder, &config, &shards, &mut tensors, &expected)?;
            let tensor = &mut tensors[at];
            if let Some(matrix) = expected.matrix() {
                tensor.matrix = Some(matrices.len());
                matrices.push(at);
                entries.push(matrix);
            }
            if let Some(block) = expected.block {
                blocks.resize_with(block + 1, Vec::new);
                blocks[block].push((tensor.shard, tensor.range.clone()));
            }
        }
        blocks.iter_mut().for_each(join_neighbours);
        for (at, tensor) in tensors.iter().enumerate() {
            shards[tensor.shard].order.push(at);
        }
        for shard in &mut shards {
            shard.order.sort_by_key(|&at| (tensors[at].range.start, tensors[at].range.end));
        }
        let layout = Layout::new(entries).map_err(|source| CheckpointError::Layout { path: config_path, source })?;
        Ok(Self { folder: folder.to_owned(), config, layout, shards, tensors, matrices, blocks })
    }

    /// The folder, as given.
    pub fn dir(&self) -> &Path {
        &self.folder
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The prunable matrices: by block, then q, k, v, o, gate, up, down.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The weight files, sorted by name.
    pub fn shards(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// Parameters of the model: elements of the tensors that it computes with, a tied head counted once.
    pub fn parameters(&self) -> u64 {
        let elements = |tensor: &Tensor| tensor.used.map_or(0, |dtype| tensor.range.len() / dtype.bytes()) as u64;
        self.tensors.iter().map(elements).sum()
    }

    /// Bytes of all stored tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.range.len() as u64).sum()
    }

    /// Names of the stored tensors that the model does not compute with, sorted: rotary buffers of old
    /// files, the stored head of a tied model. They are carried into the pruned copy as they are.
    pub fn unused(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().filter(|tensor| tensor.used.is_none()).map(|tensor| tensor.name.as_str())
    }

    /// Any tensor by name.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`] when it is not stored, [`CheckpointError::DType`] when it is neither
    /// BF16, F16 nor F32.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        let Some(tensor) = find(&self.tensors, name).map(|at| &self.tensors[at]) else {
            return Err(CheckpointError::MissingTensor {
                tensor: shorten(name),
                path: self.folder.clone(),
                remedy: "this model has no such tensor: check the name".to_owned(),
            });
        };
        let shard = &self.shards[tensor.shard];
        let Some(dtype) = readable(tensor.dtype) else {
            return Err(CheckpointError::DType {
                path: shard.path.clone(),
                tensor: shorten(name),
                dtype: tensor.dtype.to_string(),
            });
        };
        Ok(TensorView {
            name: &tensor.name,
            dtype,
            shape: &tensor.shape,
            bytes: &shard.bytes()[tensor.range.clone()],
            file: &shard.path,
        })
    }

    /// Every stored tensor, sorted by name, those that the model does not compute with included.
    pub fn stored(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.tensors.iter().map(|tensor| StoredTensor {
            name: &tensor.name,
            dtype: tensor.dtype.to_string(),
            shape: &tensor.shape,
            bytes: &self.shards[tensor.shard].bytes()[tensor.range.clone()],
            matrix: tensor.matrix,
        })
    }

    /// A prunable matrix by its layout index, of shape (out_features, in_features).
    ///
    /// # Panics
    /// When `index` is not in the layout: it is the caller's own.
    pub fn matrix(&self, index: usize) -> WeightsView<'_> {
        let tensor = &self.tensors[self.matrices[index]];
        let matrix = &self.layout.matrices()[index];
        let dtype = tensor.used.expect("a prunable matrix is used");
        let bytes = &self.shards[tensor.shard].bytes()[tensor.range.clone()];
        WeightsView::new(dtype, matrix.rows as usize, matrix.columns as usize, bytes)
            .expect("shape and length were checked when the checkpoint was opened")
    }

    /// The file that holds a prunable matrix.
    ///
    /// # Panics
    /// When `index` is not in the layout.
    pub fn matrix_file(&self, index: usize) -> &Path {
        &self.shards[self.tensors[self.matrices[index]].shard].path
    }

    /// Gives the resident pages of a decoder block back to the system: memory stays bounded by the
    /// blocks in use. Slices stay valid; reading them again costs page faults. Unknown blocks and
    /// systems without such advice: nothing happens.
    pub fn release_block(&self, block: usize) {
        for (shard, range) in self.blocks.get(block).into_iter().flatten() {
            self.shards[*shard].release(range.clone());
        }
    }

    /// Gives all resident pages of the weight files back to the system.
    pub fn release_all(&self) {
        for shard in &self.shards {
            shard.release(0..shard.bytes().len());
        }
    }
}

impl fedprune_mask::weights::MatrixSource for Checkpoint {
    fn matrix(&self, index: usize) -> WeightsView<'_> {
        Checkpoint::matrix(self, index)
    }

    fn done_with(&self, index: usize) {
        let tensor = &self.tensors[self.matrices[index]];
        self.shards[tensor.shard].release(tensor.range.clone());
    }
}

/// The stored formats that are read.
fn readable(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F16 => Some(DType::F16),
        Dtype::F32 => Some(DType::F32),
        _ => None,
    }
}

fn find(tensors: &[Tensor], name: &str) -> Option<usize> {
    tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
}

/// Each tensor that the index lists must be in the file that it names.
fn check_index(index: &Index, shards: &[Shard], tensors: &[Tensor]) -> Result<(), CheckpointError> {
    for (name, file) in &index.weight_map {
        let problem = match find(tensors, name).map(|at| &shards[tensors[at].shard].name) {
            Some(stored) if stored == file => continue,
            Some(stored) => format!("it places tensor `{}` in `{file}`, but `{stored}` holds it", shorten(name)),
            None => format!("it places tensor `{}` in `{file}`, which does not hold it", shorten(name)),
        };
        return Err(CheckpointError::Index { path: index.path.clone(), problem });
    }
    Ok(())
}

/// Finds one tensor that the model needs, checks and marks it; returns its index.
fn check_tensor(
    folder: &Path,
    config: &ModelConfig,
    shards: &[Shard],
    tensors: &mut [Tensor],
    expected: &Expected,
) -> Result<usize, CheckpointError> {
    let Some(at) = find(tensors, &expected.name) else {
        return Err(CheckpointError::MissingTensor {
            path: match shards {
                [only] => only.path.clone(),
                _ => folder.to_owned(),
            },
            remedy: missing_remedy(config, tensors, expected),
            tensor: expected.name.clone(),
        });
    };
    let tensor = &mut tensors[at];
    let path = || shards[tensor.shard].path.clone();
    let Some(dtype) = readable(tensor.dtype) else {
        let dtype = tensor.dtype.to_string();
        return Err(CheckpointError::DType { path: path(), tensor: expected.name.clone(), dtype });
    };
    if tensor.shape != expected.shape {
        return Err(CheckpointError::Shape {
            path: path(),
            tensor: expected.name.clone(),
            stored: tensor.shape.clone(),
            expected: expected.shape.clone(),
        });
    }
    tensor.used = Some(dtype);
    Ok(at)
}

/// The likeliest reason why a tensor is absent, as advice.
fn missing_remedy(config: &ModelConfig, tensors: &[Tensor], expected: &Expected) -> String {
    let stem = expected.name.strip_suffix(".weight").unwrap_or(&expected.name);
    let packed = ["qweight", "weight_packed", "weight_quantized"];
    if packed.iter().any(|suffix| find(tensors, &format!("{stem}.{suffix}")).is_some()) {
        return "it is stored quantised: use the unquantised checkpoint (BF16, F16 or F32)".to_owned();
    }
    if expected.name.strip_prefix("model.").is_some_and(|bare| find(tensors, bare).is_some()) {
        return "it is stored without the prefix `model.`: save the model as a causal language model \
                (`AutoModelForCausalLM`)"
            .to_owned();
    }
    if expected.name == "lm_head.weight" {
        return "set `tie_word_embeddings` to true in `config.json` if the head is the embedding, or download \
                the folder again"
            .to_owned();
    }
    match expected.block {
        Some(block) if !tensors.iter().any(|tensor| tensor.name.starts_with(&architecture::block_prefix(block))) => {
            format!(
                "nothing of block {block} is stored: download the folder again, or restore the `config.json` that \
                 belongs to it (it says {} blocks)",
                config.blocks
            )
        }
        _ => "download the folder again, or restore the `config.json` that belongs to it".to_owned(),
    }
}

/// Sorts ranges and joins those that touch, so that releasing a block takes few calls.
fn join_neighbours(ranges: &mut Vec<(usize, Range<usize>)>) {
    ranges.sort_by_key(|(shard, range)| (*shard, range.start));
    let mut joined: Vec<(usize, Range<usize>)> = Vec::with_capacity(ranges.len());
    for (shard, range) in ranges.drain(..) {
        match joined.last_mut() {
            Some((last, previous)) if *last == shard && previous.end == range.start => previous.end = range.end,
            _ => joined.push((shard, range)),
        }
    }
    *ranges = joined;
}
