// Canonical weights as tensor cores read them, without any packing of their own.
//
// A product over k may take the k of a 16- or 32-deep step in any order, if both operands take the same one. So in a block
// of 32 consecutive k, lane t of the four that share a row has the 8 codes from 8 t on: `BITS` bytes of the row as it lies
// in memory, next to those of the other lanes. Of these 8 it makes the four registers that two float steps or the two that
// one int8 step want, in the order in which the codes come apart most cheaply, and the activations, 8 of them at the same
// place of their row, are put in that order too.
#pragma once
#include "common.cuh"

constexpr int BLOCK_K = 32;  // what one load of every lane covers

// Rows of CHUNKS 16-byte chunks in shared memory: the place of a chunk, such that lanes that read `BYTES` each, four side
// by side in a row, meet no bank twice.
template <int BYTES, int CHUNKS> DEVICE int place_of_chunk(int row, int chunk) {
    constexpr int span = BYTES * 4 > 16 ? BYTES * 4 / 16 : 1;  // chunks that four lanes read together
    constexpr int rows = CHUNKS < 8 ? 8 / CHUNKS : 1;          // rows in the 128 bytes that all banks have
    return row * CHUNKS + (chunk ^ (CHUNKS > span ? span * (row / rows % (CHUNKS / span)) : 0));
}

// The address of lane t's 8 elements of `BYTES` / 8 bytes each, of a block of 32.
template <int BYTES, int CHUNKS> DEVICE const u8* lane_elements(const u8* tile, int row, int block, int t) {
    const int byte = (block * 4 + t) * BYTES;
    return tile + place_of_chunk<BYTES, CHUNKS>(row, byte / 16) * 16 + byte % 16;
}

#if defined RQUANT_EMULATOR || __CUDA_ARCH__ >= 800

// ---- codes to halves, less 2^(BITS - 1): exact ---------------------------------------------------------------------------
// A code is put into the mantissa of 1024 (f16) or 128 (bf16); the exponent's weight is subtracted with the offset.

struct Half {
    static constexpr int dtype = F16;
    static constexpr u32 one = 0x3c003c00;
    DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_f16(d, a, b0, b1); }

    // Four codes at bits `BITS` i and 16 + `BITS` i of `two`; pair i of them.
    template <int BITS, int I> DEVICE u32 pair(u32 two) {
        constexpr int shift = BITS * I & 7, step = 1 << shift;  // what does not fit in 8 bits is shifted down
        constexpr u32 mask = ((1u << BITS) - 1) << shift;
        const u32 low = BITS * I > 7 ? two >> 8 : two;
        // (1024 + step code) / step - (1024 / step + offset)
        constexpr u32 scale = 0x3c00u - (shift << 10);
        constexpr u32 away = step == 1 ? 0x6400u + (1u << (BITS - 1))
                           : step == 4 ? 0x5c00u + (4u << (BITS - 1))
                           : step == 16 ? 0x5400u + (16u << (BITS - 1)) : 0x4c00u + (64u << (BITS - 1));
        return fma_f16x2(and_or(low, mask * 0x10001u, 0x64006400), scale * 0x10001u, (away | 0x8000u) * 0x10001u);
    }
    // Bytes I and I + 1 of `four`.
    template <int I> DEVICE u32 bytes(u32 four) {
        return fma_f16x2(pick_bytes(four, 0x64646464, I ? 0x4342 : 0x4140), one, 0xe480e480);  // - 1152
    }
};

struct Brain {
    static constexpr int dtype = BF16;
    static constexpr u32 one = 0x3f803f80;
    DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_bf16(d, a, b0, b1); }

    template <int BITS, int I> DEVICE u32 pair(u32 two) {
        constexpr u32 mask = (1u << BITS) - 1, away = 0xc300u + (1u << (BITS - 1));  // -(128 + offset)
        return fma_bf16x2(and_or(two >> (BITS * I), mask * 0x10001u, 0x43004300), one, away * 0x10001u);
    }
    // 7 bits fit beside 128; the eighth says whether to subtract 128 or 256.
    template <int I> DEVICE u32 bytes(u32 four) {
        const u32 two = pick_bytes(four, 0, I ? 0x4342 : 0x4140);
        return fma_bf16x2(and_or(two, 0x007f007f, 0x43004300), one, andn_or(two, 0x00800080, 0xc300c300));
    }
};

#endif  // __CUDA_ARCH__ >= 800

// A lane's 8 codes as they lie in a row.
template <int BITS> struct Codes;
template <> struct Codes<8> {
    u32x2 raw;
    DEVICE Codes<8> load(const u8* p) { return {load_shared8(p)}; }
    template <class T> DEVICE void halves(Codes<8> c, u32 (&r)[4]) {
        r[0] = T::template bytes<0>(c.raw.x), r[1] = T::template bytes<2>(c.raw.x);
        r[2] = T::template bytes<0>(c.raw.y), r[3] = T::template bytes<2>(c.raw.y);
    }
    // int8 has no room for the unsigned code: less 128.
    DEVICE void signed_bytes(Codes<8> c, u32 (&r)[2]) { r[0] = c.raw.x ^ 0x80808080, r[1] = c.raw.y ^ 0x80808080; }
};
template <> struct Codes<4> {
    u32 raw;
    DEVICE Codes<4> load(const u8* p) { return {load_shared4(p)}; }
    template <class T> DEVICE void halves(Codes<4> c, u32 (&r)[4]) {
        r[0] = T::template pair<4, 0>(c.raw), r[1] = T::template pair<4, 1>(c.raw);
        r[2] = T::template pair<4, 2>(c.raw), r[3] = T::template pair<4, 3>(c.raw);
    }
    DEVICE void signed_bytes(Codes<4> c, u32 (&r)[2]) { r[0] = c.raw & 0x0f0f0f0f, r[1] = c.raw >> 4 & 0x0f0f0f0f; }
};
template <> struct Codes<2> {
    u32 raw;
    DEVICE Codes<2> load(const u8* p) { return {load_shared2(p)}; }
    template <class T> DEVICE void halves(Codes<2> c, u32 (&r)[4]) {
        const u32 two = pick_bytes(c.raw, 0, 0x4140);  // codes 0 to 3 low, 4 to 7 high
        r[0] = T::template pair<2, 0>(two), r[1] = T::template pair<2, 1>(two);
        r[2] = T::template pair<2, 2>(two), r[3] = T::template pair<2, 3>(two);
    }
    DEVICE void signed_bytes(Codes<2> c, u32 (&r)[2]) {
        const u32 spread = c.raw | c.raw << 14;  // codes 0, 4, 1, 5 at the bottom of a byte each
        r[0] = spread & 0x03030303, r[1] = spread >> 4 & 0x03030303;
    }
};

// What `signed_bytes` has subtracted of the unsigned codes.
template <int BITS> constexpr int SIGNED_OFFSET = BITS == 8 ? 128 : 0;

// ---- the activations in the codes' order -----------------------------------------------------------------------------------

// 8 halves; of `halves`, register i has codes i and i + 4, of bytes two neighbours.
template <int BITS> DEVICE void order_halves(u32x4 x, u32 (&r)[4]) {
    if (BITS == 8) {
        r[0] = x.x, r[1] = x.y, r[2] = x.z, r[3] = x.w;
    } else {
        r[0] = pick_bytes(x.x, x.z, 0x5410), r[1] = pick_bytes(x.x, x.z, 0x7632);
        r[2] = pick_bytes(x.y, x.w, 0x5410), r[3] = pick_bytes(x.y, x.w, 0x7632);
    }
}

// 8 int8, as `signed_bytes` has them.
template <int BITS> DEVICE void order_bytes(u32x2 x, u32 (&r)[2]) {
    if (BITS == 8) r[0] = x.x, r[1] = x.y;
    else if (BITS == 4) r[0] = pick_bytes(x.x, x.y, 0x6420), r[1] = pick_bytes(x.x, x.y, 0x7531);
    else r[0] = pick_bytes(x.x, x.y, 0x5140), r[1] = pick_bytes(x.x, x.y, 0x7362);
}

// ---- scales ----------------------------------------------------------------------------------------------------------------

// Scales and zero points `[rows, groups]`, as they are stored.
struct Parameters {
    const void* scale;
    int scale_dtype;  // F32 or F16
    const void* zero;
    int zero_kind;
    i64 groups;
    int rows;
};

// Scale and Z of a row's group; of a row that is not there, 0.
template <int BITS> DEVICE void load_parameters(const Parameters& p, int row, int group, float& scale, float& zero) {
    scale = 0, zero = 0;
    if (row >= p.rows) return;
    const i64 i = row * p.groups + group;
    scale = load_real(p.scale, i, p.scale_dtype);
    if (p.zero_kind == ZERO_U8) zero = (float)((int)((const u8*)p.zero)[i] - (1 << (BITS - 1)));
    else if (p.zero_kind == ZERO_F16) zero = float_of_f16(((const u16*)p.zero)[i]);
}
