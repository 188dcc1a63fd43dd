// A libnvrtc.so that compiles nothing: its "cubin" names the kernels of the source, which is what driver.cpp looks at.
// With it the emulator's tests neither need NVRTC nor wait for it.
#include <cstring>
#include <regex>
#include <string>

struct Program {
    std::string source, image, log = "emulated";
};

extern "C" {
int nvrtcVersion(int* major, int* minor) { return *major = 0, *minor = 0, 0; }
const char* nvrtcGetErrorString(int) { return "emulated error"; }
int nvrtcCreateProgram(Program** p, const char* source, const char*, int, const char* const*, const char* const*) {
    return *p = new Program{source, ""}, 0;
}
int nvrtcDestroyProgram(Program** p) { return delete *p, *p = nullptr, 0; }

int nvrtcCompileProgram(Program* p, int count, const char* const* options) {
    std::string variant;
    for (int i = 0; i < count; i++)
        if (!strncmp(options[i], "-DVARIANT=", 10)) variant = options[i] + 10;
    p->image.assign(64, '\0');
    memcpy(&p->image[0], "\x7f" "ELF", 4);
    p->image[18] = (char)190;
    const std::regex kernel("(?:KERNEL|LINEAR_\\w+)\\((\\w+),");
    for (std::sregex_iterator at(p->source.begin(), p->source.end(), kernel), end; at != end; ++at) {
        std::string name = (*at)[1];  // a macro's arguments are numbers of rows
        if (isdigit(name[0])) name = (p->source.find("linear_int8_tiled") == std::string::npos ? "linear_tiled" : "linear_int8_tiled") + name;
        p->image += ".text." + name + variant + '\0';
    }
    unsigned long long size = p->image.size();
    memcpy(&p->image[40], &size, 8);  // a table of no sections, at the end
    return 0;
}
int nvrtcGetCUBINSize(Program* p, size_t* size) { return *size = p->image.size(), 0; }
int nvrtcGetCUBIN(Program* p, char* to) { return memcpy(to, p->image.data(), p->image.size()), 0; }
int nvrtcGetProgramLogSize(Program* p, size_t* size) { return *size = p->log.size() + 1, 0; }
int nvrtcGetProgramLog(Program* p, char* to) { return memcpy(to, p->log.c_str(), p->log.size() + 1), 0; }
}
