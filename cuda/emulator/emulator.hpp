// The other implementation of common.cuh: kernels as C++ functions, a CUDA thread as a fiber.
//
// Meant to be harsher than a GPU. Shared memory starts as garbage and is checked for bounds and alignment; an
// asynchronous copy turns its destination to garbage at once and arrives only when the thread that issued it waits for
// it; threads run one at a time in an order that the caller chooses, so that a missing barrier shows; the lanes of a warp
// must meet at the same warp-wide instruction; threads that wait for ever are found. What it cannot find: wrong PTX, wrong
// beliefs about which lane holds what, and everything about several blocks at once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

typedef uint8_t u8;
typedef int8_t i8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE [[maybe_unused]] static inline
#define KERNEL(name, threads) extern "C" void NAMED(name, VARIANT)
#define DYNAMIC_SHARED(p) u8* p = emulator::thread->block->shared
#define UNROLL
#define NO_UNROLL

struct alignas(16) u32x4 { u32 x, y, z, w; };
struct alignas(8) u32x2 { u32 x, y; };

namespace emulator {

struct Copy { void* to; const void* from; int size, bytes; };

struct Warp {
    int waiting = 0;
    u64 turn = 0;
    const void* instruction = nullptr;
    void* argument[32];
};

struct Block;

struct Thread {
    int index;
    Block* block;
    Warp* warp;
    bool done = false;
    const u64* until = nullptr;  // blocked while *until == was
    u64 was = 0;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
    std::vector<u32> loads;  // offsets and sizes of vector loads from shared memory, for the count of bank conflicts
    void* stack_pointer = nullptr;
};

struct Block {
    int x, y, blocks_x;
    u8* shared;
    size_t shared_bytes;
    u64 barrier = 0;
    int at_barrier = 0;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
};

extern thread_local Thread* thread;

[[noreturn]] inline void fail(const char* what) {
    fprintf(stderr, "emulator: %s (block %d, %d; thread %d)\n", what, thread->block->x, thread->block->y, thread->index);
    abort();
}

void wait_until_changed(const u64* value);

// Run `all(arguments of the 32 lanes)` once they are all here.
template <class F> void together(const void* instruction, void* argument, F all) {
    Warp* warp = thread->warp;
    if (warp->waiting == 0) warp->instruction = instruction;
    else if (warp->instruction != instruction) fail("lanes of one warp are at different warp-wide instructions");
    warp->argument[thread->index % 32] = argument;
    if (++warp->waiting == 32) {
        all(warp->argument);
        warp->waiting = 0;
        warp->turn++;
    } else {
        wait_until_changed(&warp->turn);
    }
}

inline void check_shared(const void* p, size_t size) {
    const Block* b = thread->block;
    const u8* at = (const u8*)p;
    if (at < b->shared || at + size > b->shared + b->shared_bytes) fail("outside of shared memory");
    if ((uintptr_t)p % size) fail("misaligned access to shared memory");
}

template <class T> T load_shared(const void* p) {
    check_shared(p, sizeof(T));
    thread->loads.push_back((u32)((const u8*)p - thread->block->shared) << 5 | (u32)sizeof(T));
    T value;
    memcpy(&value, p, sizeof(T));
    return value;
}

inline void copy_async(void* to, const void* from, int size, int bytes) {
    check_shared(to, size);
    if ((uintptr_t)from % size) fail("misaligned source of an asynchronous copy");
    if (bytes < 0 || bytes > size) fail("an asynchronous copy of more than its size");
    memset(to, 0xCB, size);
    thread->open.push_back({to, from, size, bytes});
}

inline float of_f16(u16 h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    float f = exponent == 31 ? (mantissa ? NAN : INFINITY)
              : exponent     ? std::ldexp((float)(1024 + mantissa), exponent - 25)
                             : std::ldexp((float)mantissa, -24);
    return h >> 15 ? -f : f;
}

// Round half to even, from any precision at once.
inline u16 to_f16(double v) {
    u16 sign = std::signbit(v) ? 0x8000 : 0;
    v = std::fabs(v);
    if (std::isnan(v)) return 0x7fff;
    if (v >= 65520) return sign | 0x7c00;
    int exponent = 0;
    if (v > 0) std::frexp(v, &exponent);
    exponent = exponent - 1 < -14 || v == 0 ? -14 : exponent - 1;
    u32 steps = (u32)std::nearbyint(std::ldexp(v, 10 - exponent));  // 1024 to 2048, or less where subnormal
    return sign | (u16)(((u32)(exponent + 14) << 10) + steps);
}

inline float of_bf16(u16 h) {
    u32 bits = (u32)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// Exact for the sums and products of bf16 that kernels make: a float holds them.
inline u16 to_bf16(float f) {
    u32 bits;
    memcpy(&bits, &f, 4);
    if (std::isnan(f)) return 0x7fff;
    return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class Of, class To> u32 fma_pair(u32 a, u32 b, u32 c, Of of, To to) {
    u32 r = 0;
    for (int i = 0; i < 32; i += 16)
        r |= (u32)to(std::fma((double)of((u16)(a >> i)), (double)of((u16)(b >> i)), (double)of((u16)(c >> i)))) << i;
    return r;
}

// One product of tensor cores. A register of a lane has 32 / (k * 4 / 16) .. bits of an element: `per` elements.
template <int K, class D, class Sum, class Of> void mma(const void* instruction, D (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, Of of) {
    struct Lane { D* d; const u32* a; u32 b[2]; Of of; } lane{d, a, {b0, b1}, of};
    together(instruction, &lane, [](void** lanes) {
        constexpr int per = K / 8, bits = 32 / per;
        decltype(((Lane*)nullptr)->of(0)) A[16][K], B[K][8];
        for (int l = 0; l < 32; l++) {
            Lane* lane = (Lane*)lanes[l];
            int g = l / 4, t = l % 4;
            for (int e = 0; e < per; e++) {
                for (int i = 0; i < 4; i++) A[g + 8 * (i & 1)][t * per + e + K / 2 * (i >> 1)] = lane->of(lane->a[i] >> (bits * e));
                for (int i = 0; i < 2; i++) B[t * per + e + K / 2 * i][g] = lane->of(lane->b[i] >> (bits * e));
            }
        }
        for (int l = 0; l < 32; l++) {
            Lane* lane = (Lane*)lanes[l];
            for (int i = 0; i < 4; i++) {
                int row = l / 4 + 8 * (i >> 1), col = l % 4 * 2 + (i & 1);
                Sum sum = (Sum)lane->d[i];
                for (int k = 0; k < K; k++) sum += (Sum)A[row][k] * (Sum)B[k][col];
                lane->d[i] = (D)sum;
            }
        }
    });
}

}  // namespace emulator

#define HERE ([]() -> const void* { static char place; return &place; }())

DEVICE int thread_index() { return emulator::thread->index; }
DEVICE int block_x() { return emulator::thread->block->x; }
DEVICE int block_y() { return emulator::thread->block->y; }
DEVICE int blocks_x() { return emulator::thread->block->blocks_x; }
DEVICE void sync_block() {
    emulator::Block* b = emulator::thread->block;
    if (++b->at_barrier == (int)b->threads.size()) b->at_barrier = 0, b->barrier++;
    else emulator::wait_until_changed(&b->barrier);
}
DEVICE void sync_warp() { emulator::together(HERE, nullptr, [](void**) {}); }

DEVICE float float_of_bits(u32 b) { float f; memcpy(&f, &b, 4); return f; }
DEVICE u32 bits_of_float(float f) { u32 b; memcpy(&b, &f, 4); return b; }
DEVICE float float_of_f16(u16 h) { return emulator::of_f16(h); }
DEVICE u16 f16_of_float(float f) { return emulator::to_f16(f); }
DEVICE int int_of_float(float f) { return std::isnan(f) ? 0 : f >= 2147483648.f ? INT32_MAX : f <= -2147483648.f ? INT32_MIN : (int)std::nearbyint(f); }
DEVICE float fma_float(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE float divide(float a, float b) { return a / b; }
DEVICE float multiply(float a, float b) { volatile float r = a * b; return r; }

DEVICE u32 and_or(u32 a, u32 b, u32 c) { return (a & b) | c; }
DEVICE u32 andn_or(u32 a, u32 b, u32 c) { return (~a & b) | c; }
DEVICE u32 pick_bytes(u32 a, u32 b, u32 order) {
    u64 both = (u64)b << 32 | a;
    u32 r = 0;
    for (int i = 0; i < 4; i++) r |= (u32)(u8)(both >> (8 * (order >> (4 * i) & 7))) << (8 * i);
    return r;
}

DEVICE int dot_bytes(u32 a, u32 b, int c) {
    u32 sum = (u32)c;
    for (int i = 0; i < 32; i += 8) sum += (u32)((int)(i8)(a >> i) * (int)(i8)(b >> i));
    return (int)sum;
}

DEVICE u32x4 load_global16(const void* p) {
    if ((uintptr_t)p % 16) emulator::fail("misaligned load of 16 bytes");
    u32x4 r;
    memcpy(&r, p, 16);
    return r;
}
DEVICE u32x2 load_global8(const void* p) {
    if ((uintptr_t)p % 8) emulator::fail("misaligned load of 8 bytes");
    u32x2 r;
    memcpy(&r, p, 8);
    return r;
}
DEVICE u16 load_shared2(const void* p) { return emulator::load_shared<u16>(p); }
DEVICE u32 load_shared4(const void* p) { return emulator::load_shared<u32>(p); }
DEVICE u32x2 load_shared8(const void* p) { return emulator::load_shared<u32x2>(p); }
DEVICE u32x4 load_shared16(const void* p) { return emulator::load_shared<u32x4>(p); }

DEVICE u32 shuffle_xor(u32 v, int lanes) {
    struct Lane { u32 in, out; int lanes; } lane{v, 0, lanes};
    emulator::together(HERE, &lane, [](void** all) {
        for (int l = 0; l < 32; l++) ((Lane*)all[l])->out = ((Lane*)all[l ^ ((Lane*)all[l])->lanes])->in;
    });
    return lane.out;
}

DEVICE void copy_async16(void* to, const void* from, int bytes) { emulator::copy_async(to, from, 16, bytes); }
DEVICE void copy_async4(void* to, const void* from, int bytes) { emulator::copy_async(to, from, 4, bytes); }
DEVICE void copies_commit() {
    emulator::thread->groups.push_back(std::move(emulator::thread->open));
    emulator::thread->open.clear();
}
template <int N> DEVICE void copies_wait() {
    auto& groups = emulator::thread->groups;
    for (; (int)groups.size() > N; groups.pop_front())
        for (const emulator::Copy& c : groups.front()) {
            memset(c.to, 0, c.size);
            memcpy(c.to, c.from, c.bytes);
        }
}

DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulator::mma<16, float, double>(HERE, d, a, b0, b1, [](u32 bits) { return emulator::of_f16((u16)bits); });
}
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulator::mma<16, float, double>(HERE, d, a, b0, b1, [](u32 bits) { return emulator::of_bf16((u16)bits); });
}
DEVICE void mma_s8(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    emulator::mma<32, int, i64>(HERE, d, a, b0, b1, [](u32 bits) { return (int)(i8)bits; });
}
DEVICE u32 fma_f16x2(u32 a, u32 b, u32 c) { return emulator::fma_pair(a, b, c, emulator::of_f16, emulator::to_f16); }
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    return emulator::fma_pair(a, b, c, emulator::of_bf16, [](double v) { return emulator::to_bf16((float)v); });
}
