// Each wrapper of common.cuh in a kernel of its own, for tests alone: what a GPU makes of known words is kept, and the emulator
// must make the same of them (tests/cuda_selftest.py).
//
// A warp a block; each lane has its own words of `in` and `out`. They are described by a letter each: u any bits, f float32,
// h and b two float16 or bfloat16, c a count of bytes; f, h, b in capitals are tame numbers, for sums that may round otherwise.
#include "common.cuh"

#define PRIMITIVE(name, inputs, outputs, ...)                                     \
    KERNEL(selftest_##name, 32)(const u32* all_in, u32* all_out) {                \
        const int lane = thread_index(), at = block_x() * 32 + lane;              \
        const u32* in = all_in + (i64)at * (sizeof(inputs) - 1);                  \
        u32* out = all_out + (i64)at * (sizeof(outputs) - 1);                     \
        __VA_ARGS__                                                               \
    }

PRIMITIVE(float_of_f16, "h", "f", out[0] = bits_of_float(float_of_f16((u16)in[0]));)
PRIMITIVE(f16_of_float, "f", "u", out[0] = f16_of_float(float_of_bits(in[0]));)
PRIMITIVE(float_of_bf16, "b", "f", out[0] = bits_of_float(float_of_bf16((u16)in[0]));)
PRIMITIVE(bf16_of_float, "f", "u", out[0] = bf16_of_float(float_of_bits(in[0]));)
PRIMITIVE(int_of_float, "f", "u", out[0] = (u32)int_of_float(float_of_bits(in[0]));)
PRIMITIVE(fma_float, "fff", "f", out[0] = bits_of_float(fma_float(float_of_bits(in[0]), float_of_bits(in[1]), float_of_bits(in[2])));)
PRIMITIVE(divide, "ff", "f", out[0] = bits_of_float(divide(float_of_bits(in[0]), float_of_bits(in[1])));)
PRIMITIVE(multiply, "ff", "f", out[0] = bits_of_float(multiply(float_of_bits(in[0]), float_of_bits(in[1])));)
PRIMITIVE(and_or, "uuu", "u", out[0] = and_or(in[0], in[1], in[2]);)
PRIMITIVE(andn_or, "uuu", "u", out[0] = andn_or(in[0], in[1], in[2]);)
PRIMITIVE(pick_bytes, "uuu", "u", out[0] = pick_bytes(in[0], in[1], in[2] & 0x7777);)
PRIMITIVE(dot_bytes, "uuu", "u", out[0] = (u32)dot_bytes(in[0], in[1], (int)in[2]);)

DEVICE void put(u32* out, u32x4 v) { out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w; }

PRIMITIVE(load_global16, "uuuu", "uuuu", put(out, load_global16(in));)
PRIMITIVE(load_global8, "uu", "uu", const u32x2 two = load_global8(in); out[0] = two.x, out[1] = two.y;)
PRIMITIVE(load_shared, "uuuu", "uuuuuuuu",
    DYNAMIC_SHARED(shared);
    for (int i = 0; i < 4; i++) ((u32*)shared)[lane * 4 + i] = in[i];
    sync_block();
    const u8* other = shared + (lane ^ 5) * 16;  // of another lane
    const u32x2 two = load_shared8(other + 8);
    put(out, load_shared16(other));
    out[4] = load_shared2(other + 6), out[5] = load_shared4(other + 12), out[6] = two.x, out[7] = two.y;)
PRIMITIVE(sync_warp, "u", "u",
    DYNAMIC_SHARED(shared);
    ((u32*)shared)[lane] = in[0];
    sync_warp();
    out[0] = ((u32*)shared)[31 - lane];)
PRIMITIVE(shuffle_xor, "u", "uuuuu", for (int i = 0; i < 5; i++) out[i] = shuffle_xor(in[0], 1 << i);)

#if defined RQUANT_EMULATOR || __CUDA_ARCH__ >= 800
PRIMITIVE(copy_async16, "uuuuc---", "uuuu",
    DYNAMIC_SHARED(shared);
    for (int i = 0; i < 4; i++) ((u32*)shared)[lane * 4 + i] = 0xcbcbcbcb;
    sync_block();
    copy_async16(shared + lane * 16, in, (int)in[4]);
    copies_commit();
    copies_wait<0>();
    sync_block();
    put(out, load_shared16(shared + (31 - lane) * 16));)
PRIMITIVE(copy_async4, "uc", "u",
    DYNAMIC_SHARED(shared);
    ((u32*)shared)[lane] = 0xcbcbcbcb;
    sync_block();
    copy_async4(shared + lane * 4, in, (int)in[1] / 4);
    copies_commit();
    copies_wait<0>();
    sync_block();
    out[0] = load_shared4(shared + (31 - lane) * 4);)
// The older of two groups is there when all but one are.
PRIMITIVE(copies_wait, "uuuuuuuu", "uuuuuuuu",
    DYNAMIC_SHARED(shared);
    u8* older = shared + lane * 16;
    u8* younger = older + 512;
    copy_async16(older, in, 16);
    copies_commit();
    copy_async16(younger, in + 4, 16);
    copies_commit();
    copies_wait<1>();
    put(out, load_shared16(older));
    copies_wait<0>();
    put(out + 4, load_shared16(younger));)

#define MMA(call, number, bits_of)                                                                     \
    for (int i = 0; i < 4; i++) d[i] = number(in[i]);                                                   \
    const u32 a[4] = {in[4], in[5], in[6], in[7]};                                                      \
    call(d, a, in[8], in[9]);                                                                          \
    for (int i = 0; i < 4; i++) out[i] = bits_of(d[i]);
PRIMITIVE(mma_f16, "FFFFHHHHHH", "FFFF", float d[4]; MMA(mma_f16, float_of_bits, bits_of_float))
PRIMITIVE(mma_bf16, "FFFFBBBBBB", "FFFF", float d[4]; MMA(mma_bf16, float_of_bits, bits_of_float))
PRIMITIVE(mma_s8, "uuuuuuuuuu", "uuuu", int d[4]; MMA(mma_s8, (int), (u32)))
PRIMITIVE(fma_f16x2, "hhh", "h", out[0] = fma_f16x2(in[0], in[1], in[2]);)
PRIMITIVE(fma_bf16x2, "bbb", "b", out[0] = fma_bf16x2(in[0], in[1], in[2]);)
#endif
