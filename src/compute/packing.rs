//! Sequences of different lengths in one `[T, d]`, without padding, with prompts shared by a group stored once.

use std::ops::Range;

/// A run of consecutive rows that attends causally to itself and wholly to its prefix, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub rows: Range<usize>,
    /// Rows of the prompt that this segment continues; they lie in the same packing, before it.
    pub prefix: Option<Range<usize>>,
}

impl Segment {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn prefix_len(&self) -> usize {
        self.prefix.as_ref().map_or(0, |p| p.len())
    }
}

/// The tokens of a batch in one row dimension. Built by [`Packing::push`] and [`Packing::push_continuation`] only,
/// which keep its invariant: rows are contiguous, and a prefix belongs to the segment that opened the same tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    ids: Vec<u32>,
    positions: Vec<u32>,
    segments: Vec<Segment>,
    /// Segments that share rows: a prompt and its continuations. Their gradients meet in the prompt's rows.
    trees: Vec<Range<usize>>,
}

impl Packing {
    pub fn new() -> Packing {
        Packing::default()
    }

    /// One sequence by itself.
    pub fn single(ids: &[u32]) -> Packing {
        let mut packing = Packing::new();
        packing.push(ids);
        packing
    }

    /// Appends a sequence; returns its rows.
    pub fn push(&mut self, ids: &[u32]) -> Range<usize> {
        let tree = self.segments.len();
        self.trees.push(tree..tree);
        self.append(ids, None)
    }

    /// Appends tokens that continue the last sequence given to [`Packing::push`], as if its rows stood before them;
    /// returns the rows of the new tokens. Without any sequence yet, this is [`Packing::push`].
    pub fn push_continuation(&mut self, ids: &[u32]) -> Range<usize> {
        match self.trees.last() {
            Some(tree) => {
                let prefix = self.segments[tree.start].rows.clone();
                self.append(ids, Some(prefix))
            }
            None => self.push(ids),
        }
    }

    fn append(&mut self, ids: &[u32], prefix: Option<Range<usize>>) -> Range<usize> {
        let start = self.ids.len();
        let offset = prefix.as_ref().map_or(0, |p| p.len());
        self.ids.extend_from_slice(ids);
        self.positions.extend((offset..offset + ids.len()).map(|p| p as u32));
        let rows = start..self.ids.len();
        self.segments.push(Segment { rows: rows.clone(), prefix });
        if let Some(tree) = self.trees.last_mut() {
            tree.end = self.segments.len();
        }
        rows
    }

    /// Token ids, `[T]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Position of each token in its sequence (prefix included), `[T]`.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub fn trees(&self) -> &[Range<usize>] {
        &self.trees
    }

    /// Number of rows `T`.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations_share_their_prompts_rows_and_positions() {
        let mut p = Packing::new();
        assert_eq!(p.push(&[1, 2, 3]), 0..3);
        assert_eq!(p.push_continuation(&[4, 5]), 3..5);
        assert_eq!(p.push_continuation(&[6]), 5..6);
        assert_eq!(p.push(&[7, 8]), 6..8);
        assert_eq!(p.positions(), &[0, 1, 2, 3, 4, 3, 0, 1]);
        assert_eq!(p.trees(), &[0..3, 3..4]);
        assert_eq!(p.segments()[2].prefix, Some(0..3));
        assert_eq!(p.segments()[3].prefix, None);
    }
}
