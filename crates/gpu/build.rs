//! Compiles `kernels/` with nvcc, with the feature `cuda` only.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo says where to write")).join("fedprune.fatbin");
    // PTX that any device from compute capability 8.0 on compiles when it loads it, and code for the one named, or the one
    // that is here, as candle has it
    let mut command = Command::new(nvcc());
    command.args(["-std=c++17", "-O3", "-fatbin", "-gencode", "arch=compute_80,code=compute_80"]);
    if let Some(capability) = capability() {
        command.args(["-gencode", &format!("arch=compute_{capability},code=sm_{capability}")]);
    }
    command.arg("-o").arg(&out).arg("kernels/fedprune.cu");
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => panic!(
            "nvcc does not compile crates/gpu/kernels ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => panic!(
            "the feature `cuda` needs nvcc of the CUDA toolkit, and {command:?} does not run: {error}; install the toolkit and \
             set NVCC or CUDA_HOME, or build without the feature"
        ),
    }
}

/// Such as 90; none where it is not said and there is no GPU.
fn capability() -> Option<String> {
    let said = std::env::var("CUDA_COMPUTE_CAP").ok().or_else(|| {
        let mut command = Command::new("nvidia-smi");
        let output = command.args(["--query-gpu=compute_cap", "--format=csv,noheader"]).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.lines().next().filter(|_| output.status.success()).map(str::to_owned)
    });
    said.map(|capability| capability.trim().replace('.', "")).filter(|capability| !capability.is_empty())
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return nvcc.into();
    }
    let home = ["CUDA_HOME", "CUDA_PATH"].into_iter().find_map(std::env::var_os);
    home.map_or_else(|| "nvcc".into(), |home| PathBuf::from(home).join("bin/nvcc"))
}
