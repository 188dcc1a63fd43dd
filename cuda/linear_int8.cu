// int8 activations times a quantized weight, in exact int32, and the float epilogue in the order of the CPU:
// f = fma(float(sum of a (q - Z)), S, f) for each group in order, then out = fma(f, scale of the row, bias).
//
// Both operands go through a ring of asynchronous copies in tiles of 128 k; codes become int8 in registers, int4 and int2
// as they are, unsigned: their offset comes off with the zero point, by sum(a), one more product, of a and ones, which
// symmetric int8 does without. Shapes of a block's 4 warps as in linear_tiled.cu.
// Group sizes are multiples of 32 (one group a row: k rounded up to one), of at most 66,000 elements: then every int32 fits.
#include "integer.cuh"
#include "tile.cuh"

constexpr int THREADS = 128, TILE_K = 128, STAGES = 3, BITS = CODE_BITS;

template <int MW, int MT, int NT>
DEVICE void linear_int8(const i8* x, const float* row_scale, const u8* codes, const Parameters& p, const Added& added, void* out,
                        int out_dtype, int m, int k, int group_size) {
    constexpr int M = MW * MT * 16, N = 4 / MW * NT * 8;
    constexpr int X_BYTES = M * TILE_K, STAGE_BYTES = X_BYTES + N * TILE_K * BITS / 8;
    DYNAMIC_SHARED(shared);
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const int warp_m = warp % MW * MT * 16, warp_n = warp / MW * NT * 8;
    const int n0 = block_x() * N, m0 = block_y() * M, my_col = n0 + warp_n + t * 2;
    const int tiles = (k + TILE_K - 1) / TILE_K, blocks = (k + BLOCK_K - 1) / BLOCK_K;
    const Rows activations = {(const u8*)x, k, m}, weight = {codes, (i64)(k + 32 / BITS - 1) / (32 / BITS) * 4, p.rows};
    auto fetch = [&](int tile, int stage) {
        u8* to = shared + stage * STAGE_BYTES;
        if (tile < tiles) {
            fill_tile<8, 8, M, THREADS>(to, activations, m0, tile * TILE_K, thread);
            fill_tile<BITS, BITS, N, THREADS>(to + X_BYTES, weight, n0, tile * (TILE_K * BITS / 8), thread);
        }
        copies_commit();
    };
    NO_UNROLL for (int i = 0; i < STAGES - 1; i++) fetch(i, i);

    float total[MT][NT][4] = {};
    int acc[MT][NT][4] = {}, sum[MT][4] = {};
    Columns<NT> now = {}, next = {};
    auto finish_group = [&]() {
        Zero zero[NT][2];
        UNROLL for (int j = 0; j < NT; j++) UNROLL for (int i = 0; i < 2; i++) zero[j][i] = integer_zero<BITS>(now.zero[j][i]);
        UNROLL for (int i = 0; i < MT; i++) UNROLL for (int e = 0; e < 4; e++) {
            UNROLL for (int j = 0; j < NT; j++) {
                const float f = integer_part(acc[i][j][e], sum[i][e], zero[j][e % 2], p.zero_kind);
                total[i][j][e] = fma_float(f, now.scale[j][e % 2], total[i][j][e]);
                acc[i][j][e] = 0;
            }
            sum[i][e] = 0;
        }
    };
    GroupCursor group = GroupCursor::at_start(group_size);
    Columns<NT>::template load<BITS>(next, p, my_col, 0);
    for (int tile = 0; tile < tiles; tile++) {
        copies_wait<STAGES - 2>();
        sync_block();
        fetch(tile + STAGES - 1, (tile + STAGES - 1) % STAGES);
        const u8 *tile_x = shared + tile % STAGES * STAGE_BYTES, *tile_w = tile_x + X_BYTES;
        NO_UNROLL for (int b = 0; b < TILE_K / BLOCK_K; b++) {
            const int block = tile * (TILE_K / BLOCK_K) + b;
            if (block >= blocks) break;
            if (GroupCursor::enters(group, block, false)) {
                if (block > 0) finish_group();
                now = next;
                Columns<NT>::template load<BITS>(next, p, my_col, group.now + 1);
            }
            u32 a[MT][4], ones = 0x01010101;
            UNROLL for (int i = 0; i < MT; i++) {
                u32 rows[2][2];
                UNROLL for (int r = 0; r < 2; r++)
                    order_bytes<BITS>(load_shared8(lane_elements<8, 8>(tile_x, warp_m + i * 16 + r * 8 + g, b, t)), rows[r]);
                UNROLL for (int e = 0; e < 4; e++) a[i][e] = rows[e % 2][e / 2];
                if (CODE_SUMS) mma_s8(sum[i], a[i], ones, ones);
            }
            UNROLL for (int j = 0; j < NT; j++) {
                u32 w[2];
                Codes<BITS>::signed_bytes(Codes<BITS>::load(lane_elements<BITS, BITS>(tile_w, warp_n + j * 8 + g, b, t)), w);
                UNROLL for (int i = 0; i < MT; i++) mma_s8(acc[i][j], a[i], w[0], w[1]);
            }
        }
    }
    finish_group();

    UNROLL for (int j = 0; j < NT; j++) UNROLL for (int e = 0; e < 4; e++) {
        const int col = my_col + j * 8 + e % 2;
        if (col >= p.rows) continue;
        UNROLL for (int i = 0; i < MT; i++) {
            const int row = m0 + warp_m + i * 16 + g + 8 * (e / 2);
            if (row >= m) continue;
            const float value = fma_float(total[i][j][e], row_scale[row], Added::at(added, row, col));
            store_real(out, (i64)row * p.rows + col, out_dtype, value);
        }
    }
}

#define LINEAR_INT8(rows, mw, mt, nt)                                                                                         \
    KERNEL(linear_int8_tiled##rows, THREADS)(const i8* x, const float* row_scale, const u8* codes, const void* scale,          \
                                             int scale_dtype, const void* zero, int zero_kind, const void* bias,               \
                                             int bias_dtype, int bias_stride, void* out, int out_dtype, int m, int n, int k,   \
                                             int group_size) {                                                                 \
        const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};                      \
        linear_int8<mw, mt, nt>(x, row_scale, codes, p, {bias, bias_dtype, bias_stride}, out, out_dtype, m, k, group_size);    \
    }
LINEAR_INT8(16, 1, 1, 2)
LINEAR_INT8(64, 2, 2, 4)
