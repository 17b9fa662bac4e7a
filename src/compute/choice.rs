//! A device as it is asked for, in a recipe or on the command line.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// `cpu`, `cuda` (the first GPU), `cuda:1`, or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    #[default]
    Cpu,
    /// By CUDA's number, which `CUDA_VISIBLE_DEVICES` has a say in.
    Cuda(usize),
    /// The first GPU that can be used, else the CPU.
    Auto,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown device {got:?}: expected cpu, cuda, cuda:N with N a GPU's number from 0 on, or auto")]
pub struct UnknownDevice {
    pub got: String,
}

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<DeviceChoice, UnknownDevice> {
        let unknown = || UnknownDevice { got: text.to_string() };
        match text {
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            "auto" => Ok(DeviceChoice::Auto),
            _ => {
                let number = text.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
                number.and_then(|n| n.parse().ok()).map(DeviceChoice::Cuda).ok_or_else(unknown)
            }
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
            DeviceChoice::Auto => f.write_str("auto"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = UnknownDevice;

    fn try_from(text: String) -> Result<DeviceChoice, UnknownDevice> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        let named = [("cpu", DeviceChoice::Cpu), ("auto", DeviceChoice::Auto), ("cuda:1", DeviceChoice::Cuda(1))];
        for (text, choice) in named {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
            assert_eq!(serde_json::from_str::<DeviceChoice>(&format!("{text:?}")).unwrap(), choice);
            assert_eq!(serde_json::to_string(&choice).unwrap(), format!("{text:?}"));
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for nonsense in
            ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:99999999999999999999", "cuda:1 "]
        {
            let error = nonsense.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{nonsense:?}")) && error.contains("expected cpu, cuda, cuda:N"),
                "{error}"
            );
        }
        let error = serde_json::from_str::<DeviceChoice>("\"gpu\"").unwrap_err().to_string();
        assert!(error.contains("unknown device \"gpu\""), "{error}");
    }
}
