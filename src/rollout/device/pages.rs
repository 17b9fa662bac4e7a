//! Who has which page of a cache.

use crate::compute::cuda::backend::decode::{PAGE, SPARE_PAGE};
use anyhow::{Context, Result};
use std::sync::{Arc, Mutex, PoisonError};

/// Pages that nobody has.
#[derive(Clone, Debug)]
pub(super) struct PagePool(Arc<Mutex<Vec<u32>>>);

impl PagePool {
    /// All pages of a cache of `pages`, but the spare one.
    pub fn new(pages: usize) -> PagePool {
        PagePool(Arc::new(Mutex::new((SPARE_PAGE + 1..pages as u32).rev().collect())))
    }

    /// An owner of no pages yet.
    pub fn list(&self) -> PageList {
        PageList { pages: Vec::new(), pool: self.clone() }
    }

    /// How many there are.
    pub fn free(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Pages of one owner, in the order of its tokens. They go back when it is dropped: what the device was asked for before then is done
/// before what a next owner asks for.
#[derive(Debug)]
pub(super) struct PageList {
    pages: Vec<u32>,
    pool: PagePool,
}

impl PageList {
    /// Takes pages until it has so many.
    pub fn grow(&mut self, pages: usize) -> Result<()> {
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        while self.pages.len() < pages {
            let page = free
                .pop()
                .context("no page of keys and values is free, though there should be enough for all sequences")?;
            self.pages.push(page);
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.pages.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.pages.iter().copied()
    }

    /// Where a token's key and value are.
    pub fn place(&self, token: usize) -> u32 {
        self.pages[token / PAGE] * PAGE as u32 + (token % PAGE) as u32
    }
}

impl Drop for PageList {
    fn drop(&mut self) {
        let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(self.pages.drain(..).rev());
    }
}

#[test]
fn pages_come_back() {
    let pool = PagePool::new(4);
    let (mut a, mut b) = (pool.list(), pool.list());
    a.grow(2).unwrap();
    b.grow(1).unwrap();
    assert_eq!((a.iter().collect::<Vec<_>>(), b.place(5), a.place(17)), (vec![1, 2], 3 * 16 + 5, 2 * 16 + 1));
    assert!(b.grow(2).unwrap_err().to_string().contains("no page"));
    drop(a);
    b.grow(3).unwrap();
    assert_eq!(pool.free(), 0);
    drop(b);
    assert_eq!(pool.free(), 3);
}
