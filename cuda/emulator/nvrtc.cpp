// A libnvrtc.so that compiles nothing: its image names the kernels of the file, which is what driver.cpp looks at.
// With it the emulator's tests neither need NVRTC nor wait for it. RQUANT_EMULATOR_COMPILER is "fails" or "slow" for one that
// does, RQUANT_EMULATOR_KNOWN the architectures it has machine code for, RQUANT_EMULATOR_MINOR the minor of its version, 0.
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

struct Program {
    std::string file, image, log;
};

namespace {

enum Result { OK = 0, INVALID_INPUT = 3, COMPILATION = 6 };
std::atomic<int> compilations;

bool is(const char* what) {
    const char* given = getenv("RQUANT_EMULATOR_COMPILER");
    return given && !strcmp(given, what);
}

std::vector<int> known() {
    const char* given = getenv("RQUANT_EMULATOR_KNOWN");
    std::string list = given ? given : "75,80,86,87,89,90,100,120";
    std::vector<int> all;
    for (const char* p = list.c_str(); *p; p += strcspn(p, ","), p += *p == ',') all.push_back(atoi(p));
    return all;
}

// What tests/cuda_emulator.py knows of the sources: file and kernel, without the variant.
const std::pair<const char*, const char*> KERNELS_OF_FILES[] = {KERNELS};

std::vector<std::string> kernels(const std::string& file) {
    std::vector<std::string> names;
    for (auto& [of, kernel] : KERNELS_OF_FILES)
        if (of == file) names.push_back(kernel);
    return names;
}

// An ELF file of names of sections alone: none, then one for each kernel.
std::string cubin(const std::vector<std::string>& names, int arch) {
    std::string texts(1, '\0'), headers(64, '\0');
    auto put = [](std::string& to, size_t at, uint64_t value, int bytes) { memcpy(&to[at], &value, bytes); };
    for (const std::string& name : names) {
        headers.append(64, '\0');
        put(headers, headers.size() - 64, texts.size(), 4);
        texts += ".text." + name + '\0';
    }
    put(headers, 24, 64, 8), put(headers, 32, texts.size(), 8);
    std::string image(64, '\0');
    memcpy(&image[0], "\x7f" "ELF", 4);
    put(image, 8, 8, 1), put(image, 18, 190, 2), put(image, 40, 64 + texts.size(), 8), put(image, 48, arch << 8, 4);
    put(image, 58, 64, 2), put(image, 60, names.size() + 1, 2);
    return image + texts + headers;
}

}  // namespace

extern "C" {
int nvrtcVersion(int* major, int* minor) {
    const char* given = getenv("RQUANT_EMULATOR_MINOR");
    return *major = 0, *minor = given ? atoi(given) : 0, OK;
}
const char* nvrtcGetErrorString(int code) { return code == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "emulated error"; }
int nvrtcGetNumSupportedArchs(int* count) { return *count = (int)known().size(), OK; }
int nvrtcGetSupportedArchs(int* to) {
    for (int arch : known()) *to++ = arch;
    return OK;
}
int nvrtcCreateProgram(Program** p, const char*, const char* file, int, const char* const*, const char* const*) {
    return *p = new Program{file, "", "emulated"}, OK;
}
int nvrtcDestroyProgram(Program** p) { return delete *p, *p = nullptr, OK; }

int nvrtcCompileProgram(Program* p, int count, const char* const* options) {
    std::string variant, arch;
    for (int i = 0; i < count; i++) {
        if (!strncmp(options[i], "-DVARIANT=", 10)) variant = options[i] + 10;
        if (!strncmp(options[i], "--gpu-architecture=", 19)) arch = options[i] + 19;
    }
    compilations++;
    if (is("slow")) usleep(500000);
    if (is("fails")) return p->log = "line 7: error: an emulated mistake", COMPILATION;
    std::vector<std::string> names = kernels(p->file);
    for (std::string& name : names) name += variant;
    if (!arch.compare(0, 8, "compute_")) {
        p->image = ".version 8.0\n.target sm_" + arch.substr(8) + "\n";
        for (const std::string& name : names) p->image += ".visible .entry " + name + "() { ret; }\n";
        p->image += '\0';
    } else {
        p->image = cubin(names, atoi(arch.c_str() + 3));
    }
    return OK;
}
int nvrtcGetCUBINSize(Program* p, size_t* size) { return *size = p->image.size(), OK; }
int nvrtcGetCUBIN(Program* p, char* to) { return memcpy(to, p->image.data(), p->image.size()), OK; }
int nvrtcGetPTXSize(Program* p, size_t* size) { return nvrtcGetCUBINSize(p, size); }
int nvrtcGetPTX(Program* p, char* to) { return nvrtcGetCUBIN(p, to); }
int nvrtcGetProgramLogSize(Program* p, size_t* size) { return *size = p->log.size() + 1, OK; }
int nvrtcGetProgramLog(Program* p, char* to) { return memcpy(to, p->log.c_str(), p->log.size() + 1), OK; }

// For tests: how often something was compiled in this process.
int rquant_emulator_compilations() { return compilations; }
}
