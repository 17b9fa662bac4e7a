//! The gradient of a loss of a policy's log-probs and entropies: head, then decoder.

use super::{InternalPolicy, LayerIndex, Targets, gather_rows_into};
use crate::compute::Packing;
use crate::compute::cpu::head::{Head, HeadStats, RowGradients};
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
    pub fn gradient<E>(
        self,
        model: &Model,
        ws: &mut Workspace,
        packing: &Packing,
        targets: &Targets,
        pass: Pass<'_>,
        grads: &mut [f32],
        mut loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        let of_policy = |_: Part, rows: Range<usize>, stats: &HeadStats| loss(rows, stats);
        Ok(self.joint_gradient(None, model, ws, packing, targets, pass, grads, of_policy)?.0)
    }

    /// [`InternalPolicy::gradient`] of a loss that looks at the policy of a layer below as well, `beside`: one forward serves
    /// both, and the gradient of the lower one's state joins that of the upper one on its way down.
    #[allow(clippy::too_many_arguments)]
    pub fn joint_gradient<E>(
        self,
        beside: Option<LayerIndex>,
        model: &Model,
        ws: &mut Workspace,
        packing: &Packing,
        targets: &Targets,
        pass: Pass<'_>,
        grads: &mut [f32],
        mut loss: impl FnMut(Part, Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<(HeadStats, Option<HeadStats>), E> {
        model.forward_for(ws, packing, self.tap(), pass.keep, pass.trained, beside);
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
        let states = StateGradients { d_state: &mut d_state, beside: beside.map(|layer| (layer, d_beside.as_slice())) };
        model.backward(ws, packing, self.tap(), states, pass.trained, grads);
        ws.head = HeadScratch { d_state, d_beside, ..scratch };
        Ok((stats, beside_stats))
    }
}

/// The gradient of the unembedding, unless it is frozen.
fn unembedding<'a>(model: &Model, trained: &Trained, grads: &'a mut [f32]) -> Option<&'a mut [f32]> {
    let (range, from) = (&model.layout.unembed, model.layout.trainable().start);
    trained.has(range).then(|| &mut grads[range.start - from..range.end - from])
}

/// The head's part of a gradient.
struct HeadPass<'a> {
    model: &'a Model,
    packing: &'a Packing,
    targets: &'a Targets,
    pass: Pass<'a>,
    scratch: &'a mut HeadScratch,
}

impl HeadPass<'_> {
    /// Statistics of the targets under the policy that reads `state` `[T, d]`, whose gradient becomes `d_state`.
    fn run<E>(
        &mut self,
        state: &[f32],
        d_state: &mut Vec<f32>,
        d_unembed: Option<&mut [f32]>,
        mut loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        let (d, targets) = (self.model.config.hidden_size, self.targets);
        let HeadScratch { hidden, d_hidden, logits, .. } = &mut *self.scratch;
        gather_rows_into(state, &targets.rows, d, hidden);
        d_hidden.resize(targets.len() * d, 0.0);
        let head: Head<'_> = self.model.head(self.pass.temperature);
        let stats = if self.pass.whole {
            let all = loss(0..targets.len(), &head.forward(hidden, Some(&targets.ids)))?;
            let part = |rows: Range<usize>, _: &HeadStats| Ok::<_, Infallible>(all.part(rows));
            match head.forward_backward(hidden, &targets.ids, d_hidden, d_unembed, logits, part) {
                Ok(stats) => stats,
                Err(never) => match never {},
            }
        } else {
            head.forward_backward(hidden, &targets.ids, d_hidden, d_unembed, logits, loss)?
        };
        d_state.clear();
        d_state.resize(self.packing.rows() * d, 0.0);
        for (row, dx) in targets.rows.iter().zip(d_hidden.chunks_exact(d)) {
            for (sum, x) in d_state[row * d..(row + 1) * d].iter_mut().zip(dx) {
                *sum += x;
            }
        }
        Ok(stats)
    }
}
