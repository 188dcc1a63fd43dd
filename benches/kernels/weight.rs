//! Weights in every scheme that is benched, as often as it takes for them to come from memory.

use rquant::{Floats, PackedMatrix, QuantType, QuantizedMatrix, Scheme, Serial, quantize};
use std::cell::Cell;

/// Bytes of all copies together: some times what a last-level cache holds.
const ROTATED: usize = 128 << 20;

/// `k`, `n`: a layer of a large language model, and one of a small encoder.
pub const SHAPES: [(usize, usize); 2] = [(4096, 4096), (384, 1536)];
/// Rows of activations.
pub const ROWS: [usize; 5] = [1, 4, 16, 64, 512];

/// The schemes by name: each width by row and by group. int8 is symmetric, as by default; the others have zero points.
pub fn schemes() -> Vec<(String, Scheme)> {
    let mut all = Vec::new();
    for qtype in [QuantType::Int8, QuantType::Int4, QuantType::Int2] {
        let symmetric = Scheme::symmetric(qtype);
        let scheme = if qtype == QuantType::Int8 { symmetric } else { Scheme { symmetric: false, ..symmetric } };
        all.push((format!("int{}-channel", qtype.bits()), scheme));
        for size in [128, 64, 32] {
            all.push((format!("int{}-g{size}", qtype.bits()), scheme.grouped(size)));
        }
    }
    all
}

/// Numbers in −1..1 that do not repeat soon.
pub fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        // a linear congruential generator (Knuth's constants); its high bits are the good ones
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// One weight `[n, k]`.
pub struct Weight {
    pub canonical: QuantizedMatrix,
    copies: Vec<PackedMatrix>,
    turn: Cell<usize>,
}

impl Weight {
    pub fn new(n: usize, k: usize, scheme: &Scheme) -> Self {
        let canonical = quantize(Floats::F32(&numbers(n * k, 1)), n, k, scheme, &Serial).expect("finite numbers");
        let packed = PackedMatrix::pack(&canonical, &Serial).expect("a whole matrix");
        let copies = vec![packed.clone(); ROTATED.div_ceil(packed.nbytes())];
        Self { canonical, copies, turn: Cell::new(0) }
    }

    /// The copy whose turn it is.
    pub fn next(&self) -> &PackedMatrix {
        self.turn.set((self.turn.get() + 1) % self.copies.len());
        &self.copies[self.turn.get()]
    }

    /// Bytes of one copy, scales included.
    pub fn nbytes(&self) -> usize {
        self.copies[0].nbytes()
    }
}
