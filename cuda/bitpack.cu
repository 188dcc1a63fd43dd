// Canonical bytes and int8 codes, from one to the other: `rust/core/bitpack.rs` on a GPU. A thread has one 32-bit word.
#include "common.cuh"

constexpr int THREADS = 256, BITS = CODE_BITS, PER_WORD = 32 / BITS, OFFSET = 1 << (BITS - 1);
constexpr u32 MASK = (1u << BITS) - 1;

KERNEL(pack_codes, THREADS)(const i8* codes, u32* words, int n, int k) {
    const int count = (k + PER_WORD - 1) / PER_WORD, word = block_x() * THREADS + thread_index();
    if (word >= count) return;
    for (int row = block_y(); row < n; row += MOST_BLOCKS_Y) {
        u32 bits = 0;
        for (int i = 0, at = word * PER_WORD; i < PER_WORD && at < k; i++, at++)
            bits |= ((u32)(codes[(i64)row * k + at] + OFFSET) & MASK) << (BITS * i);
        words[(i64)row * count + word] = bits;
    }
}

KERNEL(unpack_codes, THREADS)(const u32* words, i8* codes, int n, int k) {
    const int count = (k + PER_WORD - 1) / PER_WORD, word = block_x() * THREADS + thread_index();
    if (word >= count) return;
    for (int row = block_y(); row < n; row += MOST_BLOCKS_Y) {
        const u32 bits = words[(i64)row * count + word];
        for (int i = 0, at = word * PER_WORD; i < PER_WORD && at < k; i++, at++)
            codes[(i64)row * k + at] = (i8)((int)(bits >> (BITS * i) & MASK) - OFFSET);
    }
}
