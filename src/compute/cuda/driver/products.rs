//! Matrix products by cublasLt.
//!
//! Which algorithm does a product is cublasLt's first proposal for its shape, strides, formats and alignments, and the same from then
//! on; partial sums are added in f32 and in a fixed order, so the same product gives the same bits.

use super::stream::Stream;
use crate::compute::cpu::gemm::Write;
use crate::compute::cuda::api::{
    ALIGNMENTS, Algorithm, COMPUTE_32F, Choice, CublasLt, Handle, IN_COMPUTE_TYPE, Object, R_16BF, R_32F, REDUCTION,
    TRANSPOSE, WORKSPACE, status_name,
};
use crate::compute::cuda::kernels::Real;
use crate::compute::cuda::runtime::{ALIGNMENT, Address, CudaError, Matrix, Product};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

/// What algorithms may use beside the matrices.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Shapes whose algorithms are kept. Batches have many lengths; past this all are forgotten, and chosen again as they were.
const MOST_SHAPES: usize = 1 << 16;

/// A product without its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    sizes: [usize; 3],
    strides: [usize; 3],
    reals: [Real; 3],
    transposed: [bool; 2],
    alignments: [u32; 3],
}

#[derive(Debug)]
pub(super) struct Products {
    lt: CublasLt,
    stream: Arc<Stream>,
    library: Object,
    workspace: Address,
    chosen: Mutex<HashMap<Shape, Algorithm>>,
}

impl Products {
    pub fn new(lt: CublasLt, stream: Arc<Stream>) -> Result<Products, CudaError> {
        let cuda = stream.enter()?;
        let mut workspace = 0;
        // SAFETY: the place lives through the call.
        let allocated = unsafe { (cuda.allocate)(&mut workspace, WORKSPACE_BYTES) };
        stream.checked(allocated, || format!("give {WORKSPACE_BYTES} bytes of memory for products"))?;
        let library = Object(ptr::null_mut());
        let mut products = Products { lt, stream, library, workspace: Address(workspace), chosen: Mutex::default() };
        let mut handle = ptr::null_mut();
        // SAFETY: the context is the thread's, and the place lives through the call.
        let created = unsafe { (lt.create)(&mut handle) };
        products.checked(created, || "start cublasLt".to_string())?;
        products.library = Object(handle);
        Ok(products)
    }

    fn checked(&self, status: c_int, what: impl FnOnce() -> String) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        let next = "CUBLASLT_LOG_LEVEL=2 makes cublasLt say more";
        Err(self.stream.failed(what(), status_name(status), next))
    }

    pub fn multiply(&self, product: &Product) -> Result<(), CudaError> {
        product.check()?;
        let Product { m, n, k, a, b, c, write, .. } = *product;
        if m == 0 || n == 0 {
            return Ok(());
        }
        if k == 0 {
            let rows = (0..m).filter(|_| write == Write::Replace);
            return rows
                .map(|row| c.at.offset(row * c.stride * c.real.bytes()))
                .try_for_each(|row| self.stream.zero(row, n * c.real.bytes()));
        }
        self.stream.enter()?;
        // cublasLt's matrices are column-major: what it takes for A is B's transpose, for B A's, and it makes C's.
        let with_what = || format!("multiply {product:?}");
        let objects = Objects::new(self, product).map_err(|status| self.checked(status, with_what).err());
        let objects = match objects {
            Ok(objects) => objects,
            Err(error) => return error.map_or(Ok(()), Err),
        };
        // Held until the product is on the stream, with all of its launches: two threads' would use one workspace in turns.
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let algorithm = self.algorithm(&mut chosen, product, &objects)?;
        let scales = [1.0f32, if write == Write::Add { 1.0 } else { 0.0 }];
        let [alpha, beta] = scales.each_ref().map(|scale| ptr::from_ref(scale).cast::<c_void>());
        let [at_a, at_b, at_c, workspace] = [a.at, b.at, c.at, self.workspace].map(|at| at.0 as *mut c_void);
        let [of_a, of_b, of_c] = objects.layouts;
        // SAFETY: descriptions and scales live through the call; the matrices are on the device, of these layouts.
        let multiplied = unsafe {
            (self.lt.multiply)(
                self.library.0,
                objects.description,
                alpha,
                at_b,
                of_b,
                at_a,
                of_a,
                beta,
                at_c,
                of_c,
                at_c,
                of_c,
                &algorithm,
                workspace,
                WORKSPACE_BYTES,
                self.stream.handle(),
            )
        };
        self.checked(multiplied, with_what)
    }

    fn algorithm(
        &self,
        chosen: &mut HashMap<Shape, Algorithm>,
        product: &Product,
        objects: &Objects<'_>,
    ) -> Result<Algorithm, CudaError> {
        let Product { m, n, k, a, b, c, a_transposed, b_transposed, .. } = *product;
        let matrices = [a, b, c];
        let shape = Shape {
            sizes: [m, n, k],
            strides: matrices.map(|matrix| matrix.stride),
            reals: matrices.map(|matrix| matrix.real),
            transposed: [a_transposed, b_transposed],
            alignments: matrices.map(alignment),
        };
        if let Some(algorithm) = chosen.get(&shape) {
            return Ok(*algorithm);
        }
        let choice = self.choose(objects, shape.alignments);
        let choice = choice
            .or_else(|status| self.checked(status, || format!("choose how to multiply {product:?}")).map(|()| None))?;
        let Some(choice) = choice else {
            let reason = "it proposes no algorithm".to_string();
            let next = "sizes and strides that are multiples of 8 have more of them";
            return Err(self.stream.failed(format!("multiply {product:?}"), reason, next));
        };
        if chosen.len() >= MOST_SHAPES {
            chosen.clear();
        }
        chosen.insert(shape, choice.algorithm);
        Ok(choice.algorithm)
    }

    /// cublasLt's first proposal, if it has one.
    fn choose(&self, objects: &Objects<'_>, [of_a, of_b, of_c]: [u32; 3]) -> Result<Option<Choice>, c_int> {
        let lt = &self.lt;
        let mut preference = ptr::null_mut();
        // SAFETY: the place lives through the call.
        ok(unsafe { (lt.create_preference)(&mut preference) })?;
        let prefer = |attribute, value: *const c_void, size| {
            // SAFETY: the preference was made above, and the value is of the attribute's type and lives through the call.
            ok(unsafe { (lt.prefer)(preference, attribute, value, size) })
        };
        let choose = || {
            prefer(WORKSPACE, ptr::from_ref(&WORKSPACE_BYTES).cast(), size_of::<usize>())?;
            prefer(REDUCTION, ptr::from_ref(&IN_COMPUTE_TYPE).cast(), 4)?;
            for (attribute, alignment) in ALIGNMENTS.into_iter().zip([of_b, of_a, of_c, of_c]) {
                prefer(attribute, ptr::from_ref(&alignment).cast(), 4)?;
            }
            let [a, b, c] = objects.layouts;
            let (mut choice, mut count) = (Choice::default(), 0);
            let (library, description) = (self.library.0, objects.description);
            // SAFETY: all descriptions are alive, and there is room for the one proposal that is asked for.
            ok(unsafe { (lt.choose)(library, description, b, a, c, c, preference, 1, &mut choice, &mut count) })?;
            Ok((count > 0 && choice.state == 0).then_some(choice))
        };
        let chosen = choose();
        // SAFETY: made above, destroyed once.
        unsafe { (lt.destroy_preference)(preference) };
        // CUBLAS_STATUS_NOT_SUPPORTED is its way to say that there is none.
        if chosen.as_ref().is_err_and(|status| *status == 15) { Ok(None) } else { chosen }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.stream.wait().ok();
        let Ok(cuda) = self.stream.enter() else { return };
        if !self.library.0.is_null() {
            // SAFETY: made by `new`, destroyed once.
            unsafe { (self.lt.destroy)(self.library.0) };
        }
        // SAFETY: allocated by `new`, freed once, and no product runs.
        unsafe { (cuda.free)(self.workspace.0) };
    }
}

/// The largest power of two, up to 256, that an address is a multiple of.
fn alignment(matrix: Matrix) -> u32 {
    1 << matrix.at.0.trailing_zeros().min(ALIGNMENT.trailing_zeros())
}

fn ok(status: c_int) -> Result<(), c_int> {
    if status == 0 { Ok(()) } else { Err(status) }
}

/// cublasLt's descriptions of one product: of A, B and C, and of what is done with them.
struct Objects<'a> {
    lt: &'a CublasLt,
    layouts: [Handle; 3],
    description: Handle,
}

impl<'a> Objects<'a> {
    fn new(products: &'a Products, product: &Product) -> Result<Objects<'a>, c_int> {
        let lt = &products.lt;
        let Product { m, n, k, a, b, c, a_transposed, b_transposed, .. } = *product;
        let mut objects = Objects { lt, layouts: [ptr::null_mut(); 3], description: ptr::null_mut() };
        let stored = |rows, columns, transposed| if transposed { (columns, rows) } else { (rows, columns) };
        let sizes = [stored(m, k, a_transposed), stored(k, n, b_transposed), (m, n)];
        for ((matrix, (rows, columns)), layout) in [a, b, c].iter().zip(sizes).zip(&mut objects.layouts) {
            let format = matrix.real.pick(R_32F, R_16BF);
            // A row-major matrix's columns are the rows of a column-major one.
            let (rows, columns) = (columns as u64, rows as u64);
            // SAFETY: the place lives through the call.
            ok(unsafe { (lt.create_layout)(layout, format, rows, columns, matrix.stride as i64) })?;
        }
        // SAFETY: as above.
        ok(unsafe { (lt.create_description)(&mut objects.description, COMPUTE_32F, R_32F) })?;
        for (attribute, transposed) in TRANSPOSE.into_iter().zip([b_transposed, a_transposed]) {
            let operation = c_int::from(transposed);
            let value = ptr::from_ref(&operation).cast();
            // SAFETY: the description was just made, and the value lives through the call.
            ok(unsafe { (lt.describe)(objects.description, attribute, value, size_of::<c_int>()) })?;
        }
        Ok(objects)
    }
}

impl Drop for Objects<'_> {
    fn drop(&mut self) {
        for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
            // SAFETY: made by `new`, destroyed once.
            unsafe { (self.lt.destroy_layout)(layout) };
        }
        if !self.description.is_null() {
            // SAFETY: as above.
            unsafe { (self.lt.destroy_description)(self.description) };
        }
    }
}
