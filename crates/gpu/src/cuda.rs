//! The device that is a GPU: memory, copies and launches by CUDA's driver, on the stream of whoever computes the activations.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;

use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceRepr, DriverError,
    LaunchConfig, PushKernelArg,
};
use cudarc::nvrtc::Ptx;
use fedprune_mask::{DType, NormVector};
use half::{bf16, f16};

use crate::device::{Argument, Device, Launch, Limits};
use crate::engine::{Causal, Engine, Sums, Weights, WeightsMut};
use crate::error::GpuError;

/// The kernels, as `build.rs` compiled them.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/fedprune.fatbin"));

/// An engine on a GPU.
pub type Gpu = Engine<Cuda>;

/// A GPU and one of its streams, with the kernels loaded.
pub struct Cuda {
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    /// Those that were launched before.
    functions: Mutex<HashMap<String, CudaFunction>>,
    limits: Limits,
}

/// A storage format of weights and activations.
pub trait Stored: sealed::Sealed + DeviceRepr {
    /// As the mask crate names it.
    const DTYPE: DType;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! stored {
    ($type:ty, $dtype:expr) => {
        impl sealed::Sealed for $type {}
        impl Stored for $type {
            const DTYPE: DType = $dtype;
        }
    };
}

stored!(bf16, DType::BF16);
stored!(f16, DType::F16);
stored!(f32, DType::F32);

fn failed(doing: &'static str) -> impl FnOnce(DriverError) -> GpuError {
    move |error| GpuError::Failed { doing, reason: error.to_string() }
}

impl Gpu {
    /// On this stream, which all that is given to it must be ready on.
    ///
    /// # Errors
    /// [`GpuError::Failed`] when the driver does not load the kernels: it is older than the toolkit that compiled them, or
    /// the device below compute capability 8.0.
    pub fn new(stream: Arc<CudaStream>) -> Result<Self, GpuError> {
        let context = stream.context();
        let module = context.load_module(Ptx::from_binary(KERNELS.to_vec())).map_err(failed("loading the kernels"))?;
        let attribute = |attribute| context.attribute(attribute).map_err(failed("asking the GPU for its limits"));
        let limits = Limits {
            processors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32,
            shared_bytes: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.max(0)
                as u32,
        };
        Ok(Engine::on(Cuda { stream, module, functions: Mutex::default(), limits }))
    }

    /// On a stream of its own of the GPU of this number, as `nvidia-smi` numbers them.
    ///
    /// # Errors
    /// [`GpuError::NoSuchGpu`], [`GpuError::Missing`] without a driver, [`GpuError::Failed`] when it refuses.
    pub fn open(ordinal: usize) -> Result<Self, GpuError> {
        let count = crate::found::count()?;
        if ordinal >= count {
            return Err(GpuError::NoSuchGpu { ordinal, count });
        }
        let context = CudaContext::new(ordinal).map_err(failed("opening the GPU"))?;
        let stream = context.new_stream().map_err(failed("opening the GPU"))?;
        Self::new(stream)
    }

    /// The norms of sums that stayed on the device: Wanda's, over so many calibration sequences.
    ///
    /// # Errors
    /// [`GpuError::Failed`]; a norm that is not finite is an error of [`NormVector::from_sums`].
    pub fn norms_of(
        &self,
        sums: &Sums<Cuda>,
        sequences: u64,
    ) -> Result<Result<NormVector, fedprune_mask::norms::NormError>, GpuError> {
        Ok(NormVector::from_sums(&self.download_sums(sums)?, sequences))
    }

    /// Adds the squares of `activations`, (tokens, channels) row-major, to the sums of one tap: exact squares, added in float64
    /// in slices of 64 tokens and then slice by slice. What is not finite makes its channel's sum so.
    ///
    /// # Errors
    /// [`GpuError::Shape`] when the length is not a multiple of the channels, and what the device says.
    pub fn add_squares<T: Stored>(&self, sums: &mut Sums<Cuda>, activations: &CudaView<'_, T>) -> Result<(), GpuError> {
        let bytes = bytes_of(activations)?;
        self.add_squares_of(sums, T::DTYPE, &bytes)
    }

    /// Scores to weights in place, (heads × queries, keys) row-major: softmax in float32 over the keys that each query sees,
    /// zero elsewhere.
    ///
    /// # Errors
    /// [`GpuError::Shape`] when the length is not one of whole heads, and what the device says.
    pub fn causal_softmax<T: Stored>(&self, scores: &mut CudaViewMut<'_, T>, causal: Causal) -> Result<(), GpuError> {
        self.causal_softmax_of(T::DTYPE, &mut bytes_of_mut(scores)?, causal)
    }

    /// gate = silu(gate) · up in place, in float32.
    ///
    /// # Errors
    /// [`GpuError::Shape`] when the lengths differ, and what the device says.
    pub fn gate_up<T: Stored>(&self, gate: &mut CudaViewMut<'_, T>, up: &CudaView<'_, T>) -> Result<(), GpuError> {
        self.gate_up_of(T::DTYPE, &mut bytes_of_mut(gate)?, &bytes_of(up)?)
    }

    /// Waits for all that was queued.
    ///
    /// # Errors
    /// [`GpuError::Failed`] for what failed before.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        self.device().stream.synchronize().map_err(failed("waiting for the GPU"))
    }
}

impl<'a> Weights<'a, Cuda> {
    /// Device memory as a matrix, row-major.
    ///
    /// # Errors
    /// [`GpuError::Shape`] when its length contradicts the shape, [`GpuError::TooLarge`].
    pub fn of<T: Stored>(gpu: &Gpu, view: &CudaView<'a, T>, rows: usize, columns: usize) -> Result<Self, GpuError> {
        Self::of_view(gpu.device(), T::DTYPE, rows, columns, bytes_of(view)?)
    }
}

impl<'a> WeightsMut<'a, Cuda> {
    /// Device memory as a matrix, row-major.
    ///
    /// # Errors
    /// As [`Weights::of`].
    pub fn of<T: Stored>(
        gpu: &Gpu,
        view: &'a mut CudaViewMut<'_, T>,
        rows: usize,
        columns: usize,
    ) -> Result<Self, GpuError> {
        Self::of_view(gpu.device(), T::DTYPE, rows, columns, bytes_of_mut(view)?)
    }
}

fn bytes_of<'a, T: Stored>(view: &CudaView<'a, T>) -> Result<CudaView<'a, u8>, GpuError> {
    let length = view.len() * T::DTYPE.bytes();
    // SAFETY: every byte of bf16, f16 and f32 is a byte, and there are `length` of them.
    let bytes = unsafe { view.transmute::<u8>(length) };
    bytes.ok_or(GpuError::Failed { doing: "lending memory", reason: "its length is not what it was".to_owned() })
}

fn bytes_of_mut<'v, T: Stored>(view: &'v mut CudaViewMut<'_, T>) -> Result<CudaViewMut<'v, u8>, GpuError> {
    let length = view.len() * T::DTYPE.bytes();
    // SAFETY: every byte of bf16, f16 and f32 is a byte, and there are `length` of them.
    let bytes = unsafe { view.transmute_mut::<u8>(length) };
    bytes.ok_or(GpuError::Failed { doing: "lending memory", reason: "its length is not what it was".to_owned() })
}

impl Cuda {
    /// The stream that everything is queued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn function(&self, kernel: &str, shared_bytes: u32) -> Result<CudaFunction, GpuError> {
        let mut functions = self.functions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(function) = functions.get(kernel) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(kernel).map_err(failed("looking for a kernel"))?;
        if shared_bytes > 0 {
            // what a block may ask for is less unless a kernel is said to ask for more: all that there is beside its own
            let own = function.shared_size_bytes().map_err(failed("asking for a kernel's memory"))?;
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(self.limits.shared_bytes).unwrap_or(i32::MAX) - own;
            function.set_attribute(most, bytes).map_err(failed("asking for shared memory"))?;
        }
        functions.insert(kernel.to_owned(), function.clone());
        Ok(function)
    }
}

impl Device for Cuda {
    type Memory = CudaSlice<u8>;
    type View<'a> = CudaView<'a, u8>;
    type ViewMut<'a> = CudaViewMut<'a, u8>;

    fn allocate(&self, doing: &'static str, bytes: u64) -> Result<Self::Memory, GpuError> {
        let too_much = |free| GpuError::Memory { doing, needed: bytes, free };
        // the driver has no memory of no bytes
        let length = usize::try_from(bytes.max(1)).map_err(|_| too_much(0))?;
        // SAFETY: bytes are bytes whatever is in them; the kernels write what they read.
        match unsafe { self.stream.alloc::<u8>(length) } {
            Ok(memory) => Ok(memory),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(too_much(self.free_bytes()?)),
            Err(error) => Err(failed("reserving memory")(error)),
        }
    }

    fn length(&self, memory: &Self::Memory) -> u64 {
        memory.len() as u64
    }

    fn clear(&self, memory: &mut Self::Memory) -> Result<(), GpuError> {
        self.stream.memset_zeros(memory).map_err(failed("zeroing memory"))
    }

    fn upload(&self, memory: &mut Self::Memory, bytes: &[u8]) -> Result<(), GpuError> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.stream.memcpy_htod(bytes, &mut memory.slice_mut(..bytes.len())).map_err(failed("copying to the GPU"))
    }

    fn download(&self, memory: &Self::Memory, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.download_view(&memory.as_view(), 0, bytes)
    }

    fn download_view(&self, view: &Self::View<'_>, offset: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let part = view.slice(offset as usize..offset as usize + bytes.len());
        self.stream.memcpy_dtoh(&part, bytes).map_err(failed("copying from the GPU"))?;
        self.stream.synchronize().map_err(failed("computing"))
    }

    fn view<'a>(&self, memory: &'a Self::Memory, bytes: u64) -> Self::View<'a> {
        memory.slice(..bytes as usize)
    }

    fn view_length(&self, view: &Self::View<'_>) -> u64 {
        view.len() as u64
    }

    fn view_mut<'a>(&self, memory: &'a mut Self::Memory, bytes: u64) -> Self::ViewMut<'a> {
        memory.slice_mut(..bytes as usize)
    }

    fn view_mut_length(&self, view: &Self::ViewMut<'_>) -> u64 {
        view.len() as u64
    }

    fn free_bytes(&self) -> Result<u64, GpuError> {
        let context = self.stream.context();
        let (free, _) = context.mem_get_info().map_err(failed("asking for free memory"))?;
        Ok(free as u64)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    unsafe fn launch(&self, launch: Launch<'_, '_, '_, Self>) -> Result<(), GpuError> {
        let function = self.function(launch.kernel, launch.shared_bytes)?;
        let mut builder = self.stream.launch_builder(&function);
        for argument in launch.arguments.iter_mut() {
            match argument {
                Argument::Read(memory) => builder.arg(&**memory),
                Argument::Write(memory) => builder.arg(&mut **memory),
                Argument::View(view) => builder.arg(&**view),
                Argument::ViewMut(view) => builder.arg(&mut **view),
                Argument::U32(number) => builder.arg(&*number),
                Argument::U64(number) => builder.arg(&*number),
            };
        }
        let config = LaunchConfig {
            grid_dim: (launch.blocks, 1, 1),
            block_dim: (launch.threads, 1, 1),
            shared_mem_bytes: launch.shared_bytes,
        };
        // SAFETY: as our caller vouches, these are the kernel's parameters, and memory is as long as it reads and writes.
        // Everything that is lent outlives the launch in the order of the stream: cudarc frees and copies in that order too.
        unsafe { builder.launch(config) }.map_err(failed("launching a kernel"))?;
        Ok(())
    }
}
