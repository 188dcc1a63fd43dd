// The columns of activations that are multiplied in float beside an integer product (LLM.int8(), Dettmers et al. 2022): for each
// element o = bias, then o = fma(w, x, o) for the listed columns in order, in float32, as on the CPU. The integer product adds
// what is here as its bias. Weights are S (q - Z), or those of `kept`, [n, columns].
//
// The columns are few: no tensor cores. A block has 32 rows and 64 columns of the output.
#include "weights.cuh"

constexpr int THREADS = 256, BITS = CODE_BITS, ROWS = 32, COLS = 64, DEPTH = 16, MINE = ROWS * COLS / THREADS;

KERNEL(outlier_products, THREADS)(const void* x, int x_dtype, const int* columns, const int* count, const void* kept,
                                  int kept_dtype, const u8* codes, const void* scale, int scale_dtype, const void* zero,
                                  int zero_kind, const void* bias, int bias_dtype, float* out, int m, int n, int k,
                                  int group_size) {
    DYNAMIC_SHARED(shared);
    const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};
    const i64 row_bytes = (i64)(k + 32 / BITS - 1) / (32 / BITS) * 4;
    float *tile_w = (float*)shared, *tile_x = tile_w + DEPTH * (COLS + 1);  // [column of the list][n], [column][m]
    const int thread = thread_index(), n0 = block_x() * COLS, m0 = block_y() * ROWS, all = *count;
    const int col = n0 + thread % COLS;
    auto weight = [&](int row, int listed) {
        if (kept) return load_real(kept, (i64)row * all + listed, kept_dtype);
        const int column = columns[listed];
        float s, z;
        load_parameters<BITS>(p, row, column / group_size, s, z);
        const int byte = codes[row * row_bytes + column / (8 / BITS)];
        const int q = (byte >> (column % (8 / BITS) * BITS) & ((1 << BITS) - 1)) - (1 << (BITS - 1));
        return multiply((float)q - z, s);
    };
    float sum[MINE];
    UNROLL for (int i = 0; i < MINE; i++) sum[i] = bias && col < n ? load_real(bias, col, bias_dtype) : 0;
    for (int first = 0; first < all; first += DEPTH) {
        const int depth = smaller(all - first, DEPTH);
        for (int i = thread; i < COLS * DEPTH; i += THREADS) {
            const int j = i % DEPTH, row = i / DEPTH;
            if (j < depth) tile_w[j * (COLS + 1) + row] = n0 + row < n ? weight(n0 + row, first + j) : 0;
        }
        for (int i = thread; i < ROWS * DEPTH; i += THREADS) {
            const int j = i % DEPTH, row = i / DEPTH;
            if (j >= depth) continue;
            const i64 at = (i64)(m0 + row) * k + columns[first + j];
            tile_x[j * (ROWS + 1) + row] = m0 + row < m ? load_real(x, at, x_dtype) : 0;
        }
        sync_block();
        for (int j = 0; j < depth; j++) {
            const float w = tile_w[j * (COLS + 1) + thread % COLS], *of_rows = tile_x + j * (ROWS + 1) + thread / COLS;
            UNROLL for (int i = 0; i < MINE; i++) sum[i] = fma_float(w, of_rows[i * (THREADS / COLS)], sum[i]);
        }
        sync_block();
    }
    UNROLL for (int i = 0; i < MINE; i++) {
        const int row = m0 + thread / COLS + i * (THREADS / COLS);
        if (row < m && col < n) out[(i64)row * n + col] = sum[i];
    }
}
