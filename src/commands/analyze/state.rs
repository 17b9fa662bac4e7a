//! What an analysis that is saved before it is finished is about.

use crate::analysis::Lens;
use crate::compute::Backend;
use crate::model::{Compute, Model};
use crate::run::fingerprint::Fingerprint;
use serde::{Deserialize, Serialize};

/// Everything that the sums depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub bupo: String,
    /// Fingerprints.
    pub model: String,
    pub data: String,
    /// Of the responses that the model gave, where the data had none.
    pub answers: Option<String>,
    pub lens: Lens,
    pub layer: Option<usize>,
    pub compute: Compute,
    /// Modules that the model is run without.
    #[serde(default)]
    pub ablate: Vec<String>,
}

/// Of a model's configuration and of every weight.
pub fn of_model<B: Backend>(model: &Model<B>) -> String {
    let mut fingerprint = Fingerprint::new();
    fingerprint.text(&format!("{:?}", model.config));
    fingerprint.floats(&model.host_params());
    fingerprint.hex()
}
