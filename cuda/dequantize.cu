// Codes to floats, S (q - Z) in float32, rounded once: what `dequantize` is, what large products do before a matrix product of
// floats, and what an embedding reads. Streaming: a thread reads one 32-bit word of codes and writes its 4, 8 or 16 values.
// Codes are integers, or with CODE_MANTISSA, that many bits, float8: e4m3 (without infinity) or e5m2.
#include "weights.cuh"

constexpr int THREADS = 256, BITS = CODE_BITS, PER_WORD = 32 / BITS;

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
DEVICE float value_of_code(u32 code) { return (float)((int)code - (1 << (BITS - 1))); }
#endif

// The values of word `word` of a row, to row `to` of `out`.
DEVICE void write_word(const u32* codes, const Parameters& p, i64 row, int word, int words, void* out, i64 to, int dtype, int k,
                       int group_size) {
    const int first = word * PER_WORD;
    const u32 bits = codes[row * words + word];
    const i64 start = to * k + first;
    int group = first / group_size;
    float s, z;
    load_parameters<BITS>(p, (int)row, group, s, z);
    auto value = [&](int i) { return multiply(s, value_of_code(bits >> (BITS * i) & ((1 << BITS) - 1)) - z); };
    if (dtype != F32 && k % PER_WORD == 0 && group_size % PER_WORD == 0) {  // one group, and whole words to write
        UNROLL for (int i = 0; i < PER_WORD; i += 4) {
            u32 halves[4];
            UNROLL for (int j = 0; j < 4; j++) halves[j] = dtype == F16 ? f16_of_float(value(i + j)) : bf16_of_float(value(i + j));
            *(u32x2*)((u16*)out + start + i) = {halves[0] | halves[1] << 16, halves[2] | halves[3] << 16};
        }
        return;
    }
    NO_UNROLL for (int i = 0; i < PER_WORD && first + i < k; i++) {
        if (first + i == (group + 1) * group_size) load_parameters<BITS>(p, (int)row, ++group, s, z);
        store_real(out, start + i, dtype, value(i));
    }
}

// Rows are along y of the grid, so that no division finds a row. So below.
KERNEL(dequantize, THREADS)(const u32* codes, const void* scale, int scale_dtype, const void* zero, int zero_kind, void* out,
                            int dtype, int n, int k, int group_size) {
    const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};
    const int words = (k + PER_WORD - 1) / PER_WORD, word = block_x() * THREADS + thread_index();
    if (word >= words) return;
    for (int row = block_y(); row < n; row += MOST_BLOCKS_Y)
        write_word(codes, p, row, word, words, out, row, dtype, k, group_size);
}

// Rows `ids`, of 4 or 8 bytes each, one after the other; NaN for an id outside of [0, n), where nothing is read.
KERNEL(gather_rows, THREADS)(const void* ids, int id_bytes, int count, const u32* codes, const void* scale, int scale_dtype,
                             const void* zero, int zero_kind, void* out, int dtype, int n, int k, int group_size) {
    const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};
    const int words = (k + PER_WORD - 1) / PER_WORD, word = block_x() * THREADS + thread_index();
    if (word >= words) return;
    for (int i = block_y(); i < count; i += MOST_BLOCKS_Y) {
        const i64 row = id_bytes == 8 ? ((const i64*)ids)[i] : ((const int*)ids)[i];
        if (row >= 0 && row < n) {
            write_word(codes, p, row, word, words, out, i, dtype, k, group_size);
        } else {
            for (int at = word * PER_WORD; at < k && at < (word + 1) * PER_WORD; at++)
                store_real(out, (i64)i * k + at, dtype, float_of_bits(0x7fc00000));
        }
    }
}
