"""Mutants that no check can tell from the kernels as they are, each with the reason: by file, rule and the line as it becomes."""

WAITS_LONGER = "waits for a copy that is not needed yet: slower, and never wrong"
READS_BEYOND = (
    "reads beyond the end what is never stored; the emulator does not know where global memory ends"
)
AFTER_K = "a tile's blocks after k hold zeros: scales read beyond the last group meet sums of 0"

SURVIVORS: dict[tuple[str, str, str], str] = {
    ("small.cuh", "waits for one more", "copies_wait<STAGES - 2 - 1>();"): WAITS_LONGER,
    ("linear_tiled.cu", "waits for one more", "copies_wait<STAGES - 2 - 1>();"): WAITS_LONGER,
    ("linear_int8.cu", "waits for one more", "copies_wait<STAGES - 2 - 1>();"): WAITS_LONGER,
    (
        "linear_small.cu",
        "no condition",
        "if (true) activations[b] = load_activations(x + (i64)g * k, chunk * CHUNK_K + b * BLOCK_K + t * 8, k);",
    ): READS_BEYOND,
    (
        "linear_int8_small.cu",
        "no condition",
        "if (true) activations[b] = load_bytes8(x + (i64)g * k, chunk * CHUNK_K + b * BLOCK_K + t * 8, k);",
    ): READS_BEYOND,
    ("weights.cuh", "no early end", "/* if (row >= p.rows) return; */"): READS_BEYOND,
    ("tile.cuh", "no early end", "/* if (group >= p.groups) return; */"): READS_BEYOND,
    (
        "common.cuh",
        "another constant",
        "DEVICE bool is_finite(float f) { return (bits_of_float(f) & 0x7f80000f) != 0x7f800000; }",
    ): "of a scale that is NaN codes are 0 either way: conversion makes that of NaN",
    ("linear_int8.cu", "no early end", "/* if (block >= blocks) break; */"): AFTER_K,
    ("linear_tiled.cu", "no early end", "/* if (block >= blocks) break; */"): AFTER_K,
    (
        "dequantize.cu",
        "no mask",
        "if (!finite) return float_of_bits((code) << 24 | 0x7f800000 | (CODE_MANTISSA == 3 ? 2 : code & 3) << 21);",
    ): "the bits that the mask takes away fall on bits that are set anyway",
    ("bitpack.cu", "no early end", "/* if (word >= count) return; */"): READS_BEYOND + " (of unpack_codes)",
    (
        "linear_int8.cu",
        "no condition",
        "if (true) finish_group();",
    ): "before the first group, sums and scales are 0, and 0 is added",
    (
        "linear_tiled.cu",
        "no condition",
        "if (true) finish_group();",
    ): "before the first group, sums and scales are 0, and 0 is added",
    (
        "quantize_rows.cu",
        "another constant",
        "if (most >= INFINITE || !is_finite(scale)) scale = float_of_bits(0x7fc0000f);",
    ): "another NaN",
    (
        "dequantize.cu",
        "another constant",
        "store_real(out, (i64)i * k + at, dtype, float_of_bits(0x7fc0000f));",
    ): "another NaN",
    (
        "common.cuh",
        "another constant",
        "if ((b & 0x7fffffff) > 0x7f80000f) return (u16)(b >> 16 | 0x40);",
    ): "only signalling NaNs differ, and what is stored is a result of arithmetic, whose NaNs are quiet",
}
