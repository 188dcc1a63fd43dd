// What products of 1 to 8 rows without tensor cores share: a warp has 4 rows of the weight; each lane takes 8 neighbours of
// k, all 32 lanes 256. Eight neighbours are of one group.
#pragma once
#include "weights.cuh"

constexpr int WARPS = 4, ROWS = 4, TOKENS = 8, PER_LANE = 8, STEP_K = 32 * PER_LANE;

// A lane's 8 codes of a row of the weight. Rows are whole words, which may be fewer than 8 codes at the end.
template <int BITS> DEVICE Codes<BITS> load_codes(const u8* row, int k0, i64 row_bytes) {
    const u8* at = row + k0 / 8 * BITS;
    if constexpr (BITS == 8) return {{*(const u32*)at, k0 + 4 < row_bytes ? *(const u32*)(at + 4) : 0}};
    else if constexpr (BITS == 4) return {*(const u32*)at};
    else return {*(const u16*)at};
}

// The group of a lane's codes, without a division for each step.
struct LaneGroup {
    int size, now, inside;
    DEVICE LaneGroup start(int lane, int size) { return {size, lane * PER_LANE / size, lane * PER_LANE % size}; }
    DEVICE void step(LaneGroup& g) {
        g.now += STEP_K / g.size, g.inside += STEP_K % g.size;
        if (g.inside >= g.size) g.now++, g.inside -= g.size;
    }
};
