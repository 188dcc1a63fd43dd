// Filling tiles of shared memory from matrices in global memory, and the rows that lanes have.
#pragma once
#include "weights.cuh"

// A matrix of rows as bytes.
struct Rows {
    const u8* bytes;
    i64 row_bytes;
    int rows;
};

// Copy to `tile` ROWS rows of CHUNKS 16-byte chunks, from row `first_row` and byte `first_byte` of each on; zeros where the
// matrix ends. `BYTES` is what 8 elements take. Rows that do not begin at a multiple of 4 bytes are copied before this
// returns, all others asynchronously; in both cases the tile is there after `copies_wait` and a barrier.
template <int BYTES, int CHUNKS, int ROWS, int THREADS>
DEVICE void fill_tile(u8* tile, const Rows& m, int first_row, int first_byte, int thread) {
    static_assert(ROWS * CHUNKS % 32 == 0, "whole warps");
    auto each = [&](auto copy) {
        NO_UNROLL for (int i = thread; i < ROWS * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, chunk = i % CHUNKS, at = first_byte + chunk * 16;
            const i64 left = first_row + row < m.rows ? m.row_bytes - at : 0;
            const int bytes = left < 0 ? 0 : left > 16 ? 16 : (int)left;
            const u8* from = bytes ? m.bytes + (first_row + row) * m.row_bytes + at : m.bytes;
            copy(tile + place_of_chunk<BYTES, CHUNKS>(row, chunk) * 16, from, bytes);
        }
    };
    if (m.row_bytes % 16 == 0) {
        each([](u8* to, const u8* from, int bytes) { copy_async16(to, from, bytes); });
    } else if (m.row_bytes % 4 == 0) {
        each([](u8* to, const u8* from, int bytes) {
            NO_UNROLL for (int part = 0; part < 16; part += 4) {
                const int some = bytes > part ? smaller(bytes - part, 4) : 0;
                copy_async4(to + part, from + (some ? part : 0), some);
            }
        });
    } else {
        each([](u8* to, const u8* from, int bytes) {
            NO_UNROLL for (int i = 0; i < 16; i++) to[i] = i < bytes ? from[i] : (u8)0;
        });
    }
}

// Which group the blocks of 32 along k are in, without a division for each.
struct GroupCursor {
    int size, now, next;  // in blocks; `now` is -1 before the first
    DEVICE GroupCursor at_start(int group_size) { return {group_size / BLOCK_K, -1, 0}; }
    // Whether `block` is in another group than before, as the first block is. After a jump, as `after_jump` says.
    DEVICE bool enters(GroupCursor& c, int block, bool after_jump) {
        if (after_jump) {
            const int group = block / c.size;
            if (group == c.now) return false;
            c.now = group, c.next = (group + 1) * c.size;
            return true;
        }
        if (block != c.next) return false;
        c.now++, c.next += c.size;
        return true;
    }
};

// Scale and zero point of a lane's columns of the output, 2 in each of NT tiles of 8.
template <int NT> struct Columns {
    float scale[NT][2], zero[NT][2];

    // Of a group that may not exist: then what was there stays.
    template <int BITS> DEVICE void load(Columns& c, const Parameters& p, int first_col, i64 group) {
        if (group >= p.groups) return;
        UNROLL for (int j = 0; j < NT; j++) UNROLL for (int i = 0; i < 2; i++)
            load_parameters<BITS>(p, first_col + j * 8 + i, (int)group, c.scale[j][i], c.zero[j][i]);
    }
};
