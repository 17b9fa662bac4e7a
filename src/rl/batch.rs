//! From groups of responses to packed micro-batches: each prompt once for the responses that share it.

use crate::compute::Packing;
use crate::policy::Targets;
use std::ops::Range;

/// One response and what the loss needs to know of it, token by token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    pub ids: Vec<u32>,
    /// Log-probs seen while sampling, `[ids.len()]`.
    pub rollout_log_probs: Vec<f32>,
    /// `[ids.len()]`
    pub advantages: Vec<f32>,
    /// It has no reward, and no update sees it: no row, no weight in a mean, no gradient.
    pub masked: bool,
}

/// A prompt and the responses sampled from it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResponseGroup {
    pub prompt: Vec<u32>,
    pub responses: Vec<Response>,
}

impl ResponseGroup {
    /// The responses that updates see.
    pub fn seen(&self) -> impl Iterator<Item = &Response> {
        self.responses.iter().filter(|r| !r.masked)
    }
}

/// Response tokens of a group's responses, packed for one forward.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    pub packing: Packing,
    pub targets: Targets,
    /// Which responses (as (group, response) of the batch) these are, and their ranges among the targets.
    pub members: Vec<(usize, usize, Range<usize>)>,
}

impl MicroBatch {
    /// One value per target, from one slice per response.
    pub fn tokens<'a, T: Copy + 'a>(&self, of: impl Fn(usize, usize) -> &'a [T]) -> Vec<T> {
        let mut out = Vec::with_capacity(self.targets.len());
        for (group, response, _) in &self.members {
            out.extend_from_slice(of(*group, *response));
        }
        out
    }
}

/// Packs the responses of `groups[range]` into micro-batches of at most `max_tokens` rows each (a response with its
/// prompt may exceed it: then it stands alone). Responses of one prompt in one micro-batch share its rows, which is
/// exact: they see the same prompt states, and their gradients add up in them. Masked responses are not packed.
pub fn micro_batches(groups: &[ResponseGroup], range: Range<usize>, max_tokens: usize) -> Vec<MicroBatch> {
    let mut batches: Vec<MicroBatch> = Vec::new();
    for group in range {
        let prompt = &groups[group].prompt;
        // Rows of this group's prompt in the current micro-batch, once it is there.
        let mut shared: Option<Range<usize>> = None;
        for (i, response) in groups[group].responses.iter().enumerate() {
            if response.ids.is_empty() || response.masked {
                continue;
            }
            // The last token of a response is predicted, but predicts nothing: it needs no row.
            let own = response.ids.len() - 1;
            let fits = batches.last().is_some_and(|b| {
                let prompt_rows = if shared.is_some() { 0 } else { prompt.len() };
                b.packing.rows() + prompt_rows + own <= max_tokens
            });
            if !fits {
                batches.push(MicroBatch::default());
                shared = None;
            }
            let Some(batch) = batches.last_mut() else { continue };
            let prompt_rows = shared.get_or_insert_with(|| batch.packing.push(prompt)).clone();
            let rows = batch.packing.push_continuation(&response.ids[..own]);
            let first = batch.targets.len();
            batch.targets.push_continuation(&response.ids, prompt_rows.end - 1, rows.start);
            batch.members.push((group, i, first..batch.targets.len()));
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn group(prompt: usize, lengths: &[usize]) -> ResponseGroup {
        let response = |n: &usize| Response { ids: (0..*n as u32).collect(), ..Response::default() };
        ResponseGroup { prompt: vec![7; prompt], responses: lengths.iter().map(response).collect() }
    }

    #[test]
    fn a_prompt_is_packed_once_a_micro_batch() {
        let groups = [group(5, &[3, 4]), group(2, &[6])];
        let batches = micro_batches(&groups, 0..2, 100);
        assert_eq!(batches.len(), 1);
        // 5 + (3 - 1) + (4 - 1) rows, then 2 + (6 - 1).
        assert_eq!(batches[0].packing.rows(), 17);
        // Both responses of the first group begin after the prompt's last row.
        assert_eq!((batches[0].targets.rows[0], batches[0].targets.rows[3]), (4, 4));
        assert_eq!(batches[0].members[2], (1, 0, 7..13));
    }

    #[test]
    fn a_masked_response_is_not_packed() {
        let mut groups = [group(5, &[3, 4, 2])];
        groups[0].responses[1].masked = true;
        let batches = micro_batches(&groups, 0..1, 100);
        // 5 + (3 - 1) + (2 - 1) rows.
        assert_eq!((batches.len(), batches[0].packing.rows()), (1, 8));
        assert_eq!(batches[0].members, [(0, 0, 0..3), (0, 2, 3..5)]);
        assert_eq!(groups[0].seen().map(|r| r.ids.len()).collect::<Vec<_>>(), [3, 2]);
    }

    proptest! {
        #[test]
        fn every_token_is_a_target_exactly_once(
            shape in prop::collection::vec((1usize..9, prop::collection::vec(1usize..12, 1..5)), 1..6),
            max in 1usize..60,
        ) {
            let groups: Vec<_> = shape.iter().map(|(p, l)| group(*p, l)).collect();
            let batches = micro_batches(&groups, 0..groups.len(), max);
            let mut seen = Vec::new();
            for batch in &batches {
                prop_assert!(batch.packing.rows() <= max || batch.members.len() == 1);
                for (g, r, range) in &batch.members {
                    seen.push((*g, *r));
                    prop_assert_eq!(&batch.targets.ids[range.clone()], &groups[*g].responses[*r].ids[..]);
                }
            }
            let all: Vec<_> = groups.iter().enumerate().flat_map(|(g, x)| (0..x.responses.len()).map(move |r| (g, r))).collect();
            prop_assert_eq!(seen, all);
        }
    }
}
