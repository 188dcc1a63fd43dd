// Integer products: their activations, int32 sums and zero points to floats, and what is added to them.
#pragma once
#include "weights.cuh"

// A group's Z for integers, and what is left of a fractional one.
struct Zero {
    int whole;
    float rest;
};

// Of Z, for codes as `signed_bytes` has them.
template <int BITS> DEVICE Zero integer_zero(float z) {
    constexpr float half = 1 << (BITS - 1);
    const int whole = int_of_float(z < -half ? -half : z > half - 1 ? half - 1 : z);  // within the codes' range: sums fit
    return {whole + (1 << (BITS - 1)) - SIGNED_OFFSET<BITS>, z - (float)whole};
}

// sum of a (q - Z) of the sums of a q and of a. Unsigned, because the parts may wrap around where their difference does not.
DEVICE float integer_part(int products, int sum, const Zero& z, int zero_kind) {
    const float f = (float)(int)((u32)products - (u32)z.whole * (u32)sum);
    return zero_kind == ZERO_F16 ? fma_float(-z.rest, (float)sum, f) : f;
}

// The bias, one row for all (a stride of 0) or a row each: with what was multiplied in float, see outlier_products.cu.
struct Added {
    const void* values;
    int dtype, stride;
    DEVICE float at(const Added& a, int row, int col) {
        return a.values ? load_real(a.values, (i64)row * a.stride + col, a.dtype) : 0;
    }
};

// 8 int8 of a row from k0 on, zeros beyond its end.
DEVICE u32x2 load_bytes8(const i8* row, int k0, int k) {
    u32x2 x = {0, 0};
    if (k % 8 == 0) return k0 < k ? load_global8(row + k0) : x;
    UNROLL for (int i = 0; i < 8; i++)
        if (k0 + i < k) (i < 4 ? x.x : x.y) |= (u32)(u8)row[k0 + i] << (8 * (i % 4));
    return x;
}
