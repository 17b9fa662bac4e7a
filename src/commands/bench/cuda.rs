//! What CUDA offers on this machine, as `bench machine` prints it.

use crate::compute::cuda::device::{DeviceError, DeviceInfo, Driver, usable};
use crate::compute::cuda::libraries::{CudaLibrary, NEWEST_MAJOR, Search, open};
use crate::compute::cuda::nvrtc::Nvrtc;
use serde_json::{Value, json};
use std::fmt::Display;

/// The driver, its GPUs, the compiler for them and the library of their products; for each that is not here, why.
pub fn offers(search: &Search) -> Value {
    let driver = Driver::open(search);
    let version = driver.as_ref().ok().map(|driver| driver.version);
    let newest = version.map_or(NEWEST_MAJOR, |version| version.major);
    let devices = driver.iter().flat_map(|d| (0..d.count).map(|index| device(d.describe(index))));
    json!({
        "devices": devices.collect::<Vec<_>>(),
        "driver": or_none(driver.as_ref().map(|driver| driver.version.to_string())),
        "nvrtc": or_none(Nvrtc::open(search, version).map(|nvrtc| nvrtc.version.to_string())),
        "cublaslt": or_none(open(CudaLibrary::CublasLt, search, newest).map(|found| found.path.display().to_string())),
    })
}

fn device(described: Result<DeviceInfo, DeviceError>) -> Value {
    let info = match described {
        Ok(info) => info,
        Err(reason) => return none(&reason),
    };
    let mut line = json!({
        "index": info.index, "name": info.name, "capability": info.capability.to_string(),
        "memory_mib": info.memory_bytes >> 20,
    });
    if let Err(reason) = usable(info) {
        line["unusable"] = json!(reason.to_string());
    }
    line
}

fn or_none(there: Result<String, impl Display>) -> Value {
    there.map_or_else(|reason| none(&reason), |text| json!(text))
}

fn none(reason: &impl Display) -> Value {
    json!({ "none": reason.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn what_is_not_here_is_named_with_its_reason() {
        let offers = offers(&Search::only(OsStr::new("")));
        assert_eq!(offers["devices"], json!([]));
        for (key, library) in [("driver", "libcuda.so"), ("nvrtc", "libnvrtc.so"), ("cublaslt", "libcublasLt.so")] {
            let reason = offers[key]["none"].as_str().unwrap_or_default();
            assert!(reason.contains(library), "{key}: {offers}");
        }
    }

    #[test]
    fn a_gpu_that_is_too_old_is_shown_and_said_to_be() {
        use crate::compute::cuda::Capability;
        let gpu = |major| DeviceInfo {
            index: 0,
            name: "GPU".to_string(),
            capability: Capability { major, minor: 5 },
            memory_bytes: 3 << 30,
            shared_bytes: 99 << 10,
        };
        assert_eq!(device(Ok(gpu(9))), json!({"index": 0, "name": "GPU", "capability": "9.5", "memory_mib": 3072}));
        let reason = device(Ok(gpu(7)))["unusable"].to_string();
        assert!(reason.contains("capability 7.5"), "{reason}");
        assert!(device(Err(DeviceError::NoGpu))["none"].to_string().contains("nvidia-smi"));
    }
}
