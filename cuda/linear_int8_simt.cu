// int8 activations of 1 to 8 rows times a quantized weight without tensor cores: what linear_int8_small.cu computes, for
// compute capability 7.5, by products of four bytes at once.
//
// Laid out as linear_simt.cu. Of one group a row the lanes' int32 are added before anything is rounded: the result is the
// CPU's, bit for bit. Of several, each 8 neighbours of k are rounded by themselves.
// Group sizes are multiples of 32 (one group a row: k rounded up to one), of at most 66,000 elements: then every int32 fits.
#include "integer.cuh"
#include "simt.cuh"

constexpr int BITS = CODE_BITS;

KERNEL(linear_int8_simt, WARPS * 32)(const i8* x, const float* row_scale, const u8* codes, const void* scale, int scale_dtype,
                                     const void* zero, int zero_kind, const void* bias, int bias_dtype, int bias_stride,
                                     void* out, int out_dtype, int m, int n, int k, int group_size) {
    const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};
    const int lane = thread_index() % 32, row0 = (block_x() * WARPS + thread_index() / 32) * ROWS;
    const bool whole = group_size >= k;
    const i64 row_bytes = (i64)(k + 32 / BITS - 1) / (32 / BITS) * 4;
    int acc[ROWS][TOKENS] = {}, sum[TOKENS] = {};
    float total[ROWS][TOKENS] = {};
    LaneGroup group = LaneGroup::start(lane, group_size);
    NO_UNROLL for (int k0 = lane * PER_LANE; k0 < k; k0 += STEP_K) {
        u32 w[ROWS][2];
        UNROLL for (int r = 0; r < ROWS; r++)
            Codes<BITS>::signed_bytes(load_codes<BITS>(codes + (row0 + r < n ? row0 + r : 0) * row_bytes, k0, row_bytes), w[r]);
        UNROLL for (int token = 0; token < TOKENS; token++) {
            if (token < m) {
                u32 a[2];
                order_bytes<BITS>(load_bytes8(x + (i64)token * k, k0, k), a);
                if (CODE_SUMS) sum[token] = dot_bytes(a[0], 0x01010101, dot_bytes(a[1], 0x01010101, sum[token]));
                UNROLL for (int r = 0; r < ROWS; r++)
                    acc[r][token] = dot_bytes(a[0], w[r][0], dot_bytes(a[1], w[r][1], acc[r][token]));
            }
        }
        if (!whole) {
            UNROLL for (int r = 0; r < ROWS; r++) {
                float s, z;
                load_parameters<BITS>(p, row0 + r, group.now, s, z);
                const Zero of_group = integer_zero<BITS>(z);
                UNROLL for (int token = 0; token < TOKENS; token++) {
                    const float f = integer_part(acc[r][token], sum[token], of_group, zero_kind);
                    total[r][token] = fma_float(f, s, total[r][token]);
                    acc[r][token] = 0;
                }
            }
            UNROLL for (int token = 0; token < TOKENS; token++) sum[token] = 0;
        }
        LaneGroup::step(group);
    }

    const int token = lane / ROWS, row = row0 + lane % ROWS;
    int products = 0, added = 0;  // of 32 sums, each lane has one in the end
    float value = 0;
    UNROLL for (int t = 0; t < TOKENS; t++) {
        UNROLL for (int lanes = 16; lanes && CODE_SUMS; lanes /= 2) sum[t] += (int)shuffle_xor((u32)sum[t], lanes);
        UNROLL for (int r = 0; r < ROWS; r++) {
            UNROLL for (int lanes = 16; lanes; lanes /= 2) {
                if (whole) acc[r][t] += (int)shuffle_xor((u32)acc[r][t], lanes);
                else total[r][t] += float_of_bits(shuffle_xor(bits_of_float(total[r][t]), lanes));
            }
            if (lane == t * ROWS + r) products = acc[r][t], added = sum[t], value = total[r][t];
        }
    }
    if (token >= m || row >= n) return;
    if (whole) {
        float s, z;
        load_parameters<BITS>(p, row, 0, s, z);
        value = multiply(integer_part(products, added, integer_zero<BITS>(z), zero_kind), s);
    }
    const float add = Added::at({bias, bias_dtype, bias_stride}, token, row);
    store_real(out, (i64)token * n + row, out_dtype, fma_float(value, row_scale[token], add));
}
