// Activations to int8, one scale a row: S = max |x| / 127 (of a row of zeros 1, never below float32's least normal number),
// q = x / S rounded half to even. A row with NaN or infinity gets scale NaN and codes 0. Divisions are exact, as on the CPU,
// so the codes are equal.
//
// A block a row. The second pass reads the row again, out of the cache.
#include "common.cuh"

constexpr int THREADS = 256;

DEVICE u32 magnitude(float x) { return bits_of_float(x) & 0x7fffffff; }  // NaN and infinity are the largest

KERNEL(quantize_rows, THREADS)(const void* x, int dtype, const float* given, int scales, i8* codes, float* scale_out, int k) {
    DYNAMIC_SHARED(shared);
    u32* most_of_warp = (u32*)shared;
    const int thread = thread_index();
    const i64 row = block_x(), start = row * k;
    u32 most = 0;
    for (int i = thread; i < k; i += THREADS) {
        const u32 size = magnitude(load_real(x, start + i, dtype));
        most = size > most ? size : most;
    }
    UNROLL for (int lanes = 16; lanes; lanes /= 2) {
        const u32 other = shuffle_xor(most, lanes);
        most = other > most ? other : most;
    }
    if (thread % 32 == 0) most_of_warp[thread / 32] = most;
    sync_block();
    UNROLL for (int warp = 0; warp < THREADS / 32; warp++) most = most_of_warp[warp] > most ? most_of_warp[warp] : most;

    float scale = divide(float_of_bits(most), 127);
    scale = most == 0 ? 1 : scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
    if (given) scale = given[scales == 1 ? 0 : row];
    if (most >= 0x7f800000 || !is_finite(scale)) scale = float_of_bits(0x7fc00000);
    if (thread == 0) scale_out[row] = scale;
    for (int i = thread; i < k; i += THREADS) {
        float q = divide(load_real(x, start + i, dtype), scale);
        q = q > 127 ? 127 : q < -127 ? -127 : q;
        codes[start + i] = is_finite(scale) ? (i8)int_of_float(q) : (i8)0;
    }
}
