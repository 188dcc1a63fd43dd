//! The kernel table: per instruction set, one integer microkernel per weight width, the float kernels, and the
//! elementwise loops. Adding an instruction set is one file or folder, one `mod` and one
//! line in [`ALL`].
//!
//! **Panels.** A panel holds `cols` output channels (a multiple of 16) and any number of *blocks*. A block is
//! `cols * 4` bytes and spans `32 / bits` steps of k: byte `c * 4 + i` belongs to channel `c`, and its bits
//! `t * bits ..` are the unsigned code of step `4 * t + i`. One 32-bit lane is thus one channel, four consecutive
//! steps lie side by side for a 4-way dot product, and wider blocks come apart by shifts alone.
//!
//! **Activations** of `rows` rows lie step-quad by step-quad: `a[quad][row][4]` int8; kernels with `wide` set read
//! `a[quad][row]` as four int16 in the order 0, 2, 1, 3 (the even steps, then the odd ones). Float activations lie
//! `a[k][row]` for `dot`, which takes few rows, and row by row for the float tile.
//!
//! Every integer kernel computes `acc[row][c] = Σ a · u` over unsigned codes `u`, modulo 2^32; the caller subtracts
//! what offset and zero point contribute, so any result that fits int32 is exact.

use crate::buffer::Rectangle;
use crate::error::{Error, Result};
use crate::matrix::Scales;
use crate::qtype::QuantType;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)] // vendor intrinsics: loads and stores of checked slices
mod avx2;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)] // as above
mod avx512vnni;
mod bf16;
#[cfg(test)]
mod conformance;
pub(crate) mod depthwise;
pub(crate) mod lanes;
mod portable;
mod taps;

pub(crate) use bf16::{Bf16, FloatRun};
pub(crate) use taps::{TapRows, Taps};

/// Channels per vector of the narrowest panel: every panel is a multiple of this wide.
pub(crate) const STRIP: usize = 16;

/// Integer tile: `acc[rows][cols] (+)= a[rows] · b[cols]`. The slices' lengths must agree; see [`Microkernel::tile`].
type TileFn = unsafe fn(a: &[u8], rows: usize, b: &[u8], cols: usize, acc: &mut [i32], accumulate: bool);
/// `f[rows][cols] (+)= Σ_groups scale · (a · b − zero · Σa)`; see [`Microkernel::grouped`].
type GroupedFn =
    unsafe fn(a: &[u8], rows: usize, b: &[u8], cols: usize, run: GroupRun, f: &mut [f32], outputs: Option<Outputs>);
/// Packed blocks to blocks of one byte per code (or one bfloat16).
type UnpackFn = unsafe fn(b: &[u8], cols: usize, out: &mut [u8]);
/// `acc[rows][cols] += scale · Σ a · (q − zero)` straight from packed blocks.
type FloatDotFn =
    unsafe fn(a: &[f32], rows: usize, b: &[u8], cols: usize, scales: &[f32], zeros: Option<&[f32]>, acc: &mut [f32]);
/// `acc[rows][cols] += a · b` with float `b[k][cols]`, and the rows of `a` `stride` apart.
type FloatTileFn = unsafe fn(a: &[f32], stride: usize, rows: usize, b: &[f32], cols: usize, acc: &mut [f32]);

/// One entry of the table: an integer kernel for one weight width.
#[derive(Debug)]
pub struct Microkernel {
    /// `qs8_q{bits}w_gemm_{MR}x{NR}c4__{isa}`, as XNNPACK names them.
    pub name: &'static str,
    /// The weight width it reads.
    pub weight: QuantType,
    /// Most rows in one call.
    pub mr: usize,
    /// Whether activations are int16 (see the module's head).
    pub(crate) wide: bool,
    tile: TileFn,
    unpacked: TileFn,
    /// From packed blocks, and from unpacked ones.
    grouped: Option<[GroupedFn; 2]>,
    unpack: UnpackFn,
    dot: FloatDotFn,
    /// Most rows for which `dot`, [`MAX_DOT_ROWS`] at a time, beats expanding a panel to floats first.
    pub(crate) dot_rows: usize,
}

/// Consecutive groups of a panel, and what turns their integer sums into floats.
#[derive(Clone, Copy)]
pub(crate) struct GroupRun<'a> {
    /// Quads of activations in a group; the last group takes all that are left.
    pub quads: usize,
    /// Whether f starts from zero, whatever is there.
    pub fresh: bool,
    /// `[groups][cols]`.
    pub scales: Scales<'a>,
    /// Stored zero points `[groups][cols]`; without them each is `offset`.
    pub zeros: Option<&'a [u8]>,
    pub offset: u8,
    /// `[groups][rows]`: −Σa as [`split_sum`] writes it.
    pub sums: &'a [i32],
}

/// Where the sums of a run go that is a tile's last: `out[r][c] = fma(f, factors[r], bias[c])`, without a bias
/// `f · factors[r]`. What is left in f then is nothing that counts.
pub(crate) struct Outputs<'a> {
    /// A row's.
    pub factors: &'a [f32],
    /// Of the columns that are outputs, the tile's first ones.
    pub bias: Option<&'a [f32]>,
    pub out: Rectangle<f32>,
}

/// Longest group whose Σa [`split_sum`] can write: 33,000 · 127 < 2^22.
pub(crate) const MAX_GROUPED: usize = 33_000;

/// −sum as two signed 16-bit halves, the low 7 bits in the low half: multiplied by the pair (z, 128 z) they add up to −z·sum.
pub(crate) const fn split_sum(sum: i32) -> i32 {
    let s = -sum;
    (s >> 7) << 16 | s & 0x7f
}

/// What one instruction set brings.
#[derive(Debug)]
pub struct Isa {
    /// As in `RQUANT_ISA`.
    pub name: &'static str,
    /// Channels of a full panel that its kernels like best.
    pub nr: usize,
    supported: fn() -> bool,
    /// By width: int2, int4, int8.
    kernels: [Microkernel; 3],
    /// Most rows of a float tile.
    pub(crate) float_mr: usize,
    float_tile: FloatTileFn,
    /// The float path's other kernels, where the CPU multiplies bfloat16.
    pub(crate) bf16: Option<Bf16>,
    /// Whether a fused multiply-add is one instruction.
    pub(crate) fused: bool,
    taps: Option<Taps>,
    depthwise: depthwise::Depthwise,
    lanes: lanes::Lanes,
}

/// Slowest first.
static ALL: &[&Isa] = &[
    &portable::ISA,
    #[cfg(target_arch = "x86_64")]
    &avx2::ISA,
    #[cfg(target_arch = "x86_64")]
    &avx512vnni::ISA,
    #[cfg(target_arch = "x86_64")]
    &avx512vnni::ISA_BF16,
];

/// The instruction sets this CPU has, slowest first.
pub fn detected() -> impl DoubleEndedIterator<Item = &'static Isa> {
    ALL.iter().copied().filter(|isa| (isa.supported)())
}

/// The instruction set in use: the best one, or what `RQUANT_ISA` names. Read once.
///
/// # Errors
/// [`Error::UnsupportedIsa`] if `RQUANT_ISA` names one that this CPU lacks.
pub fn active() -> Result<&'static Isa> {
    #[cfg(test)]
    if let Some(isa) = forced::ISA.get() {
        return Ok(isa);
    }
    static ACTIVE: OnceLock<Result<&'static Isa>> = OnceLock::new();
    ACTIVE
        .get_or_init(|| match std::env::var("RQUANT_ISA") {
            Ok(wanted) if !wanted.is_empty() => named(&wanted),
            _ => Ok(detected().next_back().unwrap_or(&portable::ISA)),
        })
        .clone()
}

fn named(wanted: &str) -> Result<&'static Isa> {
    detected().find(|isa| isa.name == wanted).ok_or_else(|| Error::UnsupportedIsa {
        wanted: wanted.to_owned(),
        available: detected().map(|isa| isa.name).collect(),
    })
}

/// Bytes of one block of a panel.
pub(crate) const fn block_bytes(cols: usize) -> usize {
    cols * 4
}

/// Steps of k in one block.
pub(crate) const fn block_steps(weight: QuantType) -> usize {
    32 / weight.bits()
}

impl Microkernel {
    /// Bytes of activations per row and quad.
    pub(crate) fn quad_bytes(&self) -> usize {
        if self.wide { 8 } else { 4 }
    }

    fn check(&self, a: &[u8], rows: usize, quads: usize, b: &[u8], cols: usize, acc: &[i32]) {
        assert!((1..=self.mr).contains(&rows) && cols > 0 && cols.is_multiple_of(STRIP) && cols <= 64);
        assert!(b.len().is_multiple_of(block_bytes(cols)));
        assert!(a.len() == quads * rows * self.quad_bytes() && acc.len() == rows * cols);
    }
}

// SAFETY of every call below: an `Isa` is reached only through `detected` and `active`, which hold back those that
// this CPU lacks; and the asserts above each call establish the lengths that the kernels rely on.
#[allow(unsafe_code)]
impl Microkernel {
    /// `acc[rows][cols] = a · b` (`+=` with `accumulate`) from packed blocks.
    pub(crate) fn tile(&self, a: &[u8], rows: usize, b: &[u8], cols: usize, acc: &mut [i32], accumulate: bool) {
        let quads = b.len() / block_bytes(cols) * self.weight.per_byte();
        self.check(a, rows, quads, b, cols, acc);
        // SAFETY: see above.
        unsafe { (self.tile)(a, rows, b, cols, acc, accumulate) }
    }

    /// The same from blocks that [`Microkernel::unpack`] made.
    pub(crate) fn tile_unpacked(&self, a: &[u8], rows: usize, b: &[u8], cols: usize, acc: &mut [i32], add: bool) {
        self.check(a, rows, b.len() / block_bytes(cols), b, cols, acc);
        // SAFETY: see above.
        unsafe { (self.unpacked)(a, rows, b, cols, acc, add) }
    }

    /// Whether [`Microkernel::grouped`] is there.
    pub(crate) fn has_grouped(&self) -> bool {
        self.grouped.is_some()
    }

    /// `f[rows][cols] = fma(float(a · b − zero · Σa), scale, f)` for each group of the run in order (`fresh`: the first
    /// one starts from zero, and what was in f is not read), from packed blocks or (`unpacked`) from those that [`Microkernel::unpack`] made.
    pub(crate) fn grouped(
        &self,
        a: &[u8],
        rows: usize,
        (b, unpacked): (&[u8], bool),
        cols: usize,
        run: GroupRun,
        f: &mut [f32],
        outputs: Option<Outputs>,
    ) {
        let per = if unpacked { 1 } else { self.weight.per_byte() };
        let (quads, groups) = (b.len() / block_bytes(cols) * per, run.sums.len() / rows);
        assert!((1..=self.mr).contains(&rows) && cols > 0 && cols.is_multiple_of(STRIP) && cols <= 64);
        assert!(b.len().is_multiple_of(block_bytes(cols)) && run.quads.is_multiple_of(per));
        assert!(a.len() == quads * rows * self.quad_bytes() && f.len() == rows * cols);
        assert!(groups > 0 && (groups - 1) * run.quads <= quads && run.sums.len() == groups * rows);
        assert!(run.scales.len() == groups * cols && run.zeros.is_none_or(|z| z.len() == groups * cols));
        if let Some(Outputs { factors, bias, out }) = &outputs {
            assert!(factors.len() == rows && out.rows() == rows && out.cols() <= cols);
            assert!(bias.is_none_or(|bias| bias.len() == out.cols()));
        }
        let kernels = self.grouped.expect("the caller asks has_grouped");
        // SAFETY: see above.
        unsafe { (kernels[usize::from(unpacked)])(a, rows, b, cols, run, f, outputs) }
    }

    /// Packed blocks to one byte per code, `32 / bits` steps to each `cols * 4` bytes.
    pub(crate) fn unpack(&self, b: &[u8], cols: usize, out: &mut [u8]) {
        assert!(cols.is_multiple_of(STRIP) && b.len().is_multiple_of(block_bytes(cols)));
        assert!(out.len() == b.len() * self.weight.per_byte());
        // SAFETY: see above.
        unsafe { (self.unpack)(b, cols, out) }
    }

    /// `acc[rows][cols] += scales[c] · Σ_k a[k][row] · (q[k][c] − zeros[c])` in float32 straight from packed blocks, for up
    /// to [`MAX_DOT_ROWS`] rows.
    pub(crate) fn dot(
        &self,
        a: &[f32],
        rows: usize,
        b: &[u8],
        cols: usize,
        scales: &[f32],
        zeros: Option<&[f32]>,
        acc: &mut [f32],
    ) {
        assert!((1..=MAX_DOT_ROWS).contains(&rows) && cols > 0 && cols.is_multiple_of(STRIP) && cols <= 64);
        assert!(b.len().is_multiple_of(block_bytes(cols)) && acc.len() == rows * cols);
        assert!(a.len() == b.len() / block_bytes(cols) * block_steps(self.weight) * rows);
        assert!(scales.len() == cols && zeros.is_none_or(|z| z.len() == cols));
        // SAFETY: see above.
        unsafe { (self.dot)(a, rows, b, cols, scales, zeros, acc) }
    }
}

/// Most rows of [`Microkernel::dot`].
pub(crate) const MAX_DOT_ROWS: usize = 4;

#[allow(unsafe_code)]
impl Isa {
    /// The integer kernel for `weight`, one of [`QuantType::INTEGERS`].
    pub fn kernel(&self, weight: QuantType) -> &Microkernel {
        &self.kernels[index(weight)]
    }

    /// `acc[rows][cols] += a[row][k] · b[k][cols]` in float32; row r of `a` begins at `r * stride`.
    pub(crate) fn float_tile(&self, a: &[f32], stride: usize, rows: usize, b: &[f32], cols: usize, acc: &mut [f32]) {
        assert!((1..=self.float_mr).contains(&rows) && cols > 0 && cols.is_multiple_of(STRIP) && cols <= 64);
        assert!(b.len().is_multiple_of(cols) && acc.len() == rows * cols);
        assert!(a.len() >= (rows - 1) * stride + b.len() / cols);
        // SAFETY: see above.
        unsafe { (self.float_tile)(a, stride, rows, b, cols, acc) }
    }
}

const fn index(weight: QuantType) -> usize {
    match weight {
        QuantType::Int2 => 0,
        QuantType::Int4 => 1,
        QuantType::Int8 => 2,
        QuantType::E4M3 | QuantType::E5M2 => panic!("float8 has no integer kernels: callers ask is_float"),
    }
}

/// Tests try every level in one process.
#[cfg(test)]
pub(crate) mod forced {
    use super::Isa;
    use std::cell::Cell;

    thread_local! {
        pub(super) static ISA: Cell<Option<&'static Isa>> = const { Cell::new(None) };
    }

    /// Run `test` once at each level this CPU has, on this thread.
    pub(crate) fn each_isa(mut test: impl FnMut(&'static Isa)) {
        for isa in super::detected() {
            ISA.set(Some(isa));
            test(isa);
        }
        ISA.set(None);
    }
}
