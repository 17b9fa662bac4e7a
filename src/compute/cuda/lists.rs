//! What kernels are told about a batch: which rows, tiles and lists each block takes. Made once a batch, on the host, so that every
//! sum on the device has one order.

use crate::compute::Packing;

/// Stacked query rows, and keys, of a tile (`attention.cuh`: ROWS).
const TILE: usize = 64;

/// Rows that one block of the first half of a scattered sum adds up.
const CHUNK: usize = 64;

/// A packing as the attention kernels read it. All are flat arrays of what `attention.cuh` declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionLists {
    /// `Segment`, four each: first row, rows, first row of the prefix, rows of the prefix.
    pub segments: Vec<u32>,
    /// `QueryTile`, two each, those with the most keys first: a block that starts last should be a short one.
    pub query_tiles: Vec<u32>,
    /// `KeyTile`, three each, those with the most readers first.
    pub key_tiles: Vec<u32>,
}

impl AttentionLists {
    /// `group`: query heads that share a key/value head.
    pub fn new(packing: &Packing, group: usize) -> AttentionLists {
        let segments = packing.segments();
        let flat = |segment: &crate::compute::Segment| {
            let prefix = segment.prefix.clone().unwrap_or(0..0);
            [segment.rows.start, segment.len(), prefix.start, prefix.len()].map(|x| x as u32)
        };
        let mut query_tiles = Vec::new();
        let mut key_tiles = Vec::new();
        for tree in packing.trees() {
            for at in tree.clone() {
                let segment = &segments[at];
                // Of a tree, only the prompt is read by others: by all that follow it.
                let readers_end = if at == tree.start { tree.end } else { at + 1 };
                for first in (0..segment.len() * group).step_by(TILE) {
                    let keys = segment.prefix_len() + (first + TILE).min(segment.len() * group).div_ceil(group);
                    query_tiles.push((keys, [at, first]));
                }
                let followers: usize = segments[at + 1..readers_end].iter().map(|s| s.len()).sum();
                for first in (0..segment.len()).step_by(TILE) {
                    key_tiles.push((segment.len() - first + followers, [at, first, readers_end]));
                }
            }
        }
        // Stable: the order is a function of the packing.
        query_tiles.sort_by_key(|(keys, _)| std::cmp::Reverse(*keys));
        key_tiles.sort_by_key(|(readers, _)| std::cmp::Reverse(*readers));
        AttentionLists {
            segments: segments.iter().flat_map(flat).collect(),
            query_tiles: query_tiles.into_iter().flat_map(|(_, tile)| tile).map(|x| x as u32).collect(),
            key_tiles: key_tiles.into_iter().flat_map(|(_, tile)| tile).map(|x| x as u32).collect(),
        }
    }
}

/// Rows that are added to places which repeat: `out[places[i]] += values[i]`, as sums over lists.
///
/// In two steps for long lists: chunk c is the sum of `values[rows[i]]`, i in `chunks[c]..chunks[c + 1]`, and
/// `out[to[u]] += ` the sum of the chunks `of_place[u]..of_place[u + 1]`. In one step where lists are short: the same with
/// `starts[u]..starts[u + 1]` into `rows`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowLists {
    /// Places that occur, ascending.
    pub to: Vec<u32>,
    /// Rows of each place, ascending.
    pub rows: Vec<u32>,
    pub starts: Vec<u32>,
    pub chunks: Vec<u32>,
    pub of_place: Vec<u32>,
}

impl RowLists {
    /// places: where each row goes: token ids, or rows of the states that the head's rows were gathered from.
    pub fn new(places: &[u32]) -> RowLists {
        let mut rows: Vec<u32> = (0..places.len() as u32).collect();
        rows.sort_by_key(|row| places[*row as usize]);
        let mut lists = RowLists { to: vec![], rows: vec![], starts: vec![0], chunks: vec![0], of_place: vec![0] };
        for list in rows.chunk_by(|a, b| places[*a as usize] == places[*b as usize]) {
            let from = lists.rows.len();
            lists.to.push(places[list[0] as usize]);
            lists.rows.extend_from_slice(list);
            lists.starts.push(lists.rows.len() as u32);
            let ends = (0..list.len()).step_by(CHUNK).map(|at| (from + (at + CHUNK).min(list.len())) as u32);
            lists.chunks.extend(ends);
            lists.of_place.push(lists.chunks.len() as u32 - 1);
        }
        lists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once_and_a_prompts_keys_are_read_by_its_continuations() {
        let mut packing = Packing::new();
        packing.push(&[1; 70]);
        packing.push_continuation(&[2; 3]);
        packing.push_continuation(&[3; 40]);
        packing.push(&[4; 2]);
        let lists = AttentionLists::new(&packing, 2);
        assert_eq!(lists.segments, [0, 70, 0, 0, 70, 3, 0, 70, 73, 40, 0, 70, 113, 2, 0, 0]);
        // The third segment's rows 64 to 79 are tokens 32 to 39, which see 70 + 40 keys.
        assert_eq!(lists.query_tiles, [2, 64, 2, 0, 1, 0, 0, 128, 0, 64, 0, 0, 3, 0]);
        assert_eq!(lists.key_tiles, [0, 0, 3, 0, 64, 3, 2, 0, 3, 1, 0, 2, 3, 0, 4]);
    }

    #[test]
    fn lists_name_every_row_once_at_its_place() {
        let lists = RowLists::new(&[7, 2, 7, 7, 0]);
        assert_eq!((lists.to.as_slice(), lists.rows.as_slice()), (&[0, 2, 7][..], &[4, 1, 0, 2, 3][..]));
        assert_eq!(lists.starts, [0, 1, 2, 5]);
        assert_eq!((lists.chunks.as_slice(), lists.of_place.as_slice()), (&[0, 1, 2, 5][..], &[0, 1, 2, 3][..]));
        let long = RowLists::new(&[5; 2 * CHUNK + 1]);
        assert_eq!(long.chunks, [0, 64, 128, 129]);
        assert_eq!((long.of_place, long.starts), (vec![0, 3], vec![0, 129]));
        assert_eq!(RowLists::new(&[]).chunks, [0]);
    }
}
