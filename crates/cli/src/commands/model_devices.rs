//! `fedprune model devices`: what can compute on this machine.

use fedprune_model::{GpuDevice, devices};
use serde::Serialize;

use super::machine_memory;
use crate::output::{bytes, facts, table};

/// The answer of `fedprune model devices`.
#[derive(Debug, Serialize)]
pub struct DevicesReport {
    devices: Vec<DeviceRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<DriverRow>,
    /// Why no GPU is listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_gpus: Option<String>,
}

/// One device.
#[derive(Debug, Serialize)]
struct DeviceRow {
    /// What `--device` takes.
    device: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    free_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compute_capability: Option<String>,
}

/// The GPUs' driver.
#[derive(Debug, Serialize)]
struct DriverRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Newest CUDA that it knows.
    cuda: String,
}

crate::report!(DevicesReport);

/// Looks for devices. What is missing is said, and no error.
pub fn run() -> DevicesReport {
    let found = devices();
    let processor = DeviceRow {
        device: "cpu".to_owned(),
        name: format!("processor, {}", std::env::consts::ARCH),
        memory_bytes: machine_memory::all(),
        free_bytes: machine_memory::available(),
        threads: Some(found.threads),
        compute_capability: None,
    };
    let gpu = |gpu: &GpuDevice| DeviceRow {
        device: format!("cuda:{}", gpu.ordinal),
        name: gpu.name.clone(),
        memory_bytes: Some(gpu.memory_bytes),
        free_bytes: Some(gpu.free_bytes),
        threads: None,
        compute_capability: Some(format!("{}.{}", gpu.compute_capability.0, gpu.compute_capability.1)),
    };
    DevicesReport {
        devices: std::iter::once(processor).chain(found.gpus.iter().map(gpu)).collect(),
        driver: found
            .driver
            .map(|driver| DriverRow { version: driver.version, cuda: format!("{}.{}", driver.cuda.0, driver.cuda.1) }),
        no_gpus: found.no_gpus,
    }
}

impl DevicesReport {
    fn text(&self) -> String {
        let memory = |bytes_there: Option<u64>| bytes_there.map_or_else(|| "unknown".to_owned(), bytes);
        let rows: Vec<Vec<String>> = self
            .devices
            .iter()
            .map(|row| {
                let what = match (&row.compute_capability, row.threads) {
                    (Some(capability), _) => format!("compute capability {capability}"),
                    (None, Some(threads)) => format!("{threads} threads"),
                    (None, None) => String::new(),
                };
                vec![row.device.clone(), row.name.clone(), memory(row.memory_bytes), memory(row.free_bytes), what]
            })
            .collect();
        let mut text = table(&["device", "name", "memory", "free", ""], &rows);
        let mut more = Vec::new();
        if let Some(driver) = &self.driver {
            let version = driver.version.as_deref().unwrap_or("of unknown version");
            more.push(("driver", format!("{version}, for CUDA up to {}", driver.cuda)));
        }
        if let Some(reason) = &self.no_gpus {
            more.push(("no GPU", reason.clone()));
        }
        text.push_str(&facts(&more));
        text
    }
}
