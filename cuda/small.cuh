// What products of 1 to 8 rows of activations share: how a block's warps share 16 rows of the weight.
#pragma once
#include "tile.cuh"

constexpr int WARPS = 8, ROWS = 16, TOKENS = 8, CHUNK_K = 128, CHUNK_BLOCKS = CHUNK_K / BLOCK_K;

// A warp's ring of asynchronous copies: of the chunks of 128 k that the block's warps take in turn, its own, up to `end`.
template <int BITS> struct Ring {
    static constexpr int STAGES = BITS == 8 ? 3 : 4, STAGE_BYTES = ROWS * CHUNK_K * BITS / 8;
    u8* memory;
    Rows weight;
    int row0, end, lane, stage;

    DEVICE Ring start(u8* shared, const Rows& weight, int row0, int first, int end) {
        const int warp = thread_index() / 32;
        Ring ring = {shared + warp * STAGES * STAGE_BYTES, weight, row0, end, thread_index() % 32, 0};
        NO_UNROLL for (int i = 0; i < STAGES - 1; i++) fetch(ring, first + i * WARPS, i);
        return ring;
    }
    DEVICE void fetch(const Ring& r, int chunk, int stage) {
        const int first_byte = chunk * (CHUNK_K * BITS / 8);
        if (chunk < r.end) fill_tile<BITS, BITS, ROWS, 32>(r.memory + stage * STAGE_BYTES, r.weight, r.row0, first_byte, r.lane);
        copies_commit();
    }
    // The tile of `chunk`, the next in turn; it stays until the next call.
    DEVICE const u8* take(Ring& r, int chunk) {
        copies_wait<STAGES - 2>();
        sync_warp();
        fetch(r, chunk + (STAGES - 1) * WARPS, (r.stage + STAGES - 1) % STAGES);
        const u8* tile = r.memory + r.stage * STAGE_BYTES;
        r.stage = (r.stage + 1) % STAGES;
        return tile;
    }
};

// Scale and zero point of a lane's two rows for the groups that begin in a chunk, asked for one chunk ahead.
struct Ahead {
    u32 enters;  // bit b: the group of block b is another than before
    float scale[CHUNK_BLOCKS][2], zero[CHUNK_BLOCKS][2];
};

template <int BITS> DEVICE void look_ahead(Ahead& a, GroupCursor& group, const Parameters& p, int row, int chunk, int blocks) {
    a.enters = 0;
    UNROLL for (int b = 0; b < CHUNK_BLOCKS; b++) {
        const int block = chunk * CHUNK_BLOCKS + b;
        if (block >= blocks || !GroupCursor::enters(group, block, b == 0)) continue;
        a.enters |= 1u << b;
        UNROLL for (int i = 0; i < 2; i++)
            load_parameters<BITS>(p, row + 8 * i, group.now, a.scale[b][i], a.zero[b][i]);
    }
}
