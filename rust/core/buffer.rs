//! Memory: bytes aligned to a cache line, and per-thread scratch that outlives a call.

use std::cell::Cell;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Zero-initialised bytes that start on a cache line.
#[derive(Clone, Default)]
pub struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedBytes {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0; 64]); len.div_ceil(64)], len }
    }

    fn capacity(&self) -> usize {
        self.lines.len() * 64
    }
}

/// Element types that are plain bits, any of which is a value.
#[allow(unsafe_code)]
mod plain {
    /// # Safety
    /// Every bit pattern is a value, there is no padding, and the alignment is at most 64.
    pub(crate) unsafe trait Plain: Copy {}
    // SAFETY: integers and floats are plain bits.
    unsafe impl Plain for u8 {}
    // SAFETY: as above.
    unsafe impl Plain for i8 {}
    // SAFETY: as above.
    unsafe impl Plain for i32 {}
    // SAFETY: as above.
    unsafe impl Plain for i64 {}
    // SAFETY: as above.
    unsafe impl Plain for f32 {}
    // SAFETY: as above.
    unsafe impl Plain for usize {}
    // SAFETY: an address may be any; who reads there sees to it.
    unsafe impl Plain for *const u8 {}
    // SAFETY: as above.
    unsafe impl Plain for half::f16 {}
    // SAFETY: as above.
    unsafe impl Plain for half::bf16 {}
}
pub(crate) use plain::Plain;

#[allow(unsafe_code)]
impl std::ops::Deref for AlignedBytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `lines` holds at least `len` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

#[allow(unsafe_code)]
impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

fn fits<T>(bytes: &[u8]) -> bool {
    bytes.as_ptr().addr().is_multiple_of(align_of::<T>()) && bytes.len().is_multiple_of(size_of::<T>())
}

/// View bytes as elements. `None` if the address or the length does not fit the type.
#[allow(unsafe_code)]
pub(crate) fn cast<T: Plain>(bytes: &[u8]) -> Option<&[T]> {
    let size = size_of::<T>();
    if !fits::<T>(bytes) {
        return None;
    }
    // SAFETY: aligned and whole (checked), and any bits are a value of a `Plain` type.
    Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size) })
}

/// The same for writing.
#[allow(unsafe_code)]
pub(crate) fn cast_mut<T: Plain>(bytes: &mut [u8]) -> Option<&mut [T]> {
    let size = size_of::<T>();
    if !fits::<T>(bytes) {
        return None;
    }
    // SAFETY: as in `cast`, and the borrow is unique.
    Some(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size) })
}

/// Memory that tasks write in disjoint pieces.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T> {
    at: *mut T,
    len: usize,
}
// SAFETY: a plain address of plain bits; the methods ask their callers for what keeps threads apart.
#[allow(unsafe_code)]
unsafe impl<T: Plain> Sync for Shared<T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Plain> Send for Shared<T> {}
#[allow(unsafe_code)]
impl<T: Plain> Shared<T> {
    pub(crate) fn new(memory: &mut [T]) -> Self {
        Self { at: memory.as_mut_ptr(), len: memory.len() }
    }

    /// # Safety
    /// `len` elements begin at `at`.
    pub(crate) unsafe fn from_raw(at: *mut T, len: usize) -> Self {
        Self { at, len }
    }

    /// # Safety
    /// The memory still lives, and nobody else touches this range meanwhile.
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start + len <= self.len, "shared range");
        // SAFETY: in range (asserted) and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(start), len) }
    }

    /// `rows` rows of `cols` elements, the first at `at`, each `stride` after the one before.
    ///
    /// # Safety
    /// The memory still lives, and nobody else touches these elements as long as the rectangle is in use.
    pub(crate) unsafe fn rectangle(self, at: usize, stride: usize, rows: usize, cols: usize) -> Rectangle<T> {
        assert!(rows == 0 || at + (rows - 1) * stride + cols <= self.len, "shared range");
        Rectangle { memory: self, at, stride, rows, cols }
    }

    /// Rows of `len` elements that begin `skip` elements after each of `at`.
    ///
    /// # Safety
    /// None of `at` is beyond `last`; the memory still lives, and nobody else touches these rows as long as they are in use.
    pub(crate) unsafe fn rows(self, at: &[usize], last: usize, skip: usize, len: usize) -> Rows<'_, T> {
        assert!(last + skip + len <= self.len, "shared range");
        debug_assert!(at.iter().all(|at| *at <= last));
        Rows { memory: self, at, skip, len }
    }

    /// # Safety
    /// The memory still lives, and nobody writes to it meanwhile.
    pub(crate) unsafe fn all<'a>(self) -> &'a [T] {
        // SAFETY: the whole of what `new` was given.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

#[allow(unsafe_code)]
impl Shared<u8> {
    /// Signed codes by their bits.
    pub(crate) fn bytes(codes: &mut [i8]) -> Self {
        Self { at: codes.as_mut_ptr().cast(), len: codes.len() }
    }
}

/// Part of a matrix that a task has to itself: see [`Shared::rectangle`].
pub(crate) struct Rectangle<T> {
    memory: Shared<T>,
    at: usize,
    stride: usize,
    rows: usize,
    cols: usize,
}

#[allow(unsafe_code)]
impl<T: Plain> Rectangle<T> {
    #[inline]
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    #[inline]
    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    #[inline]
    pub(crate) fn row(&mut self, r: usize) -> &mut [T] {
        assert!(r < self.rows, "rectangle row");
        // SAFETY: in range (`rectangle` asserted the last row) and promised to be ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory.at.add(self.at + r * self.stride), self.cols) }
    }
}

/// Rows of one length anywhere in memory that a task has to itself: see [`Shared::rows`].
pub(crate) struct Rows<'a, T> {
    memory: Shared<T>,
    at: &'a [usize],
    skip: usize,
    len: usize,
}

#[allow(unsafe_code)]
impl<T: Plain> Rows<'_, T> {
    #[inline]
    pub(crate) fn row(&mut self, r: usize) -> &mut [T] {
        // SAFETY: in range (`rows` asserted the last row) and promised to be ours alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory.at.add(self.at[r] + self.skip), self.len) }
    }

    /// Elements of a row.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Elements of the memory.
    #[inline]
    pub(crate) fn memory_len(&self) -> usize {
        self.memory.len
    }

    /// Where in the memory rows `first..first + N` begin; in the place of those after the last, that.
    #[inline]
    pub(crate) fn offsets<const N: usize>(&self, first: usize) -> [usize; N] {
        assert!(first < self.at.len(), "row");
        // SAFETY: there is a last row, and none after it is asked for.
        std::array::from_fn(|i| unsafe { self.at.get_unchecked((first + i).min(self.at.len() - 1)) } + self.skip)
    }

    /// Where in the memory rows `first..first + N` begin, which are there.
    #[inline]
    pub(crate) fn places<const N: usize>(&self, first: usize) -> [usize; N] {
        let at = self.at[first..].first_chunk::<N>().expect("rows");
        at.map(|at| at + self.skip)
    }

    /// Where the first of `rows` begins, and how far apart they are.
    #[inline]
    pub(crate) fn line(&self, rows: std::ops::Range<usize>) -> (usize, usize) {
        let at = &self.at[rows];
        let step = if at.len() > 1 { at[1] - at[0] } else { 0 };
        assert!(at[at.len() - 1] == at[0] + (at.len() - 1) * step, "rows equally far apart");
        (at[0] + self.skip, step)
    }

    /// Number of rows.
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.at.len()
    }

    /// # Safety
    /// A row begins at `offset`.
    #[inline]
    pub(crate) unsafe fn pointer(&mut self, offset: usize) -> *mut T {
        // SAFETY: within the memory.
        unsafe { self.memory.at.add(offset) }
    }
}

thread_local! {
    static SPARE: Cell<Vec<AlignedBytes>> = const { Cell::new(Vec::new()) };
}

/// Scratch memory that goes back to its thread's shelf when dropped, so that a layer's next call need not ask
/// the system for it. Its contents are whatever was there.
pub(crate) struct Scratch(AlignedBytes);

/// Bytes that a thread keeps; what is beyond is freed.
const KEEP: usize = 32 << 20;

impl Scratch {
    pub(crate) fn take(len: usize) -> Self {
        let mut shelf = SPARE.take();
        let fits = shelf.iter().enumerate().filter(|(_, b)| b.capacity() >= len);
        let best = fits.min_by_key(|(_, b)| b.capacity()).map(|(i, _)| i);
        let mut bytes = best.map(|i| shelf.swap_remove(i)).unwrap_or_else(|| AlignedBytes::zeroed(len));
        SPARE.set(shelf);
        bytes.len = len;
        Self(bytes)
    }

    /// Scratch for `count` elements.
    pub(crate) fn of<T: Plain>(count: usize) -> Self {
        Self::take(count * size_of::<T>())
    }

    pub(crate) fn as_slice<T: Plain>(&self) -> &[T] {
        cast(&self.0).expect("scratch is aligned and sized for its element")
    }

    pub(crate) fn as_mut<T: Plain>(&mut self) -> &mut [T] {
        cast_mut(&mut self.0).expect("scratch is aligned and sized for its element")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.0);
        // a thread that is ending has no shelf any more
        let _ = SPARE.try_with(|cell| {
            let mut shelf = cell.take();
            if bytes.capacity() + shelf.iter().map(AlignedBytes::capacity).sum::<usize>() <= KEEP {
                shelf.push(bytes);
            }
            cell.set(shelf);
        });
    }
}
