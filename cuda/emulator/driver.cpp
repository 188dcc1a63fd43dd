// A libcuda.so.1 without a GPU: memory is the host's, kernels run in the emulator, in the middle of cuLaunchKernel.
//
// As strict as the driver where rquant could go wrong: calls before cuInit or in the wrong context, images that are not for
// this device's architecture, kernels that are not in it, grids, registers and shared memory beyond the limits, loading while
// a stream records. RQUANT_EMULATOR_ARCH is the compute capability (90 without; "80,90" of two devices),
// RQUANT_EMULATOR_ORDER the order of threads; RQUANT_EMULATOR_TRACE a file to add launches to.
#include "cubin.hpp"
#include "launch.hpp"

#include <mutex>
#include <set>

using emulator::Grid;
using emulator::kernels;

namespace {

enum Result { OK = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY = 209, INVALID_PTX = 218, NOT_FOUND = 500, OUT_OF_RESOURCES = 701, CAPTURING = 900 };
enum Attribute { MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76, SHARED_OPTIN = 97 };
constexpr int DEVICES = 2;
constexpr size_t SHARED_DEFAULT = 48 << 10;
constexpr unsigned REGISTERS = 65536;  // of a multiprocessor, and of a block

struct Context { int device; } contexts[DEVICES] = {{0}, {1}};
struct Module { Context* context; emulator::Image image; };
struct Function { Context* context; emulator::Launcher run; emulator::Needs needs; std::string name; size_t shared = SHARED_DEFAULT; };

bool initialized;
thread_local Context* current;
u64 launches, last_stream, recording;

int arch(int device) {
    const char* given = getenv("RQUANT_EMULATOR_ARCH");
    const char* second = given ? strchr(given, ',') : nullptr;
    return device && second ? atoi(second + 1) : given ? atoi(given) : 90;
}
int most_shared(int device) {
    const int of = arch(device);
    return of == 90 || of == 100 ? 232448 : of == 80 || of == 87 ? 166912 : of == 75 ? 65536 : 101376;
}
// A stream whose handle is odd records a graph, and the one that rquant_emulator_record names.
bool capturing(u64 stream) { return stream & 1 || (recording && stream == recording); }

void trace(const Function& f, unsigned threads, unsigned shared) {
    static std::set<std::string> seen;
    const char* path = getenv("RQUANT_EMULATOR_TRACE");
    const std::string line = f.name + " " + std::to_string(threads) + " " + std::to_string(shared) + "\n";
    FILE* file = path && seen.insert(line).second ? fopen(path, "a") : nullptr;
    if (file) fputs(line.c_str(), file), fclose(file);
}

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
DRIVER cuDeviceGetAttribute(int* value, int name, int device) {
    const int of = arch(device);
    *value = name == MAJOR ? of / 10 : name == MINOR ? of % 10 : name == MULTIPROCESSORS ? 132 : name == SHARED_OPTIN ? most_shared(device) : 0;
    return OK;
}
DRIVER cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &contexts[device], OK; }
DRIVER cuCtxGetCurrent(void** context) { return *context = current, OK; }
DRIVER cuCtxSetCurrent(void* context) { return current = (Context*)context, OK; }
DRIVER cuStreamIsCapturing(void* stream, int* status) { return *status = capturing((u64)stream), OK; }

DRIVER cuModuleLoadData(void** module, const void* data) {
    if (!current) return INVALID_CONTEXT;
    if (recording) return CAPTURING;  // in any thread
    const emulator::Image image(data);
    const int device = arch(current->device);
    const int of = image.arch();
    if (image.ptx) {
        if (!of || of > device) return INVALID_PTX;
    } else {
        if (!of) return INVALID_IMAGE;
        if (of / 10 != device / 10 || of > device) return NO_BINARY;
    }
    return *module = new Module{current, image}, OK;
}
DRIVER cuModuleGetFunction(void** function, void* module, const char* name) {
    Module* m = (Module*)module;
    if (m->context != current) return INVALID_CONTEXT;
    const emulator::Needs needs = m->image.of(name);
    if (!needs.found || !kernels().count(name)) return NOT_FOUND;
    return *function = new Function{current, kernels()[name], needs, name}, OK;
}
DRIVER cuFuncSetAttribute(void* function, int, int value) {
    Function* f = (Function*)function;
    if (value + (int)f->needs.shared > most_shared(f->context->device)) return INVALID_VALUE;
    return f->shared = value, OK;
}
DRIVER cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y, unsigned threads_z,
                      unsigned shared, void* stream, void** parameters, void**) {
    Function* f = (Function*)function;
    if (f->context != current) return INVALID_CONTEXT;
    if (!x || !y || y > 65535 || z != 1 || !threads || threads > 1024 || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    if (shared + f->needs.shared > f->shared || threads > f->needs.most_threads) return INVALID_VALUE;
    // by warps, whose registers come in portions of 256
    if ((threads + 31) / 32 * ((f->needs.registers * 32 + 255) / 256 * 256) > REGISTERS) return OUT_OF_RESOURCES;
    static std::mutex one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    launches++, last_stream = (u64)stream;
    trace(*f, threads, shared);
    const char* order = getenv("RQUANT_EMULATOR_ORDER");
    f->run(Grid{(int)x, (int)y, (int)threads, shared, order ? strtoull(order, nullptr, 10) : 0}, parameters);
    return OK;
}

// Memory, for tests that bring none of their own.
DRIVER cuMemAlloc_v2(u64* to, size_t size) { return *to = (u64)aligned_alloc(256, (size + 255) / 256 * 256), OK; }
DRIVER cuMemFree_v2(u64 at) { return free((void*)at), OK; }
DRIVER cuMemcpyHtoD_v2(u64 to, const void* from, size_t size) { return memcpy((void*)to, from, size), OK; }
DRIVER cuMemcpyDtoH_v2(void* to, u64 from, size_t size) { return memcpy(to, (const void*)from, size), OK; }
DRIVER cuCtxSynchronize() { return OK; }
DRIVER cuDriverGetVersion(int* version) { return *version = 0, OK; }
DRIVER cuDeviceGetName(char* to, int size, int) { return snprintf(to, size, "emulator"), OK; }

// For tests: launches, the last stream, phases of vector loads from shared memory, and bank conflicts of them.
extern "C" __attribute__((visibility("default"))) void rquant_emulator_state(u64* out) {
    out[0] = launches, out[1] = last_stream, out[2] = emulator::counts.phases, out[3] = emulator::counts.conflicts;
}
// For tests: the device of the current context, or -1.
extern "C" __attribute__((visibility("default"))) int rquant_emulator_current() { return current ? current->device : -1; }
// For tests: whether anybody has begun to use the driver.
extern "C" __attribute__((visibility("default"))) int rquant_emulator_initialized() { return initialized; }
// For tests: this stream records a graph from here on, and nothing can be loaded; 0 for none.
extern "C" __attribute__((visibility("default"))) void rquant_emulator_record(u64 stream) { recording = stream; }
