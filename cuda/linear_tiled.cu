// Float activations of more rows times a quantized weight: out[m, n] = x[m, k] (S (q - Z))[n, k]^T + bias.
//
// x is the 16-row operand, the weight the 8-column one; codes become halves in registers. Tiles of 64 k go through a ring of
// asynchronous copies. Per group as in linear_small.cu; scales are asked for one group ahead. Two shapes of a block's 4 warps:
// all along n for up to 16 rows, so that there are many blocks, and 2 by 2 of 32 x 32 outputs. Where they are too few all the
// same, several share k: see split.cuh.
// Group sizes are multiples of 32 (one group a row: k rounded up to one).
#include "split.cuh"
#include "tile.cuh"

constexpr int THREADS = 128, TILE_K = 64, STAGES = 4, BITS = CODE_BITS;

// MW of the 4 warps along m, each with MT tiles of 16 rows and NT tiles of 8 columns.
template <int MW, int MT, int NT>
DEVICE void linear_tiled(const u16* x, const u8* codes, const Parameters& p, const Target& target, int k, int group_size, float* parts,
                         int splits) {
    constexpr int M = MW * MT * 16, N = 4 / MW * NT * 8;
    constexpr int X_BYTES = M * TILE_K * 2, STAGE_BYTES = X_BYTES + N * TILE_K * BITS / 8;
    DYNAMIC_SHARED(shared);
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const int warp_m = warp % MW * MT * 16, warp_n = warp / MW * NT * 8;
    const Split split = Split::of_block((k + TILE_K - 1) / TILE_K, splits);
    const int n0 = split.tile * N, m0 = block_y() * M, my_col = n0 + warp_n + t * 2;
    const int first_block = split.first * (TILE_K / BLOCK_K), blocks = (k + BLOCK_K - 1) / BLOCK_K;
    const Rows activations = {(const u8*)x, (i64)k * 2, target.m}, weight = {codes, (i64)(k + 32 / BITS - 1) / (32 / BITS) * 4, p.rows};
    auto fetch = [&](int tile, int stage) {
        u8* to = shared + stage * STAGE_BYTES;
        if (tile < split.end) {
            fill_tile<16, 8, M, THREADS>(to, activations, m0, tile * TILE_K * 2, thread);
            fill_tile<BITS, BITS / 2, N, THREADS>(to + X_BYTES, weight, n0, tile * (TILE_K * BITS / 8), thread);
        }
        copies_commit();
    };
    NO_UNROLL for (int i = 0; i < STAGES - 1; i++) fetch(split.first + i, i);

    float total[MT][NT][4] = {}, acc[MT][NT][4] = {}, sum[MT][4] = {};
    Columns<NT> now = {}, next = {};
    auto finish_group = [&]() {
        UNROLL for (int i = 0; i < MT; i++) UNROLL for (int e = 0; e < 4; e++) {
            UNROLL for (int j = 0; j < NT; j++) {
                const float part = acc[i][j][e] - now.zero[j][e % 2] * sum[i][e];
                total[i][j][e] = fma_float(now.scale[j][e % 2], part, fma_float(sum[i][e], 0, total[i][j][e]));
                acc[i][j][e] = 0;
            }
            sum[i][e] = 0;
        }
    };
    GroupCursor group = GroupCursor::at_start(group_size);
    Columns<NT>::template load<BITS>(next, p, my_col, first_block / group.size);
    for (int tile = split.first, stage = 0; tile < split.end; tile++, stage = (stage + 1) % STAGES) {
        copies_wait<STAGES - 2>();
        sync_block();
        fetch(tile + STAGES - 1, (stage + STAGES - 1) % STAGES);
        const u8 *tile_x = shared + stage * STAGE_BYTES, *tile_w = tile_x + X_BYTES;
        NO_UNROLL for (int b = 0; b < TILE_K / BLOCK_K; b++) {
            const int block = tile * (TILE_K / BLOCK_K) + b;
            if (block >= blocks) break;
            if (GroupCursor::enters(group, block, block == first_block)) {
                if (block > first_block) finish_group();
                now = next;
                Columns<NT>::template load<BITS>(next, p, my_col, group.now + 1);
            }
            u32 a[MT][2][4], ones = HALF::one;
            UNROLL for (int i = 0; i < MT; i++) {
                u32 rows[2][4];
                UNROLL for (int r = 0; r < 2; r++)
                    order_halves<BITS>(load_shared16(lane_elements<16, 8>(tile_x, warp_m + i * 16 + r * 8 + g, b, t)), rows[r]);
                UNROLL for (int h = 0; h < 2; h++) {
                    UNROLL for (int e = 0; e < 4; e++) a[i][h][e] = rows[e % 2][h * 2 + e / 2];
                    HALF::mma(sum[i], a[i][h], ones, ones);
                }
            }
            UNROLL for (int j = 0; j < NT; j++) {
                u32 w[4];
                const u8* at = lane_elements<BITS, BITS / 2>(tile_w, warp_n + j * 8 + g, b, t);
                Codes<BITS>::halves<HALF>(Codes<BITS>::load(at), w);
                UNROLL for (int i = 0; i < MT; i++) UNROLL for (int h = 0; h < 2; h++)
                    HALF::mma(acc[i][j], a[i][h], w[h * 2], w[h * 2 + 1]);
            }
        }
    }
    finish_group();

    UNROLL for (int j = 0; j < NT; j++) UNROLL for (int e = 0; e < 4; e++) {
        const int col = my_col + j * 8 + e % 2;
        if (col >= p.rows) continue;
        const float add = added(target, col);
        UNROLL for (int i = 0; i < MT; i++) {
            const int row = m0 + warp_m + i * 16 + g + 8 * (e / 2);
            if (row < target.m) Split::store(split, parts, target, row, col, total[i][j][e], add);
        }
    }
}

#define LINEAR_TILED(rows, mw, mt, nt)                                                                                      \
    KERNEL(linear_tiled##rows, THREADS)(const u16* x, const u8* codes, const void* scale, int scale_dtype, const void* zero, \
                                        int zero_kind, const void* bias, int bias_dtype, void* out, int m, int n, int k,     \
                                        int group_size, float* parts, int splits) {                                          \
        const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};                    \
        linear_tiled<mw, mt, nt>(x, codes, p, {bias, bias_dtype, out, HALF::dtype, m, n}, k, group_size, parts, splits);      \
    }
LINEAR_TILED(16, 1, 1, 2)
LINEAR_TILED(64, 2, 2, 4)
