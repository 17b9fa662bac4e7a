//! What a device does in a rollout: prompts to caches, sequences one or more tokens further.

use super::engine::{Completion, Engine, Request};
use super::sampler::SampleRng;
use crate::compute::Backend;
use crate::model::{Model, Workspace};
use anyhow::{Result, bail};

/// A device that can sample.
pub trait Rollout: Backend {
    type Session<'m>: Session;

    /// Makes ready what lasts for one rollout of the model: the weights must not change while it is there. `requests`: all that are to
    /// come, which have been checked against the model's context. Errors: a rollout that does not fit the device.
    fn session<'m>(
        model: &'m Model<Self>,
        ws: &'m mut Workspace<Self>,
        engine: &'m Engine<'m>,
        requests: &[Request],
    ) -> Result<Self::Session<'m>>;
}

/// One rollout on a device.
pub trait Session {
    /// Keys and values of a prompt, and the state that predicts its first new token.
    type Prompt;
    /// A sequence in the making. What it holds of the device's memory goes back when it is dropped.
    type Sequence: Send;

    /// Runs prompts through the decoder, together.
    fn prefill(&mut self, prompts: &[&[u32]]) -> Result<Vec<Self::Prompt>>;

    /// A sequence that continues a prompt of `prompt_len` tokens, with nothing drawn yet.
    fn begin(&self, prompt: &Self::Prompt, prompt_len: usize) -> Self::Sequence;

    /// Draws the first token of sequences that have none.
    fn first(&mut self, fresh: &mut [Live<Self::Sequence>]) -> Result<()>;

    /// Whether sequences that begin with so many tokens together can join the `live` ones.
    fn admits(&self, _tokens: usize, _live: usize) -> bool {
        true
    }

    /// Whether all sequences can be advanced. If not, the caller gives up the youngest, what it holds is dropped, and takes it up again
    /// later; a sequence by itself always can.
    fn advances(&self, _live: &[Live<Self::Sequence>]) -> bool {
        true
    }

    /// Takes up sequences that were given up, each from its prompt's tokens and those of its completion.
    fn resume(&mut self, _given_up: &[(&[u32], &Completion)]) -> Result<Vec<Self::Sequence>> {
        bail!("this device gives up no sequence, so there is none to take up again")
    }

    /// Takes every sequence, none of which has ended, one token further, or several: what is drawn behind an end is cut off by the
    /// caller, and changes nothing of what was drawn before it.
    fn advance(&mut self, live: &mut [Live<Self::Sequence>]) -> Result<()>;
}

/// A sequence that is being sampled.
pub struct Live<S> {
    pub(super) request: usize,
    pub(super) sample: usize,
    /// Tokens that are known not to end it.
    pub(super) passed: usize,
    pub sequence: S,
    pub rng: SampleRng,
    pub completion: Completion,
}

impl<S> Live<S> {
    /// The same with another sequence, or without one.
    pub(super) fn with<T>(self, sequence: T) -> Live<T> {
        let Live { request, sample, passed, rng, completion, .. } = self;
        Live { request, sample, passed, sequence, rng, completion }
    }
}
