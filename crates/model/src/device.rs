//! Where to compute, and in which floating-point format.

use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device};

use crate::ModelError;

/// A device by its name on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU by ordinal; needs the cargo feature `cuda`.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        let unknown = || ModelError::DeviceName(name.chars().take(64).collect());
        match name.split_once(':') {
            None if name == "cpu" => Ok(Self::Cpu),
            None if name == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", ordinal)) if ordinal.bytes().all(|byte| byte.is_ascii_digit()) => {
                ordinal.parse().map(Self::Cuda).map_err(|_| unknown())
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl DeviceName {
    /// Whether there is such a device, as far as can be said without opening it.
    ///
    /// # Errors
    /// As [`DeviceName::open`], save for a driver that refuses then.
    pub fn check(self) -> Result<(), ModelError> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda(ordinal) => check_gpu(ordinal),
        }
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`ModelError::NoCuda`] in a build without the feature; [`ModelError::NoDriver`] on a machine without one,
    /// [`ModelError::NoSuchDevice`] where there are fewer GPUs; [`ModelError::DeviceOpen`] when the driver refuses.
    pub fn open(self) -> Result<Device, ModelError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) => open_gpu(ordinal),
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn check_gpu(ordinal: usize) -> Result<(), ModelError> {
    Err(ModelError::NoCuda(ordinal))
}

#[cfg(feature = "cuda")]
fn check_gpu(ordinal: usize) -> Result<(), ModelError> {
    let count =
        fedprune_gpu::found::count().map_err(|error| ModelError::NoDriver { ordinal, reason: error.to_string() })?;
    if ordinal < count { Ok(()) } else { Err(ModelError::NoSuchDevice { ordinal, count }) }
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(ordinal: usize) -> Result<Device, ModelError> {
    Err(ModelError::NoCuda(ordinal))
}

/// On a stream of its own: the default one of a thread is another in every thread.
#[cfg(feature = "cuda")]
fn open_gpu(ordinal: usize) -> Result<Device, ModelError> {
    check_gpu(ordinal)?;
    Device::new_cuda_with_stream(ordinal).map_err(|source| ModelError::DeviceOpen { ordinal, source: Box::new(source) })
}

/// The format of weights and activations while computing, whatever the checkpoint stores.
///
/// All three work everywhere. On the processor f32 is the fastest and the most exact: candle widens bf16
/// there for every product, and f16 has no vector arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComputeDType {
    /// IEEE single precision: the default on the processor, and what the oracle computes in.
    F32,
    /// bfloat16: the default on a GPU.
    BF16,
    /// IEEE half precision.
    F16,
}

impl FromStr for ComputeDType {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self, ModelError> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::BF16),
            "f16" => Ok(Self::F16),
            _ => Err(ModelError::DTypeName(name.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for ComputeDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ComputeDType {
    /// What is used on `device` when nothing is asked for.
    pub fn default_for(device: &Device) -> Self {
        if device.is_cpu() { Self::F32 } else { Self::BF16 }
    }

    /// The candle dtype.
    pub const fn candle(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::BF16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
        }
    }
}
