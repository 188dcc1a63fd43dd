// Several blocks to one tile of the output, where there are too few tiles for all multiprocessors: each takes a part of k
// and leaves float32 sums, which `add_parts` adds in order, so that the result is the same every time. No block waits for
// another.
#pragma once
#include "common.cuh"

// Where products go.
struct Target {
    const void* bias;
    int bias_dtype;
    void* out;
    int dtype, m, n;
};
DEVICE float added(const Target& to, int col) { return to.bias ? load_real(to.bias, col, to.bias_dtype) : 0; }

// A block's tile along x of the grid, and its steps along k: [first, end).
struct Split {
    int tile, part, parts, first, end;

    DEVICE Split of_block(int steps, int parts) {
        const int tile = block_x() / parts, part = block_x() % parts, each = (steps + parts - 1) / parts;
        return {tile, part, parts, smaller(part * each, steps), smaller((part + 1) * each, steps)};
    }
    // A sum: with what is added to the output, or to `sums`, [parts, m, n].
    DEVICE void store(const Split& s, float* sums, const Target& to, int row, int col, float value, float add) {
        const i64 i = (i64)row * to.n + col;
        if (s.parts > 1) sums[s.part * ((i64)to.m * to.n) + i] = value;
        else store_real(to.out, i, to.dtype, value + add);
    }
};
