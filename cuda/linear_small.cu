// Float activations of 1 to 8 rows times a quantized weight: out[m, n] = x[m, k] (S (q - Z))[n, k]^T + bias.
//
// Bound by the bytes of the weight. The weight is the 16-row operand of the tensor cores and x the 8-column one, so 8 rows of
// x cost what 1 does. A block has 16 rows of the weight; its warps take the chunks of 128 k in turn, each through its own
// ring of asynchronous copies, and add up in the end. Codes are multiplied as they are, exactly; scale and zero point come
// once a group, in float32: S (sum(x q) - Z sum(x)), with sum(x) by one more product, of x and ones. It also tells rows with
// NaN or infinity, which come out as NaN. Where k is long and n short, several blocks share it: see split.cuh.
// Group sizes are multiples of 32 (one group a row: k rounded up to one).
#include "small.cuh"
#include "split.cuh"

constexpr int BITS = CODE_BITS;

// 8 halves of a row of x from k0 on, zeros beyond its end.
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
                                 int group_size, float* parts, int splits) {
    DYNAMIC_SHARED(shared);
    const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const Split split = Split::of_block((k + CHUNK_K - 1) / CHUNK_K, splits);
    const int row0 = split.tile * ROWS, blocks = (k + BLOCK_K - 1) / BLOCK_K;
    const Rows weight = {codes, (i64)(k + 32 / BITS - 1) / (32 / BITS) * 4, n};
    Ring<BITS> ring = Ring<BITS>::start(shared, weight, row0, split.first + warp, split.end);

    float total[4] = {}, acc[4] = {}, sum[4] = {}, s[2] = {}, z[2] = {};
    auto finish_group = [&]() {
        UNROLL for (int i = 0; i < 4; i++) {
            total[i] = fma_float(s[i / 2], acc[i] - z[i / 2] * sum[i], fma_float(sum[i], 0, total[i]));
            acc[i] = sum[i] = 0;
        }
    };
    GroupCursor group = GroupCursor::at_start(group_size);
    Ahead now, next;
    look_ahead<BITS>(now, group, p, row0 + g, split.first + warp, blocks);
    for (int chunk = split.first + warp; chunk < split.end; chunk += WARPS) {
        u32x4 activations[CHUNK_BLOCKS];
        UNROLL for (int b = 0; b < CHUNK_BLOCKS; b++) {
            activations[b] = {0, 0, 0, 0};
            if (g < m) activations[b] = load_activations(x + (i64)g * k, chunk * CHUNK_K + b * BLOCK_K + t * 8, k);
        }
        look_ahead<BITS>(next, group, p, row0 + g, chunk + WARPS, blocks);
        const u8* tile = Ring<BITS>::take(ring, chunk);
        UNROLL for (int b = 0; b < CHUNK_BLOCKS; b++) {
            if (now.enters >> b & 1) {
                finish_group();
                UNROLL for (int i = 0; i < 2; i++) s[i] = now.scale[b][i], z[i] = now.zero[b][i];
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
        now = next;
    }
    finish_group();

    float* of_warps = (float*)shared;  // [warp][row][token]
    sync_block();
    UNROLL for (int i = 0; i < 4; i++) of_warps[(warp * ROWS + g + 8 * (i / 2)) * TOKENS + t * 2 + i % 2] = total[i];
    sync_block();
    const int row = thread % ROWS, token = thread / ROWS;
    if (token >= m || row0 + row >= n) return;
    float value = 0;
    UNROLL for (int i = 0; i < WARPS; i++) value += of_warps[(i * ROWS + row) * TOKENS + token];
    const Target target = {bias, bias_dtype, out, HALF::dtype, m, n};
    Split::store(split, parts, target, token, row0 + row, value, added(target, row0 + row));
}
