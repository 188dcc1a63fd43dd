// Float activations of 1 to 8 rows times a quantized weight: out[m, n] = x[m, k] (S (q - Z))[n, k]^T + bias.
//
// Bound by the bytes of the weight. The weight is the 16-row operand of the tensor cores and x the 8-column one, so 8 rows of
// x cost what 1 does. A block has 16 rows of the weight; its warps take the chunks of 128 k in turn, each through its own
// ring of asynchronous copies, and add up in the end. Codes are multiplied as they are, exactly; scale and zero point come
// once a group, in float32: S (sum(x q) - Z sum(x)), with sum(x) by one more product, of x and ones. It also tells rows with
// NaN or infinity, which come out as NaN.
// Group sizes are multiples of 32 (one group a row: k rounded up to one).
#include "tile.cuh"

constexpr int WARPS = 8, ROWS = 16, TOKENS = 8, CHUNK_K = 128, CHUNK_BLOCKS = CHUNK_K / BLOCK_K;
constexpr int BITS = CODE_BITS, STAGES = BITS == 8 ? 3 : 4, STAGE_BYTES = ROWS * CHUNK_K * BITS / 8;

// 8 halves from k0 on of a row of x, zeros beyond its end.
DEVICE u32x4 load_activations(const u16* row, int k0, int k) {
    u32x4 x = {0, 0, 0, 0};
    if (k % 8 == 0) return k0 < k ? load_global16(row + k0) : x;
    u32* word = &x.x;
    UNROLL for (int i = 0; i < 8; i++)
        if (k0 + i < k) word[i / 2] |= (u32)row[k0 + i] << (16 * (i % 2));
    return x;
}

KERNEL(linear_small, WARPS * 32)(const u16* x, const u8* codes, const void* scale, int scale_dtype, const void* zero,
                                 int zero_kind, const void* bias, int bias_dtype, void* out, int m, int n, int k,
                                 int group_size) {
    DYNAMIC_SHARED(shared);
    const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const int row0 = block_x() * ROWS, chunks = (k + CHUNK_K - 1) / CHUNK_K, blocks = (k + BLOCK_K - 1) / BLOCK_K;
    const Rows weight = {codes, (i64)(k + 32 / BITS - 1) / (32 / BITS) * 4, n};
    u8* ring = shared + warp * STAGES * STAGE_BYTES;
    auto fetch = [&](int chunk, int stage) {
        if (chunk < chunks)
            fill_tile<BITS, BITS, ROWS, 32>(ring + stage * STAGE_BYTES, weight, row0, chunk * (CHUNK_K * BITS / 8), lane);
        copies_commit();
    };
    NO_UNROLL for (int i = 0; i < STAGES - 1; i++) fetch(warp + i * WARPS, i);

    float total[4] = {}, acc[4] = {}, sum[4] = {}, s[2] = {}, z[2] = {};
    auto finish_group = [&]() {
        UNROLL for (int i = 0; i < 4; i++) {
            total[i] = fma_float(s[i / 2], acc[i] - z[i / 2] * sum[i], fma_float(sum[i], 0, total[i]));
            acc[i] = sum[i] = 0;
        }
    };
    GroupCursor group = GroupCursor::at_start(group_size);
    int stage = 0;
    for (int chunk = warp; chunk < chunks; chunk += WARPS) {
        u32x4 activations[CHUNK_BLOCKS];
        UNROLL for (int b = 0; b < CHUNK_BLOCKS; b++) {
            activations[b] = {0, 0, 0, 0};
            if (g < m) activations[b] = load_activations(x + (i64)g * k, chunk * CHUNK_K + b * BLOCK_K + t * 8, k);
        }
        copies_wait<STAGES - 2>();
        sync_warp();
        fetch(chunk + (STAGES - 1) * WARPS, (stage + STAGES - 1) % STAGES);
        const u8* tile = ring + stage * STAGE_BYTES;
        UNROLL for (int b = 0; b < CHUNK_BLOCKS; b++) {
            const int block = chunk * CHUNK_BLOCKS + b;
            if (block >= blocks) break;
            if (GroupCursor::enters(group, block, b == 0)) {
                finish_group();
                UNROLL for (int i = 0; i < 2; i++) load_parameters<BITS>(p, row0 + g + 8 * i, group.now, s[i], z[i]);
            }
            u32 w[2][4], a[4];
            order_halves<BITS>(activations[b], a);
            UNROLL for (int i = 0; i < 2; i++)
                Codes<BITS>::halves<HALF>(Codes<BITS>::load(lane_elements<BITS, BITS>(tile, g + 8 * i, b, t)), w[i]);
            UNROLL for (int h = 0; h < 4; h += 2) {
                const u32 rows[4] = {w[0][h], w[1][h], w[0][h + 1], w[1][h + 1]}, ones[4] = {HALF::one, HALF::one, HALF::one, HALF::one};
                HALF::mma(acc, rows, a[h], a[h + 1]);
                HALF::mma(sum, ones, a[h], a[h + 1]);
            }
        }
        stage = (stage + 1) % STAGES;
    }
    finish_group();

    float* parts = (float*)shared;  // [warp][row][token]
    sync_block();
    UNROLL for (int i = 0; i < 4; i++) parts[(warp * ROWS + g + 8 * (i / 2)) * TOKENS + t * 2 + i % 2] = total[i];
    sync_block();
    const int row = thread % ROWS, token = thread / ROWS;
    if (token >= m || row0 + row >= n) return;
    float value = bias ? load_real(bias, row0 + row, bias_dtype) : 0;
    UNROLL for (int i = 0; i < WARPS; i++) value += parts[(i * ROWS + row) * TOKENS + token];
    store_real(out, (i64)token * n + row0 + row, HALF::dtype, value);
}
