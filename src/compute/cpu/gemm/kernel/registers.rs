//! The kernel of instruction sets on which a block's sums are plain registers: one body, to which each set gives its words.

/// Makes `block` and `block_unpacked` of the shapes listed, rows and registers of a row. The words are `Register`, `LANES`, the numbers in
/// one, and functions with the features that are named first: `zero`, `load`, `store`, `splat` (of the number at an address), `add`,
/// `multiply_add` (of x, y, sum).
macro_rules! kernels {
    ([$(#[$features:meta])?] $($r:literal, $v:literal;)*) => {
        /// # Safety
        /// As [`super::block`], where the machine has the instructions.
        pub unsafe fn block(
            (rows, columns): (usize, usize),
            units: usize,
            a: *const u32,
            b: *const u32,
            ahead: *const u32,
            out: Block,
        ) {
            // SAFETY: by the caller's promise.
            unsafe { by_constants!((rows, columns / LANES), packed(units, a.cast(), b.cast(), ahead, out), $($r, $v;)*) }
        }

        /// # Safety
        /// As [`super::block_unpacked`], where the machine has the instructions.
        pub unsafe fn block_unpacked(
            (rows, columns): (usize, usize),
            units: usize,
            a: *const f32,
            strides: (usize, usize),
            b: *const u32,
            out: Block,
        ) {
            // SAFETY: by the caller's promise.
            unsafe { by_constants!((rows, columns / LANES), unpacked(units, a, strides, b.cast(), out), $($r, $v;)*) }
        }

        /// One inner index: `sums += a b`, where element r of A is `r * row_stride` away.
        macro_rules! step {
            ($sums:ident, $a:expr, $row_stride:expr, $b:expr) => {{
                let mut b = [zero(); V];
                for (v, b) in b.iter_mut().enumerate() {
                    *b = load($b.add(LANES * v));
                }
                for (r, sums) in $sums.iter_mut().enumerate() {
                    let x = splat($a.add(r * $row_stride));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = multiply_add(x, b, *sum);
                    }
                }
            }};
        }

        /// # Safety
        /// As [`block`], with R rows of V registers.
        $(#[$features])?
        unsafe fn packed<const R: usize, const V: usize>(
            units: usize,
            a: *const f32,
            b: *const f32,
            ahead: *const u32,
            out: Block,
        ) {
            let (mut a, mut b) = (a, b);
            let mut sums = [[zero(); V]; R];
            fetch::<R>(units, V * LANES, out);
            // SAFETY: within the panels, by the caller's promise.
            unsafe {
                for i in 0..units / UNROLLED {
                    prefetch::<2>(ahead.wrapping_add(i * LINE).cast());
                    for step in 0..UNROLLED {
                        step!(sums, a.add(step * R), 1, b.add(step * V * LANES));
                    }
                    a = a.add(UNROLLED * R);
                    b = b.add(UNROLLED * V * LANES);
                }
                for _ in 0..units % UNROLLED {
                    step!(sums, a, 1, b);
                    a = a.add(R);
                    b = b.add(V * LANES);
                }
                write_out(&sums, out)
            }
        }

        /// # Safety
        /// As [`block_unpacked`], with R rows of V registers.
        $(#[$features])?
        unsafe fn unpacked<const R: usize, const V: usize>(
            units: usize,
            a: *const f32,
            (row_stride, inner_stride): (usize, usize),
            b: *const f32,
            out: Block,
        ) {
            let (mut a, mut b) = (a, b);
            let mut sums = [[zero(); V]; R];
            fetch::<R>(units, V * LANES, out);
            // SAFETY: within A and the panel, by the caller's promise.
            unsafe {
                for _ in 0..units {
                    step!(sums, a, row_stride, b);
                    // The last step may lead past the end, where nothing is read.
                    a = a.wrapping_add(inner_stride);
                    b = b.add(V * LANES);
                }
                write_out(&sums, out)
            }
        }

        /// # Safety
        /// The machine has the instructions; the block of R rows may be written.
        #[inline]
        $(#[$features])?
        pub(super) unsafe fn write_out<const R: usize, const V: usize>(sums: &[[Register; V]; R], out: Block) {
            for (r, sums) in sums.iter().enumerate() {
                // SAFETY: within the block's columns.
                unsafe {
                    let c = out.c.add(r * out.row_stride);
                    if out.cols == V * LANES {
                        for (v, sum) in sums.iter().enumerate() {
                            let c = c.add(v * LANES);
                            store(c, if out.add { add(*sum, load(c)) } else { *sum });
                        }
                    } else {
                        // Masked stores take longer than these few.
                        let mut row = [[0f32; LANES]; V];
                        for (row, sum) in row.iter_mut().zip(sums) {
                            store(row.as_mut_ptr(), *sum);
                        }
                        for (j, s) in row.as_flattened().iter().enumerate().take(out.cols) {
                            *c.add(j) = if out.add { *s + *c.add(j) } else { *s };
                        }
                    }
                }
            }
        }
    };
}
pub(super) use kernels;
