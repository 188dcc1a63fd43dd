// What the kernels are written in: types, and every instruction that CUDA C++ has no plain expression for.
//
// Two implementations of one interface. Here, inline PTX for NVRTC, without any CUDA header. `emulator/emulator.hpp`,
// chosen by RQUANT_EMULATOR, has the same names for a C++ compiler and runs the kernels on a CPU.
//
// Warp-wide functions (mma_*, shuffle_xor, sync_warp) are called by all 32 lanes together.
//
// A file of kernels is compiled once for each variant it has: VARIANT ends the kernels' names, and as it says CODE_BITS
// is 8, 4 or 2, HALF the type of activations, Half or Brain, CODE_SUMS whether sums of activations are needed. The emulator
// links all variants into one library: a struct whose functions depend on a variant is a template.
#pragma once
#define NAMED_(name, variant) name##variant
#define NAMED(name, variant) NAMED_(name, variant)
#ifdef RQUANT_EMULATOR
#include "emulator.hpp"
#else

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE static __device__ __forceinline__
// Two blocks to a multiprocessor at least: what a kernel with many registers is held to.
#define KERNEL(name, threads) extern "C" __global__ void __launch_bounds__(threads, 2) NAMED(name, VARIANT)
#define DYNAMIC_SHARED(p) extern __shared__ __align__(128) u8 p[]
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")

struct __align__(16) u32x4 { u32 x, y, z, w; };
struct __align__(8) u32x2 { u32 x, y; };

DEVICE int thread_index() { return (int)threadIdx.x; }
DEVICE int block_x() { return (int)blockIdx.x; }
DEVICE int block_y() { return (int)blockIdx.y; }
DEVICE int blocks_x() { return (int)gridDim.x; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }

// ---- floats as bits: f16 and bf16 are u16, pairs of them u32 with the first in the low half -------------------------

DEVICE float float_of_bits(u32 b) { return __int_as_float((int)b); }
DEVICE u32 bits_of_float(float f) { return (u32)__float_as_int(f); }
DEVICE float float_of_f16(u16 h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
DEVICE u16 f16_of_float(float f) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
// Round half to even; a NaN overflows into nothing.
DEVICE int int_of_float(float f) { int i; asm("cvt.rni.s32.f32 %0, %1;" : "=r"(i) : "f"(f)); return i; }
// a * b + c, rounded once.
DEVICE float fma_float(float a, float b, float c) { float d; asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c)); return d; }
// a / b as IEEE 754 rounds it.
DEVICE float divide(float a, float b) { float d; asm("div.rn.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b)); return d; }
// Products and sums that no compiler contracts into an fma.
DEVICE float multiply(float a, float b) { float d; asm("mul.rn.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b)); return d; }

// ---- bits ------------------------------------------------------------------------------------------------------------

// (a & b) | c
DEVICE u32 and_or(u32 a, u32 b, u32 c) { u32 r; asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
// (~a & b) | c
DEVICE u32 andn_or(u32 a, u32 b, u32 c) { u32 r; asm("lop3.b32 %0, %1, %2, %3, 0xae;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
// Four bytes out of those of a (0 to 3) and b (4 to 7), the first named by the lowest digit of `order`.
DEVICE u32 pick_bytes(u32 a, u32 b, u32 order) { u32 r; asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(order)); return r; }

// c + the sum of the products of the four int8 of a and b; it wraps around.
DEVICE int dot_bytes(u32 a, u32 b, int c) { int d; asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d; }

// ---- memory ----------------------------------------------------------------------------------------------------------

// 16 aligned bytes that nothing writes while the kernel runs.
DEVICE u32x4 load_global16(const void* p) {
    u32x4 r;
    asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w) : "l"(p));
    return r;
}
// 8 of them.
DEVICE u32x2 load_global8(const void* p) {
    u32x2 r;
    asm volatile("ld.global.nc.v2.u32 {%0,%1}, [%2];" : "=r"(r.x), "=r"(r.y) : "l"(p));
    return r;
}
DEVICE u16 load_shared2(const void* p) { return *(const u16*)p; }
DEVICE u32 load_shared4(const void* p) { return *(const u32*)p; }
DEVICE u32x2 load_shared8(const void* p) { return *(const u32x2*)p; }
DEVICE u32x4 load_shared16(const void* p) { return *(const u32x4*)p; }

// ---- warp ------------------------------------------------------------------------------------------------------------

DEVICE u32 shuffle_xor(u32 v, int lanes) { return __shfl_xor_sync(0xffffffffu, v, lanes); }

#if __CUDA_ARCH__ >= 800

// ---- copies to shared memory that run beside the computation -----------------------------------------------------------

DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// 16 bytes, both sides aligned: the first `bytes` from global memory (nothing is read if 0), zeros after them.
DEVICE void copy_async16(void* to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
// The same with 4 bytes.
DEVICE void copy_async4(void* to, const void* from, int bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes) : "memory");
}
// This thread's copies since the last commit become a group.
DEVICE void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all of this thread's groups but the youngest N are there; other threads see them after a barrier.
template <int N> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// ---- tensor cores: d += a b, a 16 rows, b 8 columns; lane 4 g + t has rows or columns g and g + 8 ---------------------

DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// Sums wrap around: a difference of two of them that fits is right.
DEVICE void mma_s8(int (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- pairs of halves ---------------------------------------------------------------------------------------------------

// a * b + c of each half, rounded once. bf16 has nothing else before sm_90, and f16 needs nothing else.
DEVICE u32 fma_f16x2(u32 a, u32 b, u32 c) { u32 r; asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) { u32 r; asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c)); return r; }

#endif  // __CUDA_ARCH__ >= 800
#endif  // RQUANT_EMULATOR

// ---- numbers in memory, whatever their type ----------------------------------------------------------------------------

enum { F32 = 0, F16 = 1, BF16 = 2 };               // as in rust/python/arguments.rs
enum { ZERO_NONE = 0, ZERO_U8 = 1, ZERO_F16 = 2 };  // likewise

DEVICE float float_of_bf16(u16 h) { return float_of_bits((u32)h << 16); }
// Half to even; a NaN stays one.
DEVICE u16 bf16_of_float(float f) {
    u32 b = bits_of_float(f);
    if ((b & 0x7fffffff) > 0x7f800000) return (u16)(b >> 16 | 0x40);
    return (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
DEVICE float load_real(const void* p, i64 i, int dtype) {
    if (dtype == F32) return ((const float*)p)[i];
    u16 h = ((const u16*)p)[i];
    return dtype == F16 ? float_of_f16(h) : float_of_bf16(h);
}
DEVICE void store_real(void* p, i64 i, int dtype, float v) {
    if (dtype == F32) ((float*)p)[i] = v;
    else ((u16*)p)[i] = dtype == F16 ? f16_of_float(v) : bf16_of_float(v);
}
DEVICE bool is_finite(float f) { return (bits_of_float(f) & 0x7f800000) != 0x7f800000; }
constexpr int MOST_BLOCKS_Y = 65535;
DEVICE int smaller(int a, int b) { return a < b ? a : b; }
