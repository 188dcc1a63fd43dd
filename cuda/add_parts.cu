// The end of a product whose k several blocks have shared: out[m, n] = bias + the sum of parts[parts, m, n], in order.
#include "split.cuh"

constexpr int THREADS = 256;

KERNEL(add_parts, THREADS)(const float* sums, int parts, const void* bias, int bias_dtype, void* out, int dtype, int m, int n) {
    const int col = block_x() * THREADS + thread_index();
    if (col >= n) return;
    const float add = bias ? load_real(bias, col, bias_dtype) : 0;
    for (int row = block_y(); row < m; row += MOST_BLOCKS_Y) {
        const i64 i = (i64)row * n + col;
        float value = 0;
        for (int part = 0; part < parts; part++) value += sums[part * ((i64)m * n) + i];
        store_real(out, i, dtype, value + add);
    }
}
