//! Token embedding: rows of a table.

use rayon::prelude::*;

/// `out[t] = table[ids[t]]`, out `[T, d]`. Ids must be below the table's rows (checked where batches are made).
pub fn embed(table: &[f32], ids: &[u32], out: &mut [f32], d: usize) {
    for (out, id) in out.chunks_exact_mut(d).zip(ids) {
        let start = *id as usize * d;
        out.copy_from_slice(&table[start..start + d]);
    }
}

/// `d_table[ids[t]] += d_out[t]`. Split by columns: ids repeat, and so no two tasks may share a row's element.
pub fn embed_backward(d_out: &[f32], ids: &[u32], d_table: &mut [f32], d: usize) {
    let shared = super::shared::SharedMut::new(d_table);
    let width = d.div_ceil(rayon::current_num_threads()).max(64).min(d);
    (0..d.div_ceil(width)).into_par_iter().for_each(|part| {
        let (from, to) = (part * width, ((part + 1) * width).min(d));
        for (row, id) in d_out.chunks_exact(d).zip(ids) {
            // SAFETY: each task writes only columns from..to, and tasks have different columns.
            let sum = unsafe { shared.slice(*id as usize * d + from, to - from) };
            for (sum, x) in sum.iter_mut().zip(&row[from..to]) {
                *sum += x;
            }
        }
    });
}
