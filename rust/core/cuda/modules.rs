//! The sources, and what they are compiled to: one module for each variant, compiled when first used.

const HEADERS: [(&str, &str); 8] = [
    ("common.cuh", include_str!("../../../cuda/common.cuh")),
    ("weights.cuh", include_str!("../../../cuda/weights.cuh")),
    ("tile.cuh", include_str!("../../../cuda/tile.cuh")),
    ("small.cuh", include_str!("../../../cuda/small.cuh")),
    ("simt.cuh", include_str!("../../../cuda/simt.cuh")),
    ("split.cuh", include_str!("../../../cuda/split.cuh")),
    ("integer.cuh", include_str!("../../../cuda/integer.cuh")),
    ("row.cuh", include_str!("../../../cuda/row.cuh")),
];

/// A variant of a source: the bits of a weight's codes, the type of activations, whether sums of activations are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Module {
    source: &'static str,
    /// Of a code; of float8 as in `FLOAT8`.
    bits: usize,
    half: Option<Half>,
    symmetric: bool,
}

/// Type of float activations on tensor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Half {
    F16,
    Bf16,
}

const BITS: [usize; 3] = [8, 4, 2];
/// Kinds of float8 codes: bits of the exponent, then of the mantissa. Only `dequantize` knows them.
pub(super) const FLOAT8: [usize; 2] = [43, 52];

impl Module {
    /// All there are.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::quantize_rows(), Self::outliers(), Self::add_parts()];
        for bits in BITS {
            all.extend([
                Self::dequantize(bits),
                Self::bitpack(bits),
                Self::linear_simt(bits),
                Self::outlier_products(bits),
            ]);
            all.extend([Self::linear_int8(bits, false), Self::linear_int8_small(bits, false)]);
            all.push(Self::linear_int8_simt(bits, false));
            for half in [Half::F16, Half::Bf16] {
                all.extend([Self::linear_small(bits, half), Self::linear_tiled(bits, half)]);
            }
        }
        all.extend([Self::linear_int8(8, true), Self::linear_int8_small(8, true)]);
        all.push(Self::linear_int8_simt(8, true));
        all.extend(FLOAT8.map(Self::dequantize));
        all
    }

    const fn of(source: &'static str, bits: usize, half: Option<Half>, symmetric: bool) -> Self {
        Self { source, bits, half, symmetric }
    }

    pub(super) const fn quantize_rows() -> Self {
        Self::of("quantize_rows", 0, None, false)
    }

    pub(super) const fn outliers() -> Self {
        Self::of("outliers", 0, None, false)
    }

    pub(super) const fn add_parts() -> Self {
        Self::of("add_parts", 0, None, false)
    }

    pub(super) const fn outlier_products(bits: usize) -> Self {
        Self::of("outlier_products", bits, None, false)
    }

    pub(super) const fn linear_simt(bits: usize) -> Self {
        Self::of("linear_simt", bits, None, false)
    }

    pub(super) const fn dequantize(bits: usize) -> Self {
        Self::of("dequantize", bits, None, false)
    }

    pub(super) const fn bitpack(bits: usize) -> Self {
        Self::of("bitpack", bits, None, false)
    }

    pub(super) const fn linear_small(bits: usize, half: Half) -> Self {
        Self::of("linear_small", bits, Some(half), false)
    }

    pub(super) const fn linear_tiled(bits: usize, half: Half) -> Self {
        Self::of("linear_tiled", bits, Some(half), false)
    }

    /// Only int8 codes need no sums where there are no zero points.
    pub(super) const fn linear_int8(bits: usize, symmetric: bool) -> Self {
        Self::of("linear_int8", bits, None, symmetric && bits == 8)
    }

    /// Likewise.
    pub(super) const fn linear_int8_small(bits: usize, symmetric: bool) -> Self {
        Self::of("linear_int8_small", bits, None, symmetric && bits == 8)
    }

    /// Likewise.
    pub(super) const fn linear_int8_simt(bits: usize, symmetric: bool) -> Self {
        Self::of("linear_int8_simt", bits, None, symmetric && bits == 8)
    }

    /// What follows the names of its kernels.
    pub(super) fn variant(&self) -> String {
        let mut variant = match self.bits {
            0 => String::new(),
            kind if FLOAT8.contains(&kind) => format!("_e{}m{}", kind / 10, kind % 10),
            bits => format!("_{bits}"),
        };
        variant += match self.half {
            Some(Half::F16) => "_f16",
            Some(Half::Bf16) => "_bf16",
            None => "",
        };
        variant + if self.symmetric { "_symmetric" } else { "" }
    }

    /// Source and variant.
    pub fn name(&self) -> String {
        format!("{}{}", self.source, self.variant())
    }

    /// Names of its kernels.
    pub fn kernels(&self) -> Vec<String> {
        let bare: &[&str] = match self.source {
            "bitpack" => &["pack_codes", "unpack_codes"],
            "dequantize" => &["dequantize", "gather_rows"],
            "outliers" => &["mark_outliers", "list_outliers"],
            "linear_simt" => &["linear_simt_f32", "linear_simt_f16", "linear_simt_bf16"],
            "linear_tiled" => &["linear_tiled16", "linear_tiled64"],
            "linear_int8" => &["linear_int8_tiled16", "linear_int8_tiled64"],
            one => &[one],
        };
        bare.iter().map(|name| format!("{name}{}", self.variant())).collect()
    }

    /// Macros that make the source this variant.
    pub fn defines(&self) -> Vec<String> {
        let mut defines = vec![format!("-DVARIANT={}", self.variant())];
        if FLOAT8.contains(&self.bits) {
            defines.extend(["-DCODE_BITS=8".into(), format!("-DCODE_MANTISSA={}", self.bits % 10)]);
        } else if self.bits != 0 {
            defines.push(format!("-DCODE_BITS={}", self.bits));
        }
        if let Some(half) = self.half {
            defines.push(format!("-DHALF={}", if half == Half::F16 { "Half" } else { "Brain" }));
        }
        if self.source.starts_with("linear_int8") {
            defines.push(format!("-DCODE_SUMS={}", u8::from(!self.symmetric)));
        }
        defines
    }

    /// Whether it uses what compute capability 7.5 lacks: asynchronous copies, products of bfloat16.
    pub fn needs_ampere(&self) -> bool {
        self.source.starts_with("linear") && !self.source.ends_with("simt")
    }

    /// The text of the source.
    pub fn source(&self) -> &'static str {
        match self.source {
            "quantize_rows" => include_str!("../../../cuda/quantize_rows.cu"),
            "dequantize" => include_str!("../../../cuda/dequantize.cu"),
            "bitpack" => include_str!("../../../cuda/bitpack.cu"),
            "add_parts" => include_str!("../../../cuda/add_parts.cu"),
            "outliers" => include_str!("../../../cuda/outliers.cu"),
            "outlier_products" => include_str!("../../../cuda/outlier_products.cu"),
            "linear_simt" => include_str!("../../../cuda/linear_simt.cu"),
            "linear_int8_simt" => include_str!("../../../cuda/linear_int8_simt.cu"),
            "linear_int8_small" => include_str!("../../../cuda/linear_int8_small.cu"),
            "linear_small" => include_str!("../../../cuda/linear_small.cu"),
            "linear_tiled" => include_str!("../../../cuda/linear_tiled.cu"),
            _ => include_str!("../../../cuda/linear_int8.cu"),
        }
    }

    /// Name of the source's file in `cuda/`.
    pub fn file(&self) -> String {
        format!("{}.cu", self.source)
    }

    /// Names and texts of what sources include.
    pub fn headers() -> &'static [(&'static str, &'static str)] {
        &HEADERS
    }
}
