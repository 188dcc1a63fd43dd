// What a block that has a row of activations finds out about it.
#pragma once
#include "common.cuh"

constexpr int ROW_THREADS = 256, ROW_SHARED = ROW_THREADS / 32 * 4;

constexpr u32 INFINITE = 0x7f800000;
DEVICE u32 magnitude(float x) { return bits_of_float(x) & 0x7fffffff; }  // NaN and infinity are the largest

// The largest magnitude of `value(i)`, i in [0, k), for all threads.
template <class F> DEVICE u32 largest_magnitude(u8* shared, int k, F value) {
    u32* of_warp = (u32*)shared;
    u32 most = 0;
    for (int i = thread_index(); i < k; i += ROW_THREADS) {
        const u32 size = magnitude(value(i));
        most = size > most ? size : most;
    }
    UNROLL for (int lanes = 16; lanes; lanes /= 2) {
        const u32 other = shuffle_xor(most, lanes);
        most = other > most ? other : most;
    }
    if (thread_index() % 32 == 0) of_warp[thread_index() / 32] = most;
    sync_block();
    UNROLL for (int warp = 0; warp < ROW_THREADS / 32; warp++) most = of_warp[warp] > most ? of_warp[warp] : most;
    return most;
}
