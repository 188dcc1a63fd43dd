// int8 activations of 1 to 8 rows times a quantized weight: what linear_int8.cu computes, bound by the bytes of the weight.
//
// Laid out as linear_small.cu: the weight is the 16-row operand of the tensor cores and x the 8-column one, a block has 16 rows
// of the weight, and its warps share k. Of one group a row the warps' int32 are added before anything is rounded: the result
// is the CPU's, bit for bit. Of several, each warp's part of a group is rounded by itself.
// Group sizes are multiples of 32 (one group a row: k rounded up to one), of at most 66,000 elements: then every int32 fits.
#include "integer.cuh"
#include "small.cuh"

constexpr int BITS = CODE_BITS;

KERNEL(linear_int8_small, WARPS * 32)(const i8* x, const float* row_scale, const u8* codes, const void* scale, int scale_dtype,
                                      const void* zero, int zero_kind, const void* bias, int bias_dtype, int bias_stride,
                                      void* out, int out_dtype, int m, int n, int k, int group_size) {
    DYNAMIC_SHARED(shared);
    const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};
    const int thread = thread_index(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const int row0 = block_x() * ROWS, chunks = (k + CHUNK_K - 1) / CHUNK_K, blocks = (k + BLOCK_K - 1) / BLOCK_K;
    const bool whole = group_size >= k;
    const Rows weight = {codes, (i64)(k + 32 / BITS - 1) / (32 / BITS) * 4, n};
    Ring<BITS> ring = Ring<BITS>::start(shared, weight, row0, warp, chunks);

    float total[4] = {}, s[2] = {}, z[2] = {};
    int acc[4] = {}, sum[4] = {};
    auto finish_group = [&]() {
        UNROLL for (int i = 0; i < 4; i++) {
            const float f = integer_part(acc[i], sum[i], integer_zero<BITS>(z[i / 2]), zero_kind);
            total[i] = fma_float(f, s[i / 2], total[i]);
            acc[i] = sum[i] = 0;
        }
    };
    GroupCursor group = GroupCursor::at_start(group_size);
    Ahead now, next;
    const int parameter_blocks = whole ? 0 : blocks;  // one group's come in the end
    look_ahead<BITS>(now, group, p, row0 + g, warp, parameter_blocks);
    for (int chunk = warp; chunk < chunks; chunk += WARPS) {
        u32x2 activations[CHUNK_BLOCKS];
        UNROLL for (int b = 0; b < CHUNK_BLOCKS; b++) {
            activations[b] = {0, 0};
            if (g < m) activations[b] = load_bytes8(x + (i64)g * k, chunk * CHUNK_K + b * BLOCK_K + t * 8, k);
        }
        look_ahead<BITS>(next, group, p, row0 + g, chunk + WARPS, parameter_blocks);
        const u8* tile = Ring<BITS>::take(ring, chunk);
        UNROLL for (int b = 0; b < CHUNK_BLOCKS; b++) {
            if (now.enters >> b & 1) {
                finish_group();
                UNROLL for (int i = 0; i < 2; i++) s[i] = now.scale[b][i], z[i] = now.zero[b][i];
            }
            u32 w[2][2], a[2];
            order_bytes<BITS>(activations[b], a);
            UNROLL for (int i = 0; i < 2; i++)
                Codes<BITS>::signed_bytes(Codes<BITS>::load(lane_elements<BITS, BITS>(tile, g + 8 * i, b, t)), w[i]);
            const u32 rows[4] = {w[0][0], w[1][0], w[0][1], w[1][1]}, ones[4] = {0x01010101, 0x01010101, 0x01010101, 0x01010101};
            mma_s8(acc, rows, a[0], a[1]);
            if (CODE_SUMS) mma_s8(sum, ones, a[0], a[1]);
        }
        now = next;
    }
    if (!whole) finish_group();

    u32 *parts = (u32*)shared, *sums = parts + WARPS * ROWS * TOKENS;  // [warp][row][token], [warp][token]
    sync_block();
    UNROLL for (int i = 0; i < 4; i++)
        parts[(warp * ROWS + g + 8 * (i / 2)) * TOKENS + t * 2 + i % 2] = whole ? (u32)acc[i] : bits_of_float(total[i]);
    UNROLL for (int i = 0; i < 2; i++)
        if (g == 0) sums[warp * TOKENS + t * 2 + i] = (u32)sum[i];
    sync_block();
    const int row = thread % ROWS, token = thread / ROWS;
    if (token >= m || row0 + row >= n) return;
    float value = 0;
    if (whole) {
        u32 products = 0, added = 0;
        UNROLL for (int i = 0; i < WARPS; i++) products += parts[(i * ROWS + row) * TOKENS + token], added += sums[i * TOKENS + token];
        float of_row, z_of_row;
        load_parameters<BITS>(p, row0 + row, 0, of_row, z_of_row);
        value = multiply(integer_part((int)products, (int)added, integer_zero<BITS>(z_of_row), zero_kind), of_row);
    } else {
        UNROLL for (int i = 0; i < WARPS; i++) value += float_of_bits(parts[(i * ROWS + row) * TOKENS + token]);
    }
    const float add = Added::at({bias, bias_dtype, bias_stride}, token, row0 + row);
    store_real(out, (i64)token * n + row0 + row, out_dtype, fma_float(value, row_scale[token], add));
}
