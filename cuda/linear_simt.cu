// Float activations of 1 to 8 rows times a quantized weight, without tensor cores and asynchronous copies: what compute
// capability 7.5 has for float16, and any for float32. out[m, n] = x[m, k] (S (q - Z))[n, k]^T + bias, in float32.
//
// See simt.cuh. Group sizes are multiples of 32 (one group a row: k rounded up to one).
#include "simt.cuh"

constexpr int BITS = CODE_BITS;

// A lane's 8 codes q - Z of a row of the weight as floats. They are put into the mantissa of 2^23, which is exact.
template <int BITS> DEVICE void load_weights(const u8* row, int k0, i64 row_bytes, float zero, float (&w)[PER_LANE]) {
    constexpr u32 magic = 0x4b000000;
    constexpr float away = 8388608 + (1 << (BITS - 1));
    const Codes<BITS> codes = load_codes<BITS>(row, k0, row_bytes);
    UNROLL for (int i = 0; i < PER_LANE; i++) {
        u32 bits;
        if constexpr (BITS == 8) bits = pick_bytes(i < 4 ? codes.raw.x : codes.raw.y, magic, 0x7440 + i % 4);
        else bits = and_or(codes.raw >> (BITS * i), (1u << BITS) - 1, magic);
        w[i] = float_of_bits(bits) - away - zero;
    }
}

// 8 activations from k0 on, zeros beyond the end of their row.
template <int DTYPE> DEVICE void load_activations(const void* x, i64 row, int k0, int k, float (&v)[PER_LANE]) {
    const i64 at = row * k + k0;
    if (k % PER_LANE) {
        UNROLL for (int i = 0; i < PER_LANE; i++) v[i] = k0 + i < k ? load_real(x, at + i, DTYPE) : 0;
    } else if (DTYPE == F32) {
        UNROLL for (int half = 0; half < 2; half++) {
            const u32x4 four = load_global16((const float*)x + at + 4 * half);
            UNROLL for (int i = 0; i < 4; i++) v[4 * half + i] = float_of_bits((&four.x)[i]);
        }
    } else {
        const u32x4 eight = load_global16((const u16*)x + at);
        UNROLL for (int i = 0; i < PER_LANE; i++) {
            const u16 h = (u16)((&eight.x)[i / 2] >> (16 * (i % 2)));
            v[i] = DTYPE == F16 ? float_of_f16(h) : float_of_bf16(h);
        }
    }
}

template <int DTYPE>
DEVICE void linear_simt(const void* x, const u8* codes, const Parameters& p, const void* bias, int bias_dtype, void* out, int m,
                        int k, int group_size) {
    const int lane = thread_index() % 32, row0 = (block_x() * WARPS + thread_index() / 32) * ROWS;
    const i64 row_bytes = (i64)(k + 32 / BITS - 1) / (32 / BITS) * 4;
    float total[ROWS][TOKENS] = {}, bad[TOKENS] = {};
    LaneGroup group = LaneGroup::start(lane, group_size);
    NO_UNROLL for (int k0 = lane * PER_LANE; k0 < k; k0 += STEP_K) {
        float w[ROWS][PER_LANE], scale[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) {
            float zero;
            load_parameters<BITS>(p, row0 + r, group.now, scale[r], zero);  // of a row that is not there, 0
            load_weights<BITS>(codes + (row0 + r < p.rows ? row0 + r : 0) * row_bytes, k0, row_bytes, zero, w[r]);
        }
        UNROLL for (int token = 0; token < TOKENS; token++) {
            if (token < m) {
                float v[PER_LANE];
                load_activations<DTYPE>(x, token, k0, k, v);
                UNROLL for (int r = 0; r < ROWS; r++) {
                    float part = 0;
                    UNROLL for (int i = 0; i < PER_LANE; i++) part = fma_float(v[i], w[r][i], part);
                    total[r][token] = fma_float(scale[r], part, total[r][token]);
                }
                UNROLL for (int i = 0; i < PER_LANE; i++) bad[token] = fma_float(v[i], 0, bad[token]);  // NaN of infinity too
            }
        }
        LaneGroup::step(group);
    }
    float mine = 0;  // of 32 sums, each lane stores one
    UNROLL for (int token = 0; token < TOKENS; token++) UNROLL for (int r = 0; r < ROWS; r++) {
        float value = total[r][token] + bad[token];
        UNROLL for (int lanes = 16; lanes; lanes /= 2) value += float_of_bits(shuffle_xor(bits_of_float(value), lanes));
        if (lane == token * ROWS + r) mine = value;
    }
    const int token = lane / ROWS, row = row0 + lane % ROWS;
    if (token >= m || row >= p.rows) return;
    store_real(out, (i64)token * p.rows + row, DTYPE, mine + (bias ? load_real(bias, row, bias_dtype) : 0));
}

#define LINEAR_SIMT(name, dtype)                                                                                               \
    KERNEL(name, WARPS * 32)(const void* x, const u8* codes, const void* scale, int scale_dtype, const void* zero, int zero_kind, \
                             const void* bias, int bias_dtype, void* out, int m, int n, int k, int group_size) {               \
        const Parameters p = {scale, scale_dtype, zero, zero_kind, (k + group_size - 1) / group_size, n};                      \
        linear_simt<dtype>(x, codes, p, bias, bias_dtype, out, m, k, group_size);                                              \
    }
LINEAR_SIMT(linear_simt_f32, F32)
LINEAR_SIMT(linear_simt_f16, F16)
LINEAR_SIMT(linear_simt_bf16, BF16)
