//! Ranges of activations, found by watching them: a histogram that grows with what it sees, and the range that a criterion
//! finds best on it (Krishnamoorthi 2018, <https://arxiv.org/abs/1806.08342>, and Nagel et al. 2021,
//! <https://arxiv.org/abs/2106.08295>, section 3).
//!
//! Nothing of the data is kept but counts, and every count is an integer: what the histogram holds depends on the values
//! that came alone, not on their order, their batches, the threads or the processes that saw them.

mod entropy;
mod extent;
mod grid;
mod histogram;
mod percentile;
mod squares;

pub use extent::extent;
pub use histogram::Histogram;
