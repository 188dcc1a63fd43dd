// Running a grid in the emulator: blocks one after the other.
#pragma once
#include "emulator.hpp"

#include <map>
#include <string>
#include <type_traits>

namespace emulator {

// Of vector loads from shared memory: what the hardware does at once, and the times it must repeat for a bank met twice.
struct Counts {
    u64 phases, conflicts;
};
extern Counts counts;

extern void (*body)(void*);
extern void* body_argument;
void run_block(Block& b, u64 order);

struct Grid {
    int blocks_x, blocks_y, threads;
    size_t shared;
    u64 order;  // of threads: 0 forward, 1 backward, else the seed of a random one
};
using Launcher = void (*)(const Grid&, void** parameters);

// By name.
std::map<std::string, Launcher>& kernels();
struct Register {
    Register(const char* name, Launcher launcher) { kernels()[name] = launcher; }
};

template <class... A, size_t... I> void call(void (*kernel)(A...), void** parameters, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)parameters[I]...);
}

// As cuLaunchKernel: `parameters` are pointers to the arguments.
template <class... A> void launch(void (*kernel)(A...), const Grid& grid, void** parameters) {
    struct Argument { void (*kernel)(A...); void** parameters; } argument{kernel, parameters};
    body = [](void* p) { call(((Argument*)p)->kernel, ((Argument*)p)->parameters, std::index_sequence_for<A...>{}); };
    body_argument = &argument;
    u8* memory = (u8*)aligned_alloc(128, (grid.shared + 255) / 128 * 128);
    for (int y = 0; y < grid.blocks_y; y++)
        for (int x = 0; x < grid.blocks_x; x++) {
            memset(memory, 0xCB, grid.shared);
            Block b{x, y, grid.blocks_x, memory, grid.shared, 0, 0, std::vector<Thread>(grid.threads), std::vector<Warp>((grid.threads + 31) / 32)};
            for (int i = 0; i < grid.threads; i++) b.threads[i].index = i, b.threads[i].block = &b, b.threads[i].warp = &b.warps[i / 32];
            run_block(b, grid.order);
        }
    free(memory);
}

}  // namespace emulator
