//! How rows of A and columns of B are cut into panels, and the memory that these lie in.

use super::kernel::Isa;
use crate::compute::cpu::prefetch::LINE;
use std::ops::Range;

/// `total` in parts of at most `most`, as even as can be.
pub fn evenly(total: usize, most: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let parts = total.div_ceil(most);
    (0..parts).map(move |i| total * i / parts..total * (i + 1) / parts)
}

/// Rows in panels of at most [`Isa::rows`]: none is so thin that its sums wait for each other.
pub fn row_panels(isa: Isa, rows: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    evenly(rows, isa.rows())
}

/// Columns in panels of at most [`Isa::columns`] and of whole [`Isa::column_step`]s, or some of these panels. The last may lead
/// past the columns.
#[derive(Clone, Copy, Debug)]
pub struct ColumnPanels {
    isa: Isa,
    columns: usize,
    from: usize,
    to: usize,
}

impl ColumnPanels {
    pub fn of(isa: Isa, columns: usize) -> ColumnPanels {
        let all = ColumnPanels { isa, columns, from: 0, to: 0 };
        ColumnPanels { to: all.count(), ..all }
    }

    /// Panels of all columns.
    fn count(self) -> usize {
        self.columns.div_ceil(self.isa.column_step()).div_ceil(self.isa.columns() / self.isa.column_step())
    }

    /// First column of panel `i` of all.
    fn start(self, i: usize) -> usize {
        let step = self.isa.column_step();
        self.columns.div_ceil(step) * i / self.count().max(1) * step
    }

    /// Part `i` of `parts` of these panels.
    pub fn part(self, i: usize, parts: usize) -> ColumnPanels {
        let at = |i: usize| self.from + (self.to - self.from) * i / parts;
        ColumnPanels { from: at(i), to: at(i + 1), ..self }
    }

    /// These panels, so many at a time.
    pub fn chunks(self, panels: usize) -> impl Iterator<Item = ColumnPanels> {
        (self.from..self.to).step_by(panels).map(move |from| ColumnPanels {
            from,
            to: self.to.min(from + panels),
            ..self
        })
    }

    /// The first column.
    pub fn first(self) -> usize {
        self.start(self.from)
    }

    /// Columns of the panels together, those past the matrix's last one too.
    pub fn width(self) -> usize {
        self.start(self.to) - self.start(self.from)
    }

    /// Each panel: its columns, and how many of them the matrix has.
    pub fn iter(self) -> impl Iterator<Item = (Range<usize>, usize)> + Clone {
        (self.from..self.to).map(move |i| self.panel(i))
    }

    fn panel(self, i: usize) -> (Range<usize>, usize) {
        let columns = self.start(i)..self.start(i + 1);
        let there = columns.len().min(self.columns - columns.start);
        (columns, there)
    }

    /// The panel of all that holds a column, as [`ColumnPanels::iter`] has it.
    pub fn holding(self, column: usize) -> (Range<usize>, usize) {
        let (mut first, mut behind) = (0, self.count());
        while behind - first > 1 {
            let middle = (first + behind) / 2;
            (first, behind) = if self.start(middle) <= column { (middle, behind) } else { (first, middle) };
        }
        self.panel(first)
    }
}

/// Memory for panels: lines of the cache, so that no register that the kernel reads lies in two of them.
#[derive(Debug, Default)]
pub struct Panels(Vec<u32>);

impl Panels {
    pub const fn new() -> Panels {
        Panels(Vec::new())
    }

    /// Memory of at least so many units, and a line more, which packing may write beyond a panel. What it holds is anything.
    pub fn room(&mut self, units: usize) -> &mut [u32] {
        let needed = units + 2 * LINE;
        if self.0.len() < needed {
            // Fresh memory is zeros that the system makes when they are touched; growing would copy what nobody needs.
            self.0 = vec![0; needed];
        }
        let from = self.0.as_ptr().align_offset(4 * LINE);
        &mut self.0[from..from + units + LINE]
    }

    pub fn as_slice(&self) -> &[u32] {
        &self.0[self.0.as_ptr().align_offset(4 * LINE).min(self.0.len())..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn panels_of_columns_follow_each_other(columns in 0usize..3000, parts in 1usize..20) {
            for isa in Isa::F32 {
                let all = ColumnPanels::of(isa, columns);
                let pieces = (0..parts).map(|i| all.part(i, parts)).flat_map(|part| part.iter().collect::<Vec<_>>());
                prop_assert_eq!(pieces.clone().collect::<Vec<_>>(), all.iter().collect::<Vec<_>>());
                prop_assert_eq!(all.chunks(parts).flat_map(|c| c.iter().collect::<Vec<_>>()).collect::<Vec<_>>(), all.iter().collect::<Vec<_>>());
                let mut next = 0;
                for (panel, there) in pieces {
                    prop_assert_eq!(all.holding(panel.start), (panel.clone(), there));
                    prop_assert_eq!(all.holding(panel.start + there - 1), (panel.clone(), there));
                    prop_assert_eq!(panel.start, next);
                    prop_assert!(panel.len() <= isa.columns() && panel.len() % isa.column_step() == 0);
                    prop_assert!(there > panel.len() - isa.column_step() && there <= panel.len());
                    next = panel.end;
                }
                prop_assert_eq!(next, columns.next_multiple_of(isa.column_step()));
                prop_assert_eq!(all.iter().map(|(_, there)| there).sum::<usize>(), columns);
                prop_assert_eq!(all.width(), next);
            }
        }
    }

    #[test]
    fn memory_for_panels_begins_at_a_line_of_the_cache() {
        let mut panels = Panels::new();
        for units in [0, 1, 100, 10_000, 50] {
            let room = panels.room(units);
            assert!(room.as_ptr().align_offset(64) == 0 && room.len() == units + 16, "{units}");
            room.fill(7);
            assert!(panels.as_slice()[..units].iter().all(|x| *x == 7));
        }
    }
}
