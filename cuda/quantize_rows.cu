// Activations to int8, one scale a row: S = max |x| / 127 (of a row of zeros 1, never below float32's least normal number),
// q = x / S rounded half to even. A row with NaN or infinity gets scale NaN and codes 0. Divisions are exact, as on the CPU,
// so the codes are equal. Columns that `skip` flags, which are multiplied in float, are 0 here.
//
// A block a row. The second pass reads the row again, out of the cache.
#include "row.cuh"

KERNEL(quantize_rows, ROW_THREADS)(const void* x, int dtype, const float* given, int scales, const u8* skip, i8* codes,
                                   float* scale_out, int k) {
    DYNAMIC_SHARED(shared);
    const i64 row = block_x(), start = row * k;
    auto value = [&](int i) {
        const float v = load_real(x, start + i, dtype);
        return skip && skip[i] && is_finite(v) ? 0 : v;
    };
    const u32 most = largest_magnitude(shared, k, value);
    float scale = divide(float_of_bits(most), 127);
    scale = most == 0 ? 1 : scale < 1.17549435e-38f ? 1.17549435e-38f : scale;
    if (given) scale = given[scales == 1 ? 0 : row];
    if (most >= INFINITE || !is_finite(scale)) scale = float_of_bits(0x7fc00000);
    if (thread_index() == 0) scale_out[row] = scale;
    for (int i = thread_index(); i < k; i += ROW_THREADS) {
        float q = divide(value(i), scale);
        q = q > 127 ? 127 : q < -127 ? -127 : q;
        codes[start + i] = is_finite(scale) ? (i8)int_of_float(q) : (i8)0;
    }
}
