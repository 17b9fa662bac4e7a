//! Work as a value: what is kept while it is captured, to be done later.

use super::kernels::Real;
use super::runtime::{Address, Arg, Launch, Product, Runtime};

/// What a [`Runtime`] is given to do on the device.
#[derive(Clone, Debug)]
pub enum Work {
    Copy { from: Address, to: Address, bytes: usize },
    Zero { at: Address, bytes: usize },
    Launch { real: Real, kernel: String, grid: [usize; 3], threads: usize, shared: usize, args: Vec<Arg> },
    Product(Product),
}

impl Work {
    pub fn of(launch: Launch<'_>) -> Work {
        let Launch { real, kernel, grid, threads, shared, args } = launch;
        Work::Launch { real, kernel: kernel.to_string(), grid, threads, shared, args: args.to_vec() }
    }

    /// Gives it to a runtime.
    ///
    /// # Safety
    /// Of a launch, as [`Runtime::launch`] asks.
    pub unsafe fn give(&self, runtime: &dyn Runtime) {
        match self {
            Work::Copy { from, to, bytes } => runtime.copy(*from, *to, *bytes),
            Work::Zero { at, bytes } => runtime.zero(*at, *bytes),
            Work::Launch { real, kernel, grid, threads, shared, args } => {
                let (real, grid, threads, shared) = (*real, *grid, *threads, *shared);
                // SAFETY: by the caller's promise.
                unsafe { runtime.launch(Launch { real, kernel, grid, threads, shared, args }) };
            }
            Work::Product(product) => runtime.product(product),
        }
    }

    /// What a person calls it: a kernel's name, a product's sizes and how its factors lie (`n`, or `t` if transposed).
    pub fn name(&self) -> String {
        match self {
            Work::Copy { .. } => "copy".to_string(),
            Work::Zero { .. } => "zero".to_string(),
            Work::Launch { kernel, .. } => kernel.clone(),
            Work::Product(Product { m, n, k, a, a_transposed, b_transposed, c, .. }) => {
                let lies = |transposed: bool| if transposed { 't' } else { 'n' };
                let real = |real: Real| real.pick("f32", "bf16");
                let (a_lies, b_lies) = (lies(*a_transposed), lies(*b_transposed));
                format!("product {m} x {n} x {k} {a_lies}{b_lies}, {} to {}", real(a.real), real(c.real))
            }
        }
    }

    /// Floating-point operations of a product; nothing is known of a kernel's.
    pub fn flop(&self) -> f64 {
        match self {
            Work::Product(Product { m, n, k, .. }) => 2.0 * *m as f64 * *n as f64 * *k as f64,
            _ => 0.0,
        }
    }
}
