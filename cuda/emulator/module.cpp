// One variant of a .cu file, its kernels registered by name.
// c++ -DRQUANT_EMULATOR -DSOURCE='"linear_small.cu"' -DVARIANT=_4_f16 -DCODE_BITS=4 -DHALF=Half -DKERNELS='RUNS(linear_small_4_f16)'
#include "launch.hpp"

#include SOURCE

#define RUNS(kernel) \
    static emulator::Register register_##kernel(#kernel, [](const emulator::Grid& grid, void** p) { emulator::launch(kernel, grid, p); });
KERNELS
