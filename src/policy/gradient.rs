//! The gradient of a loss of a policy's log-probs and entropies: head, then decoder.

use super::{InternalPolicy, Targets, gather_rows_into};
use crate::compute::Packing;
use crate::compute::cpu::head::{HeadStats, RowGradients};
use crate::model::decoder::HeadScratch;
use crate::model::{Keep, Model, Workspace};
use std::convert::Infallible;
use std::ops::Range;

/// How a gradient is taken.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Divides the logits.
    pub temperature: f32,
    /// [`Keep::Activations`] or [`Keep::LayerInputs`].
    pub keep: Keep,
    /// The loss is asked once, with the statistics of all targets, instead of for blocks of them: for a loss of whole
    /// responses. The head's logits are then made twice.
    pub whole: bool,
}

impl InternalPolicy {
    /// [`InternalPolicy::score`], and the gradient of a loss of these statistics, added to `grads` (laid out as the
    /// parameters). Embedding, layers up to this policy's and the unembedding get one; everything above gets none (paper,
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
        pass: Pass,
        grads: &mut [f32],
        mut loss: impl FnMut(Range<usize>, &HeadStats) -> Result<RowGradients, E>,
    ) -> Result<HeadStats, E> {
        model.forward(ws, packing, self.tap(), pass.keep);
        let d = model.config.hidden_size;
        // Kept from call to call: fresh buffers of this size would cost a page fault for every page.
        let mut scratch = std::mem::take(&mut ws.head);
        let HeadScratch { hidden, d_hidden, d_state, logits } = &mut scratch;
        gather_rows_into(ws.state(), &targets.rows, d, hidden);
        d_hidden.resize(targets.len() * d, 0.0);
        let d_unembed = &mut grads[model.layout.unembed.clone()];
        let head = model.head(pass.temperature);
        let stats = if pass.whole {
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
        d_state.resize(packing.rows() * d, 0.0);
        for (row, dx) in targets.rows.iter().zip(d_hidden.chunks_exact(d)) {
            for (sum, x) in d_state[row * d..(row + 1) * d].iter_mut().zip(dx) {
                *sum += x;
            }
        }
        model.backward(ws, packing, self.tap(), d_state, grads);
        ws.head = scratch;
        Ok(stats)
    }
}
