//! The gradient of a loss of a policy's log-probs and entropies: head, then decoder.

use super::{InternalPolicy, LayerIndex, Targets};
use crate::compute::backend::{HeadStats, Kind, RowGradients, sure};
use crate::compute::{Backend, Packing};
use crate::model::backward::StateGradients;
use crate::model::decoder::HeadScratch;
use crate::model::{Keep, Model, Trained, Workspace};
use std::convert::Infallible;
use std::ops::Range;

/// How a gradient is taken.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Divides the logits.
    pub temperature: f32,
    /// [`Keep::Activations`] or [`Keep::LayerInputs`].
    pub keep: Keep,
    /// The loss is asked once, with the statistics of all targets, instead of for blocks of them: for a loss of whole
    /// responses. The head's logits are then made twice.
    pub whole: bool,
    /// What gets a gradient, of what the policy trains ([`crate::model::ParamLayout::trained_by`]).
    pub trained: &'a Trained,
}

/// Which of two policies a loss is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Policy,
    Beside,
}

impl InternalPolicy {
    /// [`InternalPolicy::score`], and the gradient of a loss of these statistics, added to `grads` (laid out as
    /// [`crate::model::ParamLayout::trainable`]). Embedding, layers up to this policy's and the unembedding get one; everything above gets none (paper,
    /// equations 14 and 15).
    ///
    /// `loss` is called for blocks of targets, in order (or once: [`Pass::whole`]), and returns its derivatives for each
    /// one's log-prob and entropy. An error of it ends the call; `grads` are then of no use.
    #[allow(clippy::too_many_arguments)]
    pub fn gradient<B: Backend, E>(
        self,
        model: &Model<B>,
        ws: &mut Workspace<B>,
        packing: &Packing,
        targets: &Targets,
        pass: Pass<'_>,
        grads: &mut B::Array,
        mut loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        let of_policy = |_: Part, rows: Range<usize>, stats: &HeadStats| loss(rows, stats);
        Ok(self.joint_gradient(None, model, ws, packing, targets, pass, grads, of_policy)?.0)
    }

    /// [`InternalPolicy::gradient`] of a loss that looks at the policy of a layer below as well, `beside`: one forward serves
    /// both, and the gradient of the lower one's state joins that of the upper one on its way down.
    #[allow(clippy::too_many_arguments)]
    pub fn joint_gradient<B: Backend, E>(
        self,
        beside: Option<LayerIndex>,
        model: &Model<B>,
        ws: &mut Workspace<B>,
        packing: &Packing,
        targets: &Targets,
        pass: Pass<'_>,
        grads: &mut B::Array,
        mut loss: impl FnMut(Part, Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<(HeadStats, Option<HeadStats>), E> {
        let batched = model.batched(packing);
        model.forward_for(ws, &batched, self.tap(), pass.keep, pass.trained, beside);
        // Kept from call to call: fresh buffers of this size would cost a page fault for every page.
        let mut scratch = std::mem::take(&mut ws.head);
        let HeadScratch { d_state, d_beside, .. } = &mut scratch;
        let (mut d_state, mut d_beside) = (std::mem::take(d_state), std::mem::take(d_beside));
        let mut head = HeadPass { model, packing, targets, pass, scratch: &mut scratch };
        let stats = head.run(ws.state(), &mut d_state, unembedding(model, pass.trained, grads), |rows, stats| {
            loss(Part::Policy, rows, stats)
        })?;
        let beside_stats = match beside {
            None => None,
            Some(layer) => {
                let asked = |rows: Range<usize>, stats: &HeadStats| loss(Part::Beside, rows, stats);
                Some(head.run(ws.stream(layer), &mut d_beside, unembedding(model, pass.trained, grads), asked)?)
            }
        };
        let states = StateGradients { d_state: &mut d_state, beside: beside.map(|layer| (layer, &d_beside)) };
        model.backward(ws, &batched, self.tap(), states, pass.trained, grads);
        ws.head = HeadScratch { d_state, d_beside, ..scratch };
        Ok((stats, beside_stats))
    }
}

/// The gradient of the unembedding, unless it is frozen.
fn unembedding<'a, B: Backend>(model: &Model<B>, trained: &Trained, grads: &'a mut B::Array) -> Option<B::Part<'a>> {
    let (range, from) = (&model.layout.unembed, model.layout.trainable().start);
    trained.has(range).then(|| B::part(grads, range.start - from..range.end - from))
}

/// The head's part of a gradient.
struct HeadPass<'a, B: Backend> {
    model: &'a Model<B>,
    packing: &'a Packing,
    targets: &'a Targets,
    pass: Pass<'a>,
    scratch: &'a mut HeadScratch<B::Array>,
}

impl<B: Backend> HeadPass<'_, B> {
    /// Statistics of the targets under the policy that reads `state` `[T, d]`, whose gradient becomes `d_state`.
    fn run<E>(
        &mut self,
        state: &B::Array,
        d_state: &mut B::Array,
        d_unembed: Option<B::Part<'_>>,
        mut loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        let (d, targets, backend) = (self.model.config.hidden_size, self.targets, &self.model.backend);
        let HeadScratch { hidden, d_hidden, logits, .. } = &mut *self.scratch;
        backend.gather_rows(state, &targets.rows, d, hidden);
        backend.resize(d_hidden, targets.len() * d, Kind::Factor);
        let head = self.model.unembedding(self.pass.temperature);
        let stats = if self.pass.whole {
            let all = loss(0..targets.len(), &backend.head(head, hidden, Some(&targets.ids), logits))?;
            let part = |rows: Range<usize>, _: &HeadStats| Ok::<_, Infallible>(all.part(rows));
            sure(backend.head_backward(head, hidden, &targets.ids, d_hidden, d_unembed, logits, part))
        } else {
            backend.head_backward(head, hidden, &targets.ids, d_hidden, d_unembed, logits, loss)?
        };
        backend.resize(d_state, self.packing.rows() * d, Kind::F32);
        backend.zero(d_state);
        backend.scatter_rows(d_hidden, &targets.rows, d, d_state);
        Ok(stats)
    }
}
