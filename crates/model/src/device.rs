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
    /// Opens the device.
    ///
    /// # Errors
    /// [`ModelError::NoCuda`] in a build without the feature; [`ModelError::DeviceOpen`] when the driver refuses.
    pub fn open(self) -> Result<Device, ModelError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda(ordinal) if !cfg!(feature = "cuda") => Err(ModelError::NoCuda(ordinal)),
            Self::Cuda(ordinal) => {
                Device::new_cuda(ordinal).map_err(|source| ModelError::DeviceOpen { ordinal, source: Box::new(source) })
            }
        }
    }
}

/// The format of weights and activations while computing, whatever the checkpoint stores.
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
        f.write_str(match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

impl ComputeDType {
    /// What is used on `device` when nothing is asked for.
    pub fn default_for(device: &Device) -> Self {
        if device.is_cpu() { Self::F32 } else { Self::BF16 }
    }

    /// The candle dtype, where `device` can compute in it.
    ///
    /// # Errors
    /// [`ModelError::DTypeUnsupported`] for half precision on the processor.
    pub fn on(self, device: &Device) -> Result<DType, ModelError> {
        let unsupported = |problem| Err(ModelError::DTypeUnsupported { dtype: self.name(), problem });
        match (self, device.is_cpu()) {
            (Self::F32, _) => Ok(DType::F32),
            (Self::BF16, true) => unsupported("there is no bf16 matrix product for it"),
            (Self::F16, true) => unsupported("activations beyond 65,504 overflow, and it is slower than f32 there"),
            (Self::BF16, false) => Ok(DType::BF16),
            (Self::F16, false) => Ok(DType::F16),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
        }
    }
}
