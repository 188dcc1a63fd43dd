// Codes to floats, S (q - Z) in float32, rounded once: what `dequantize` is, and what large products do before a matrix
// product of floats. Streaming: a thread reads one 32-bit word of codes and writes its 4, 8 or 16 values.
// Codes are integers, or with CODE_MANTISSA, that many bits, float8: e4m3 (without infinity) or e5m2.
#include "weights.cuh"

constexpr int THREADS = 256, BITS = CODE_BITS, PER_WORD = 32 / BITS, OFFSET = 1 << (BITS - 1);

#ifdef CODE_MANTISSA
// The bits of a float of the same sign, exponent and mantissa, times what the exponents' offsets differ by: exact, for the
// least numbers too.
DEVICE float value_of_code(u32 code) {
    const bool finite = CODE_MANTISSA == 3 ? (code & 0x7f) != 0x7f : (code & 0x7c) != 0x7c;
    if (!finite) return float_of_bits((code & 0x80) << 24 | 0x7f800000 | (CODE_MANTISSA == 3 ? 2 : code & 3) << 21);
    constexpr float apart = CODE_MANTISSA == 3 ? 0x1p120f : 0x1p112f;
    return multiply(float_of_bits((code & 0x80) << 24 | (code & 0x7f) << (23 - CODE_MANTISSA)), apart);
}
#else
DEVICE float value_of_code(u32 code) { return (float)((int)code - OFFSET); }
#endif

// Rows are along y of the grid, so that no division finds a row.
KERNEL(dequantize, THREADS)(const u32* codes, const void* scale, int scale_dtype, const void* zero, int zero_kind, void* out,
                            int dtype, int n, int k, int group_size) {
    const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};
    const int words = (k + PER_WORD - 1) / PER_WORD, word = block_x() * THREADS + thread_index(), first = word * PER_WORD;
    if (word >= words) return;
    for (int row = block_y(); row < n; row += MOST_BLOCKS_Y) {
        const u32 bits = codes[(i64)row * words + word];
        const i64 start = (i64)row * k + first;
        int group = first / group_size;
        float s, z;
        load_parameters<BITS>(p, row, group, s, z);
        auto value = [&](int i) { return multiply(s, value_of_code(bits >> (BITS * i) & ((1 << BITS) - 1)) - z); };
        if (dtype != F32 && k % PER_WORD == 0 && group_size % PER_WORD == 0) {  // one group, and whole words to write
            UNROLL for (int i = 0; i < PER_WORD; i += 4) {
                u32 halves[4];
                UNROLL for (int j = 0; j < 4; j++) halves[j] = dtype == F16 ? f16_of_float(value(i + j)) : bf16_of_float(value(i + j));
                *(u32x2*)((u16*)out + start + i) = {halves[0] | halves[1] << 16, halves[2] | halves[3] << 16};
            }
            continue;
        }
        NO_UNROLL for (int i = 0; i < PER_WORD && first + i < k; i++) {
            if (first + i == (group + 1) * group_size) load_parameters<BITS>(p, row, ++group, s, z);
            store_real(out, start + i, dtype, value(i));
        }
    }
}
