// int8 activations times a quantized weight, in exact int32, and the float epilogue in the order of the CPU:
// f = fma(float(sum of a (q - Z)), S, f) for each group in order, then out = fma(f, scale of the row, bias).
//
// Both operands go through a ring of asynchronous copies in tiles of 128 k; codes become int8 in registers, int4 and int2
// as they are, unsigned: their offset comes off with the zero point, by sum(a), one more product, of a and ones, which
// symmetric int8 does without. Shapes of a block's 4 warps as in linear_tiled.cu.
// Group sizes are multiples of 32 (one group a row: k rounded up to one), of at most 66,000 elements: then every int32 fits.
#include "tile.cuh"

constexpr int THREADS = 128, TILE_K = 128, STAGES = 3, BITS = CODE_BITS;

// A group's Z for integers, and what is left of a fractional one.
struct Zero {
    int whole;
    float rest;
};

DEVICE void load_integer_parameters(const Parameters& p, int row, int group, float& scale, Zero& zero) {
    float z;
    load_parameters<BITS>(p, row, group, scale, z);
    const float half = 1 << (BITS - 1);
    const int whole = int_of_float(z < -half ? -half : z > half - 1 ? half - 1 : z);  // within the codes' range: sums fit
    zero = {whole + (1 << (BITS - 1)) - SIGNED_OFFSET<BITS>, z - (float)whole};
}

template <int MW, int MT, int NT>
DEVICE void linear_int8(const i8* x, const float* row_scale, const u8* codes, const Parameters& p, const void* bias,
                        int bias_dtype, void* out, int out_dtype, int m, int k, int group_size) {
    constexpr int M = MW * MT * 16, N = 4 / MW * NT * 8;
    constexpr int X_BYTES = M * TILE_K, STAGE_BYTES = X_BYTES + N * TILE_K * BITS / 8;
    DYNAMIC_SHARED(shared);
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const int warp_m = warp % MW * MT * 16, warp_n = warp / MW * NT * 8;
    const int n0 = block_x() * N, m0 = block_y() * M;
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

    float total[MT][NT][4] = {}, scale[NT][2] = {};
    int acc[MT][NT][4] = {}, sum[MT][4] = {};
    Zero zero[NT][2] = {};
    auto finish_group = [&]() {
        UNROLL for (int i = 0; i < MT; i++) UNROLL for (int e = 0; e < 4; e++) {
            UNROLL for (int j = 0; j < NT; j++) {
                const Zero z = zero[j][e % 2];
                // unsigned, because the parts may wrap around where their difference does not
                float f = (float)(int)((u32)acc[i][j][e] - (u32)z.whole * (u32)sum[i][e]);
                if (p.zero_kind == ZERO_F16) f = fma_float(-z.rest, (float)sum[i][e], f);
                total[i][j][e] = fma_float(f, scale[j][e % 2], total[i][j][e]);
                acc[i][j][e] = 0;
            }
            sum[i][e] = 0;
        }
    };
    GroupCursor group = GroupCursor::at_start(group_size);
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
                UNROLL for (int j = 0; j < NT; j++) UNROLL for (int c = 0; c < 2; c++)
                    load_integer_parameters(p, n0 + warp_n + j * 8 + t * 2 + c, group.now, scale[j][c], zero[j][c]);
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
        const int col = n0 + warp_n + j * 8 + t * 2 + e % 2;
        if (col >= p.rows) continue;
        const float add = bias ? load_real(bias, col, bias_dtype) : 0;
        UNROLL for (int i = 0; i < MT; i++) {
            const int row = m0 + warp_m + i * 16 + g + 8 * (e / 2);
            if (row < m) store_real(out, (i64)row * p.rows + col, out_dtype, fma_float(total[i][j][e], row_scale[row], add));
        }
    }
}

#define LINEAR_INT8(rows, mw, mt, nt)                                                                                        \
    KERNEL(linear_int8_tiled##rows, THREADS)(const i8* x, const float* row_scale, const u8* codes, const void* scale,         \
                                             int scale_dtype, const void* zero, int zero_kind, const void* bias,              \
                                             int bias_dtype, void* out, int out_dtype, int m, int n, int k, int group_size) { \
        const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};                     \
        linear_int8<mw, mt, nt>(x, row_scale, codes, p, bias, bias_dtype, out, out_dtype, m, k, group_size);                  \
    }
LINEAR_INT8(16, 1, 1, 2)
LINEAR_INT8(64, 2, 2, 4)
