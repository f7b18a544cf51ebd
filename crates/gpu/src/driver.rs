//! CUDA's libraries, found when they are asked for and not when the program starts: one program runs on machines with a GPU
//! and without, and says what is missing.
//!
//! cudarc, as candle builds it, calls the libraries by their names, which a linker would resolve at the start of the program
//! or not at all. Here each name is a jump through a slot. Before [`load`], and where there is no such library, a slot leads to
//! a function that returns the library's own code for "not there"; names that are not in the lists are linked as ever.

use std::sync::OnceLock;

use crate::GpuError;

/// Makes slots and jumps for the functions of one library.
macro_rules! library {
    ($module:ident, $missing:literal, [$($file:literal),+], $($name:ident)+) => {
        #[allow(non_snake_case, non_camel_case_types, clippy::enum_variant_names, reason = "names are those of the library")]
        mod $module {
            use std::arch::naked_asm;
            use std::ffi::c_int;
            use std::sync::atomic::{AtomicPtr, Ordering};

            /// Where each function lies in the slots.
            #[derive(Clone, Copy)]
            enum Slot { $($name),+ }

            const NAMES: &[&str] = &[$(stringify!($name)),+];
            const FILES: &[&str] = &[$($file),+];
            static SLOTS: [AtomicPtr<()>; NAMES.len()] = [const { AtomicPtr::new(missing as *mut ()) }; NAMES.len()];

            /// What every function does where there is no library.
            extern "C" fn missing() -> c_int {
                $missing
            }

            $(
                /// Goes on where the slot says, with all arguments as they are.
                // SAFETY: the name is that of the library's function, and whoever calls it keeps to that function's rules: what
                // lies behind the slot is the function itself, or one that reads no argument and returns an error.
                #[unsafe(no_mangle)]
                #[unsafe(naked)]
                unsafe extern "C" fn $name() -> c_int {
                    #[cfg(target_arch = "x86_64")]
                    naked_asm!(
                        "jmp qword ptr [rip + {slots} + {offset}]",
                        slots = sym SLOTS,
                        offset = const 8 * Slot::$name as usize,
                    );
                    #[cfg(target_arch = "aarch64")]
                    naked_asm!(
                        "adrp x16, {slots}",
                        "add x16, x16, :lo12:{slots}",
                        "ldr x16, [x16, #{offset}]",
                        "br x16",
                        slots = sym SLOTS,
                        offset = const 8 * Slot::$name as usize,
                    );
                }
            )+

            /// Fills the slots from the first of the files that is there.
            pub(super) fn load() -> bool {
                // SAFETY: these are NVIDIA's libraries, whose loading runs nothing that this program could upset.
                let Some(library) = FILES.iter().find_map(|file| unsafe { libloading::Library::new(*file) }.ok()) else {
                    return false;
                };
                for (name, slot) in NAMES.iter().zip(&SLOTS) {
                    // SAFETY: it is only jumped to as the function of that name.
                    if let Ok(function) = unsafe { library.get::<*mut ()>(name.as_bytes()) } {
                        slot.store(*function, Ordering::Release);
                    }
                }
                // the slots lead into it from now on
                std::mem::forget(library);
                true
            }
        }
    };
}

library! {
    // CUDA_ERROR_STUB_LIBRARY
    driver, 34, ["libcuda.so.1"],
        cuCtxCreate_v3 cuCtxCreate_v4 cuCtxDestroy_v2 cuCtxGetCacheConfig cuCtxGetCurrent cuCtxGetLimit
        cuCtxGetStreamPriorityRange cuCtxSetCacheConfig cuCtxSetCurrent cuCtxSetFlags cuCtxSetLimit cuCtxSynchronize
        cuDestroyExternalMemory cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount cuDeviceGetDefaultMemPool
        cuDeviceGetMemPool cuDeviceGetName cuDeviceGetUuid cuDeviceGetUuid_v2 cuDevicePrimaryCtxRelease_v2
        cuDevicePrimaryCtxRetain cuDeviceSetMemPool cuDeviceTotalMem_v2 cuDriverGetVersion cuEventCreate
        cuEventDestroy_v2 cuEventElapsedTime cuEventElapsedTime_v2 cuEventQuery cuEventRecord cuEventSynchronize
        cuExternalMemoryGetMappedBuffer cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig cuGetErrorName
        cuGetErrorString cuGraphClone cuGraphDestroy cuGraphExecDestroy cuGraphInstantiateWithFlags cuGraphLaunch
        cuGraphUpload cuImportExternalMemory cuInit cuLaunchCooperativeKernel cuLaunchHostFunc cuLaunchKernel
        cuLaunchKernelEx cuMemAdvise_v2 cuMemAllocAsync cuMemAllocFromPoolAsync cuMemAllocManaged cuMemAlloc_v2
        cuMemFreeAsync cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemHostAlloc cuMemPoolCreate cuMemPoolDestroy
        cuMemPoolGetAttribute cuMemPoolSetAttribute cuMemPoolTrimTo cuMemPrefetchAsync_v2 cuMemcpyDtoDAsync_v2
        cuMemcpyDtoD_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2 cuMemcpyPeerAsync
        cuMemsetD8Async cuMemsetD8_v2 cuModuleGetFunction cuModuleGetGlobal_v2 cuModuleLoad cuModuleLoadData
        cuModuleUnload cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveBlocksPerMultiprocessor
        cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags cuOccupancyMaxActiveClusters
        cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags cuOccupancyMaxPotentialClusterSize
        cuPointerGetAttribute cuProfilerStart cuProfilerStop cuStreamAttachMemAsync cuStreamBeginCapture_v2
        cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamEndCapture cuStreamGetCaptureInfo_v2
        cuStreamGetCaptureInfo_v3 cuStreamIsCapturing cuStreamSynchronize cuStreamWaitEvent
}

library! {
    // CUBLAS_STATUS_NOT_INITIALIZED
    cublas, 1, ["libcublas.so.13", "libcublas.so.12"],
        cublasCreate_v2 cublasDasum_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasDgemm_v2 cublasDgemv_v2
        cublasGemmEx cublasGemmStridedBatchedEx cublasSasum_v2 cublasSetStream_v2 cublasSgemmStridedBatched
        cublasSgemm_v2 cublasSgemv_v2 cublasSetWorkspace_v2 cublasSetMathMode
}

library! {
    // CURAND_STATUS_INITIALIZATION_FAILED
    curand, 203, ["libcurand.so.10"],
        curandCreateGenerator curandDestroyGenerator curandGenerate curandGenerateLogNormal
        curandGenerateLogNormalDouble curandGenerateLongLong curandGenerateNormal curandGenerateNormalDouble
        curandGeneratePoisson curandGenerateUniform curandGenerateUniformDouble curandSetGeneratorOffset
        curandSetPseudoRandomGeneratorSeed curandSetStream
}

/// Looks for the libraries, once.
///
/// # Errors
/// [`GpuError::Missing`], naming the first that is not there.
pub fn load() -> Result<(), GpuError> {
    static MISSING: OnceLock<Option<(&str, &str)>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| {
        [
            (driver::load as fn() -> bool, "libcuda.so.1", "NVIDIA's driver"),
            (cublas::load, "libcublas.so", "cuBLAS of CUDA 12 or 13"),
            (curand::load, "libcurand.so.10", "cuRAND of CUDA 12 or 13"),
        ]
        .into_iter()
        .find_map(|(load, library, of)| (!load()).then_some((library, of)))
    });
    match *missing {
        None => Ok(()),
        Some((library, of)) => Err(GpuError::Missing { library, of }),
    }
}
