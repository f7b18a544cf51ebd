//! An NVIDIA GPU: the kernels of [`fedprune_gpu`] on candle's memory and candle's stream.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::{CudaDType, CudaStorageSlice};
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaDevice, CudaStorage, DType, Device, InplaceOp1, InplaceOp2, Layout, Shape, Storage, Tensor,
};
use fedprune_checkpoint::TensorView;
use fedprune_gpu::upload::Uploader;
use fedprune_gpu::{Causal, Cuda, Gpu, GpuError, Mask, OwnedWeights, Sums, Weights, WeightsMut, found};
use fedprune_mask::{DType as Stored, MatrixMask, WeightsView};
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Choice, Refused};
use crate::ModelError;
use crate::attention::Seen;
use crate::error::Doing;
use crate::upload::widen_into;

/// Elements that one task brings into pinned memory.
const TASK_ELEMENTS: usize = 1 << 16;

/// The kernels and the copies of one device.
pub(crate) struct Accelerator {
    device: CudaDevice,
    gpu: Arc<Mutex<Gpu>>,
    uploader: Mutex<Uploader>,
}

/// Σ x² of the channels of one tap, on the device.
pub(crate) struct Squares {
    gpu: Arc<Mutex<Gpu>>,
    sums: Sums<Cuda>,
}

impl fmt::Debug for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accelerator").field("device", &self.device).finish_non_exhaustive()
    }
}

impl fmt::Debug for Squares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Squares")
    }
}

/// Whoever panicked with the lock left nothing half done that matters: what is queued is queued.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which of our stored formats a tensor on the device has.
macro_rules! typed {
    ($slice:expr, $typed:ident => $body:expr, $other:expr) => {
        match $slice {
            CudaStorageSlice::BF16($typed) => $body,
            CudaStorageSlice::F16($typed) => $body,
            CudaStorageSlice::F32($typed) => $body,
            _ => $other,
        }
    };
}

fn no_such_memory(what: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("{what} is not contiguous f32, bf16 or f16 on a GPU"))
}

impl Accelerator {
    /// Of a device that candle opened; none of the processor.
    pub(crate) fn of(device: &Device) -> Result<Option<Self>, ModelError> {
        let Device::Cuda(device) = device else { return Ok(None) };
        let stream = device.cuda_stream();
        found::keep_freed_memory(stream.context())?;
        let uploader = Mutex::new(Uploader::new(&stream)?);
        let gpu = Arc::new(Mutex::new(Gpu::new(stream)?));
        Ok(Some(Self { device: device.clone(), gpu, uploader }))
    }

    /// Bytes that can be allocated, and bytes that there are.
    pub(crate) fn memory(&self) -> Result<(u64, u64), ModelError> {
        Ok(found::memory(self.device.cuda_stream().context())?)
    }

    /// The most bytes that were allocated at once.
    pub(crate) fn most_used_bytes(&self) -> Result<Option<u64>, ModelError> {
        Ok(found::most_used_bytes(self.device.cuda_stream().context())?)
    }

    /// A stored tensor on the device, in `dtype`; it arrives while other things are computed.
    pub(crate) fn upload(&self, view: &TensorView<'_>, dtype: DType) -> Result<Tensor, ModelError> {
        let doing = || format!("loading `{}` of `{}`", view.name, view.file.display());
        match dtype {
            DType::BF16 => self.upload_as::<bf16, 2>(view, dtype, |value| bf16::from_f32(value).to_le_bytes()),
            DType::F16 => self.upload_as::<f16, 2>(view, dtype, |value| f16::from_f32(value).to_le_bytes()),
            DType::F32 => self.upload_as::<f32, 4>(view, dtype, f32::to_le_bytes),
            _ => Err(candle_core::Error::Msg(format!("no compute dtype: {dtype:?}"))),
        }
        .doing(doing)
    }

    fn upload_as<T: CudaDType + fedprune_gpu::cuda::Stored, const SIZE: usize>(
        &self,
        view: &TensorView<'_>,
        dtype: DType,
        round: impl Fn(f32) -> [u8; SIZE] + Sync,
    ) -> candle_core::Result<Tensor> {
        let stored_bytes = view.dtype.bytes();
        let length = view.bytes.len() / stored_bytes;
        let mut fill = |range: Range<usize>, out: &mut [u8]| {
            let bytes = &view.bytes[range.start * stored_bytes..range.end * stored_bytes];
            let parts = out.par_chunks_mut(TASK_ELEMENTS * SIZE).zip(bytes.par_chunks(TASK_ELEMENTS * stored_bytes));
            parts.for_each(|(out, bytes)| convert(view.dtype, bytes, dtype, &round, out));
        };
        let slice = lock(&self.uploader).upload::<T>(length, &mut fill).map_err(candle_core::Error::wrap)?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, self.device.clone()));
        Ok(Tensor::from_storage(storage, Shape::from(view.shape), BackpropOp::none(), false))
    }

    /// No squares of so many channels.
    pub(crate) fn squares(&self, channels: usize) -> Result<Squares, ModelError> {
        let sums = lock(&self.gpu).sums(channels)?;
        Ok(Squares { gpu: Arc::clone(&self.gpu), sums })
    }

    /// Scores of (groups, heads × queries, keys) to weights, in place.
    pub(crate) fn causal_softmax(
        &self,
        scores: &Tensor,
        queries: usize,
        seen: Seen,
        scale: f64,
    ) -> candle_core::Result<()> {
        let keys = scores.dim(2)?;
        let narrow = |number: usize| {
            u32::try_from(number).map_err(|_| candle_core::Error::Msg("a sequence of 2^32 tokens or more".to_owned()))
        };
        let causal = Causal {
            queries: narrow(queries)?,
            keys: narrow(keys)?,
            first_query: narrow(seen.first_query)?,
            first_key: narrow(seen.first_key)?,
            window: seen.window.map(narrow).transpose()?,
            scale: scale as f32,
        };
        scores.inplace_op1(&CausalSoftmax { gpu: &lock(&self.gpu), causal })
    }

    /// gate = silu(gate) · up, in place.
    pub(crate) fn gate_up(&self, gate: &Tensor, up: &Tensor) -> candle_core::Result<()> {
        gate.inplace_op2(up, &GateUp { gpu: &lock(&self.gpu) })
    }

    /// Zeroes the weights that `mask` prunes, in place.
    pub(crate) fn prune(&self, weight: &Tensor, mask: &MatrixMask) -> Result<(), ModelError> {
        let gpu = lock(&self.gpu);
        let mask = gpu.upload_mask(mask)?;
        weight.inplace_op1(&Prune { gpu: &gpu, mask: &mask }).doing(|| "pruning weights".to_owned())
    }

    /// Chooses the weights of matrices, each with what the checkpoint stores and which of the norms it takes, and zeroes
    /// them in place. With an error comes the matrix that it is about.
    pub(crate) fn select(
        &self,
        matrices: &[(&Tensor, WeightsView<'_>, usize)],
        choice: &Choice<'_>,
    ) -> Result<Vec<MatrixMask>, Refused> {
        let mut guard = lock(&self.gpu);
        let gpu = &mut *guard;
        let mut norms = Vec::with_capacity(choice.norms.len());
        for of_tap in choice.norms {
            norms.push(gpu.upload_norms(choice.pruner.with(of_tap), of_tap).map_err(Refused::at(None))?);
        }
        let mut masks = Vec::with_capacity(matrices.len());
        for (position, (tensor, stored, tap)) in matrices.iter().enumerate() {
            let at = Refused::at::<GpuError>(Some(position));
            // scores are of what is stored, to the bit: in another dtype the weights go there as they are
            let uploaded: Option<OwnedWeights<Cuda>> = match tensor.dtype() == candle_dtype(stored.dtype()) {
                true => None,
                false => Some(gpu.upload_weights(*stored).map_err(&at)?),
            };
            let Some(norms) = norms.get(*tap) else {
                return Err(Refused::at(Some(position))(ModelError::Config(
                    "a block has more taps than norms".to_owned(),
                )));
            };
            let (storage, layout) = tensor.storage_and_layout();
            let mask = match &uploaded {
                Some(weights) => {
                    let weights = gpu.lend(weights).map_err(&at)?;
                    gpu.derive_mask(choice.group, choice.sparsity, &weights, norms)
                }
                None => {
                    let shape = (stored.rows(), stored.columns());
                    let weights = borrowed(gpu, &storage, layout, shape).map_err(Refused::at(Some(position)))?;
                    gpu.derive_mask(choice.group, choice.sparsity, &weights, norms)
                }
            }
            .map_err(&at)?;
            drop(storage);
            masks.push(mask);
        }
        let mut downloaded = Vec::with_capacity(masks.len());
        for (position, ((tensor, ..), mask)) in matrices.iter().zip(&masks).enumerate() {
            let doing = || "pruning weights".to_owned();
            let pruned = tensor.inplace_op1(&Prune { gpu, mask }).doing(doing);
            pruned.map_err(Refused::at(Some(position)))?;
            downloaded.push(gpu.download_mask(mask).map_err(Refused::at(Some(position)))?);
        }
        Ok(downloaded)
    }
}

/// Brings stored values into the compute dtype: as they are where it is theirs.
fn convert<const SIZE: usize>(
    stored: Stored,
    bytes: &[u8],
    dtype: DType,
    round: &impl Fn(f32) -> [u8; SIZE],
    out: &mut [u8],
) {
    if candle_dtype(stored) == dtype {
        out.copy_from_slice(bytes);
        return;
    }
    let mut widened = [0f32; 256];
    for (out, bytes) in out.chunks_mut(256 * SIZE).zip(bytes.chunks(256 * stored.bytes())) {
        let widened = &mut widened[..bytes.len() / stored.bytes()];
        widen_into(stored, bytes, widened);
        for (out, value) in out.chunks_exact_mut(SIZE).zip(widened.iter()) {
            out.copy_from_slice(&round(*value));
        }
    }
}

fn candle_dtype(stored: Stored) -> DType {
    match stored {
        Stored::F32 => DType::F32,
        Stored::BF16 => DType::BF16,
        Stored::F16 => DType::F16,
    }
}

/// A matrix of candle's as one of the kernels'.
fn borrowed<'a>(
    gpu: &Gpu,
    storage: &'a Storage,
    layout: &Layout,
    (rows, columns): (usize, usize),
) -> Result<Weights<'a, Cuda>, ModelError> {
    let doing = || "reading weights on the GPU".to_owned();
    let (Storage::Cuda(storage), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        return Err(no_such_memory("a matrix")).doing(doing);
    };
    typed!(
        &storage.slice,
        slice => Ok(Weights::of(gpu, &slice.slice(start..end), rows, columns)?),
        Err(no_such_memory("a matrix")).doing(doing)
    )
}

struct Prune<'a> {
    gpu: &'a Gpu,
    mask: &'a Mask<Cuda>,
}

impl InplaceOp1 for Prune<'_> {
    fn name(&self) -> &'static str {
        "prune"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        Err(no_such_memory("a matrix on the processor"))
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { return Err(no_such_memory("a matrix")) };
        let (rows, columns) = layout.shape().dims2()?;
        typed!(
            &mut storage.slice,
            slice => {
                let mut view = slice.slice_mut(start..end);
                let mut weights =
                    WeightsMut::of(self.gpu, &mut view, rows, columns).map_err(candle_core::Error::wrap)?;
                self.gpu.prune(self.mask, &mut weights).map_err(candle_core::Error::wrap)
            },
            Err(no_such_memory("a matrix"))
        )
    }
}

struct CausalSoftmax<'a> {
    gpu: &'a Gpu,
    causal: Causal,
}

impl InplaceOp1 for CausalSoftmax<'_> {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        Err(no_such_memory("scores on the processor"))
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else { return Err(no_such_memory("scores")) };
        typed!(
            &mut storage.slice,
            slice => self
                .gpu
                .causal_softmax(&mut slice.slice_mut(start..end), self.causal)
                .map_err(candle_core::Error::wrap),
            Err(no_such_memory("scores"))
        )
    }
}

struct GateUp<'a> {
    gpu: &'a Gpu,
}

impl InplaceOp2 for GateUp<'_> {
    fn name(&self) -> &'static str {
        "gate-up"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> candle_core::Result<()> {
        Err(no_such_memory("a gate on the processor"))
    }

    fn cuda_fwd(
        &self,
        gate: &mut CudaStorage,
        gate_layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (Some(gate_at), Some(up_at)) = (gate_layout.contiguous_offsets(), up_layout.contiguous_offsets()) else {
            return Err(no_such_memory("a gate"));
        };
        let (gate_at, up_at) = (gate_at.0..gate_at.1, up_at.0..up_at.1);
        match (&mut gate.slice, &up.slice) {
            (CudaStorageSlice::BF16(gate), CudaStorageSlice::BF16(up)) => {
                self.gpu.gate_up(&mut gate.slice_mut(gate_at), &up.slice(up_at))
            }
            (CudaStorageSlice::F16(gate), CudaStorageSlice::F16(up)) => {
                self.gpu.gate_up(&mut gate.slice_mut(gate_at), &up.slice(up_at))
            }
            (CudaStorageSlice::F32(gate), CudaStorageSlice::F32(up)) => {
                self.gpu.gate_up(&mut gate.slice_mut(gate_at), &up.slice(up_at))
            }
            _ => return Err(no_such_memory("a gate")),
        }
        .map_err(candle_core::Error::wrap)
    }
}

impl Squares {
    /// Adds the squares of (tokens, channels).
    pub(crate) fn add(&mut self, activations: &Tensor) -> Result<(), ModelError> {
        let doing = || "summing squares on the GPU".to_owned();
        let (storage, layout) = activations.storage_and_layout();
        let (Storage::Cuda(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            return Err(no_such_memory("a tap")).doing(doing);
        };
        let gpu = lock(&self.gpu);
        typed!(
            &storage.slice,
            slice => Ok(gpu.add_squares(&mut self.sums, &slice.slice(start..end))?),
            Err(no_such_memory("a tap")).doing(doing)
        )
    }

    /// The sums, after all that was queued.
    pub(crate) fn read(&self) -> Result<Vec<f64>, ModelError> {
        Ok(lock(&self.gpu).download_sums(&self.sums)?)
    }
}
