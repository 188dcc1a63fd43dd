// A libcuda.so.1 without a GPU: memory is the host's, kernels run in the emulator, in the middle of cuLaunchKernel.
//
// As strict as the driver where rquant could go wrong: calls before cuInit or in the wrong context, images that are no cubin
// of this device's architecture, kernels that are not in it, grids and shared memory beyond the limits, loading while a
// stream records. RQUANT_EMULATOR_ARCH is the compute capability (90 without), RQUANT_EMULATOR_ORDER the order of threads.
#include "launch.hpp"

using emulator::Grid;
using emulator::kernels;

namespace {

enum Result { OK = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY = 209, NOT_FOUND = 500, CAPTURING = 900 };
enum Attribute { MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76, SHARED_OPTIN = 97 };
constexpr int DEVICES = 2;
constexpr size_t SHARED_DEFAULT = 48 << 10;

struct Context { int device; } contexts[DEVICES] = {{0}, {1}};
struct Module { Context* context; std::string image; };
struct Function { Context* context; emulator::Launcher run; size_t shared = SHARED_DEFAULT; };

bool initialized;
thread_local Context* current;
u64 launches, last_stream;

int arch() {
    const char* given = getenv("RQUANT_EMULATOR_ARCH");
    return given ? atoi(given) : 90;
}
int most_shared() { return arch() == 90 || arch() == 100 ? 232448 : arch() == 80 ? 166912 : arch() == 75 ? 65536 : 101376; }
// Streams whose handle is odd record a graph.
bool capturing(u64 stream) { return stream & 1; }

}  // namespace

#define DRIVER extern "C" __attribute__((visibility("default"))) int

DRIVER cuInit(unsigned) { return initialized = true, OK; }
DRIVER cuGetErrorString(int code, const char** text) { return *text = code == OK ? "no error" : "emulated error", OK; }
DRIVER cuGetErrorName(int, const char** text) { return *text = "CUDA_ERROR", OK; }
// NVRTC asks a driver that it finds for this, and does without.
DRIVER cuGetExportTable(const void** table, const void*) { return *table = nullptr, NOT_FOUND; }
DRIVER cuDeviceGet(int* device, int ordinal) {
    if (!initialized) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= DEVICES) return INVALID_DEVICE;
    return *device = ordinal, OK;
}
DRIVER cuDeviceGetAttribute(int* value, int name, int) {
    *value = name == MAJOR ? arch() / 10 : name == MINOR ? arch() % 10 : name == MULTIPROCESSORS ? 132 : name == SHARED_OPTIN ? most_shared() : 0;
    return OK;
}
DRIVER cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &contexts[device], OK; }
DRIVER cuCtxGetCurrent(void** context) { return *context = current, OK; }
DRIVER cuCtxSetCurrent(void* context) { return current = (Context*)context, OK; }
DRIVER cuStreamIsCapturing(void* stream, int* status) { return *status = capturing((u64)stream), OK; }

DRIVER cuModuleLoadData(void** module, const void* image) {
    if (!current) return INVALID_CONTEXT;
    const u8* p = (const u8*)image;
    u16 machine, entry, count;
    u64 sections;
    memcpy(&machine, p + 18, 2), memcpy(&sections, p + 40, 8), memcpy(&entry, p + 58, 2), memcpy(&count, p + 60, 2);
    if (memcmp(p, "\x7f" "ELF", 4) || machine != 190) return INVALID_IMAGE;
    *module = new Module{current, std::string((const char*)p, sections + (u64)entry * count)};
    return OK;
}
DRIVER cuModuleGetFunction(void** function, void* module, const char* name) {
    Module* m = (Module*)module;
    if (m->context != current) return INVALID_CONTEXT;
    if (m->image.find(std::string(".text.") + name + '\0') == std::string::npos || !kernels().count(name)) return NOT_FOUND;
    return *function = new Function{current, kernels()[name]}, OK;
}
DRIVER cuFuncSetAttribute(void* function, int, int value) {
    if (value > most_shared()) return INVALID_VALUE;
    return ((Function*)function)->shared = value, OK;
}
DRIVER cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y, unsigned threads_z,
                      unsigned shared, void* stream, void** parameters, void**) {
    Function* f = (Function*)function;
    if (f->context != current) return INVALID_CONTEXT;
    if (!x || !y || y > 65535 || z != 1 || !threads || threads > 1024 || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    if (shared > f->shared) return INVALID_VALUE;
    launches++, last_stream = (u64)stream;
    const char* order = getenv("RQUANT_EMULATOR_ORDER");
    f->run(Grid{(int)x, (int)y, (int)threads, shared, order ? strtoull(order, nullptr, 10) : 0}, parameters);
    return OK;
}

// For tests: launches, the last stream, phases of vector loads from shared memory, and bank conflicts of them.
extern "C" __attribute__((visibility("default"))) void rquant_emulator_state(u64* out) {
    out[0] = launches, out[1] = last_stream, out[2] = emulator::counts.phases, out[3] = emulator::counts.conflicts;
}
// For tests: the device of the current context, or -1.
extern "C" __attribute__((visibility("default"))) int rquant_emulator_current() { return current ? current->device : -1; }
// For tests: whether anybody has begun to use the driver.
extern "C" __attribute__((visibility("default"))) int rquant_emulator_initialized() { return initialized; }
