//! Selection, counting, pruning and sums of squares: what is launched, and in which order.

mod count;
mod forward;
mod select;

use std::sync::Arc;

use fedprune_mask::select::DeriveError;
use fedprune_mask::weights::WeightsView;
use fedprune_mask::{DType, MatrixMask, NormVector, Pruner};

pub use forward::Causal;
pub use select::Selection;

use crate::bytes::{self, HISTOGRAM_BYTES, SETTLING_CAPACITY};
use crate::device::{Argument, Device, Launch};
use crate::error::GpuError;

/// A matrix of weights on the device, borrowed: row-major, as stored.
pub struct Weights<'a, D: Device> {
    dtype: DType,
    rows: usize,
    columns: usize,
    view: D::View<'a>,
}

/// A matrix of weights on the device, borrowed to be pruned in place.
pub struct WeightsMut<'a, D: Device> {
    dtype: DType,
    rows: usize,
    columns: usize,
    view: D::ViewMut<'a>,
}

/// A matrix of weights in device memory of its own.
pub struct OwnedWeights<D: Device> {
    dtype: DType,
    rows: usize,
    columns: usize,
    memory: D::Memory,
}

/// The norms of one tap on the device, as one pruner takes them.
pub struct Norms<D: Device> {
    pruner: Pruner,
    columns: usize,
    /// None for a pruner that uses no norms.
    factors: Option<D::Memory>,
}

/// A packed mask on the device, in the bit order of [`MatrixMask`].
pub struct Mask<D: Device> {
    rows: usize,
    columns: usize,
    memory: D::Memory,
}

/// How often each weight of one matrix was pruned: a plane for each bit of the total.
pub struct Counts<D: Device> {
    rows: usize,
    columns: usize,
    total: u32,
    added: u32,
    planes: D::Memory,
}

/// Sums of squares of the channels of one tap, in float64.
pub struct Sums<D: Device> {
    channels: usize,
    memory: D::Memory,
}

/// What selects, counts and sums on one device.
///
/// Calls are queued and carried out in order. Memory that selections share grows to what the largest matrix needs, and
/// is kept.
pub struct Engine<D: Device> {
    device: D,
    scratch: Option<Scratch<D>>,
}

struct Scratch<D: Device> {
    /// Entries that the list holds.
    capacity: u32,
    list: D::Memory,
    settling: D::Memory,
    histogram: D::Memory,
}

impl<'a, D: Device> Weights<'a, D> {
    /// What `view` spans, as a matrix.
    ///
    /// # Errors
    /// [`GpuError::Shape`] when its length contradicts dtype and shape, [`GpuError::TooLarge`].
    pub fn of_view(device: &D, dtype: DType, rows: usize, columns: usize, view: D::View<'a>) -> Result<Self, GpuError> {
        check_length("weights", dtype, rows, columns, device.view_length(&view))?;
        Ok(Self { dtype, rows, columns, view })
    }

    /// Storage format.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// out_features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// in_features.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

impl<'a, D: Device> WeightsMut<'a, D> {
    /// What `view` spans, as a matrix.
    ///
    /// # Errors
    /// As [`Weights::of_view`].
    pub fn of_view(
        device: &D,
        dtype: DType,
        rows: usize,
        columns: usize,
        view: D::ViewMut<'a>,
    ) -> Result<Self, GpuError> {
        check_length("weights", dtype, rows, columns, device.view_mut_length(&view))?;
        Ok(Self { dtype, rows, columns, view })
    }
}

impl<D: Device> OwnedWeights<D> {
    /// The stored bytes on the device.
    pub fn view<'a>(&'a self, device: &D) -> D::View<'a> {
        device.view(&self.memory, self.bytes())
    }

    fn bytes(&self) -> u64 {
        (self.rows * self.columns * self.dtype.bytes()) as u64
    }
}

impl<D: Device> Norms<D> {
    /// The pruner that takes them.
    pub fn pruner(&self) -> Pruner {
        self.pruner
    }
}

impl<D: Device> Mask<D> {
    /// out_features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// in_features.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

/// Bytes that hold a matrix of this shape, which the kernels can index.
fn check_length(what: &'static str, dtype: DType, rows: usize, columns: usize, bytes: u64) -> Result<(), GpuError> {
    let size = dtype.bytes() as u64;
    let weights = weights_of(rows, columns)?;
    if bytes != u64::from(weights) * size {
        let (found, expected) = ((bytes / size) as usize, weights as usize);
        return Err(GpuError::Shape { what, found, rows, columns, expected });
    }
    Ok(())
}

/// rows · columns, if the kernels can index as many.
fn weights_of(rows: usize, columns: usize) -> Result<u32, GpuError> {
    let weights = rows.checked_mul(columns).and_then(|weights| u32::try_from(weights).ok());
    // a matrix without weights may have any number of rows
    let fit = u32::try_from(rows).is_ok() && u32::try_from(columns).is_ok();
    weights.filter(|_| fit).ok_or(GpuError::TooLarge { rows, columns })
}

impl<D: Device> Engine<D> {
    /// On this device.
    pub fn on(device: D) -> Self {
        Self { device, scratch: None }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Copies a matrix to device memory of its own.
    ///
    /// # Errors
    /// [`GpuError`] when it does not fit.
    pub fn upload_weights(&self, weights: WeightsView<'_>) -> Result<OwnedWeights<D>, GpuError> {
        let (dtype, rows, columns) = (weights.dtype(), weights.rows(), weights.columns());
        weights_of(rows, columns)?;
        let mut memory = self.device.allocate("a matrix of weights", weights.bytes().len() as u64)?;
        self.device.upload(&mut memory, weights.bytes())?;
        Ok(OwnedWeights { dtype, rows, columns, memory })
    }

    /// Lends a matrix.
    ///
    /// # Errors
    /// None that can arise: its length was checked when it was made.
    pub fn lend<'a>(&self, weights: &'a OwnedWeights<D>) -> Result<Weights<'a, D>, GpuError> {
        let view = weights.view(&self.device);
        Weights::of_view(&self.device, weights.dtype, weights.rows, weights.columns, view)
    }

    /// Lends a matrix to be pruned in place.
    ///
    /// # Errors
    /// As [`Engine::lend`].
    pub fn lend_mut<'a>(&self, weights: &'a mut OwnedWeights<D>) -> Result<WeightsMut<'a, D>, GpuError> {
        let bytes = weights.bytes();
        let view = self.device.view_mut(&mut weights.memory, bytes);
        WeightsMut::of_view(&self.device, weights.dtype, weights.rows, weights.columns, view)
    }

    /// Copies a matrix back.
    ///
    /// # Errors
    /// [`GpuError::Failed`], also for what failed before.
    pub fn download_weights(&self, weights: &OwnedWeights<D>) -> Result<Vec<u8>, GpuError> {
        let mut bytes = vec![0; weights.rows * weights.columns * weights.dtype.bytes()];
        self.device.download(&weights.memory, &mut bytes)?;
        Ok(bytes)
    }

    /// Copies the norms of one tap, as `pruner` takes them; one that uses none takes any.
    ///
    /// # Errors
    /// [`GpuError::Memory`] or [`GpuError::Failed`].
    pub fn upload_norms(&self, pruner: Pruner, norms: &NormVector) -> Result<Norms<D>, GpuError> {
        let factors: Option<Vec<u8>> = match pruner {
            _ if !pruner.scorer().uses_norms() => None,
            // the root is rounded once, as everywhere
            Pruner::RIA => Some(norms.to_f64().iter().flat_map(|norm| norm.sqrt().to_le_bytes()).collect()),
            _ => Some(norms.bits().iter().flat_map(|bits| bits.to_le_bytes()).collect()),
        };
        let upload = |bytes: Vec<u8>| {
            let mut memory = self.device.allocate("the norms of one tap", bytes.len() as u64)?;
            self.device.upload(&mut memory, &bytes)?;
            Ok::<_, GpuError>(memory)
        };
        Ok(Norms { pruner, columns: norms.len(), factors: factors.map(upload).transpose()? })
    }

    /// Copies a mask to the device.
    ///
    /// # Errors
    /// [`GpuError`] when it does not fit.
    pub fn upload_mask(&self, mask: &MatrixMask) -> Result<Mask<D>, GpuError> {
        let (rows, columns) = (mask.rows(), mask.columns());
        let mut on_device = self.empty_mask(rows, columns)?;
        let bytes: Vec<u8> = mask.words().iter().flat_map(|word| word.to_le_bytes()).collect();
        self.device.upload(&mut on_device.memory, &bytes)?;
        Ok(on_device)
    }

    /// Copies a mask from the device, after all that was queued.
    ///
    /// # Errors
    /// [`GpuError::Failed`], also for what failed before.
    pub fn download_mask(&self, mask: &Mask<D>) -> Result<MatrixMask, GpuError> {
        let mut bytes = vec![0; (mask.rows * mask.columns).div_ceil(8)];
        self.device.download(&mask.memory, &mut bytes)?;
        MatrixMask::from_bytes(mask.rows, mask.columns, &bytes)
            .map_err(|error| GpuError::Failed { doing: "reading a mask", reason: error.to_string() })
    }

    /// Bytes that selections share already.
    pub(crate) fn scratch_bytes(&self) -> u64 {
        self.scratch.as_ref().map_or(0, |scratch| {
            [&scratch.list, &scratch.settling, &scratch.histogram].map(|memory| self.device.length(memory)).iter().sum()
        })
    }

    /// Memory of a mask, with anything in it.
    fn empty_mask(&self, rows: usize, columns: usize) -> Result<Mask<D>, GpuError> {
        weights_of(rows, columns)?;
        let memory = self.device.allocate("a mask", bytes::mask_bytes(rows, columns))?;
        Ok(Mask { rows, columns, memory })
    }

    /// What selections of this many weights share.
    fn scratch_for(&mut self, weights: u32) -> Result<&mut Scratch<D>, GpuError> {
        let capacity = bytes::list_capacity(u64::from(weights));
        if self.scratch.as_ref().is_none_or(|scratch| scratch.capacity < capacity) {
            self.scratch = None; // given back before more is asked for
            let doing = "the list of weights near the threshold";
            let list = self.device.allocate(doing, u64::from(capacity) * 8)?;
            let settling = self.device.allocate(doing, u64::from(SETTLING_CAPACITY) * 4)?;
            let histogram = self.device.allocate(doing, HISTOGRAM_BYTES)?;
            self.scratch = Some(Scratch { capacity, list, settling, histogram });
        }
        Ok(self.scratch.as_mut().expect("it was made above where there was none"))
    }
}

/// Queues a kernel whose arguments this module put together.
fn launch<D: Device>(
    device: &D,
    kernel: &str,
    (blocks, threads): (u32, u32),
    arguments: &mut [Argument<'_, '_, D>],
) -> Result<(), GpuError> {
    launch_sharing(device, kernel, (blocks, threads), 0, arguments)
}

/// As [`launch`], with dynamic shared memory.
fn launch_sharing<D: Device>(
    device: &D,
    kernel: &str,
    (blocks, threads): (u32, u32),
    shared_bytes: u32,
    arguments: &mut [Argument<'_, '_, D>],
) -> Result<(), GpuError> {
    // SAFETY: both functions are called in this module and its children only, by the parameter lists of `kernels/fedprune.cu`;
    // weights, masks, counts, norms and sums have the lengths that their types were made with and that were compared with
    // each other by the caller, and what is scratch is as large as `bytes` says. Tests run every one of these calls against
    // memory whose ends are watched.
    unsafe { device.launch(Launch { kernel, blocks, threads, shared_bytes, arguments }) }
}

/// Blocks that give each of `items` a thread, as far as a grid may reach; kernels go on in strides.
fn blocks_for(items: u64, threads: u32) -> u32 {
    items.div_ceil(u64::from(threads)).clamp(1, 1 << 20) as u32
}

/// Sums of |W| over columns and rows, which RIA divides by: shared by all selections of one matrix.
pub(crate) type SharesOf<D> = Arc<<D as Device>::Memory>;

/// Norms of another width than the matrix.
fn check_width(norms: usize, columns: usize) -> Result<(), GpuError> {
    fedprune_mask::score::WidthError::check(norms, columns).map_err(|error| DeriveError::from(error).into())
}
