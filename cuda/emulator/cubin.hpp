// What the driver reads in an image: the architecture it is for, and what a kernel of it needs.
// Cubins are ELF; `.nv.info` has attributes of kernels by symbol, `.nv.info.NAME` those of one.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

namespace emulator {

struct Needs {
    bool found = false;
    unsigned registers = 0, shared = 0, most_threads = 1024;
};

class Image {
public:
    const bool ptx;

    explicit Image(const void* image) : ptx(memcmp(image, "\x7f" "ELF", 4) != 0) {
        if (ptx) bytes = (const char*)image;
        else bytes.assign((const char*)image, at<uint64_t>((const char*)image + 40) + (uint64_t)at<uint16_t>((const char*)image + 58) * at<uint16_t>((const char*)image + 60));
    }

    // As 90; 0 if this is no image at all.
    int arch() const {
        if (ptx) {
            const size_t target = bytes.find(".target sm_");
            return bytes.find(".version") == std::string::npos || target == std::string::npos ? 0 : atoi(&bytes[target + 11]);
        }
        if (at<uint16_t>(18) != 190) return 0;
        const uint32_t flags = at<uint32_t>(48);
        return (uint8_t)bytes[8] <= 7 ? flags & 0xff : flags >> 8 & 0xff;  // by the version of the ABI
    }

    Needs of(const std::string& kernel) const {
        Needs needs;
        if (ptx) return needs.found = bytes.find(".entry " + kernel + "(") != std::string::npos, needs;
        uint32_t symbols = 0, text = 0;
        for (uint32_t i = 0; i < sections(); i++) {
            if (type(i) == 2) symbols = i;
            if (name(i) == ".text." + kernel) text = i, needs.found = true;
            if (name(i) == ".nv.shared." + kernel) needs.shared = (unsigned)size(i);
        }
        if (arch() >= 90 && needs.shared >= 1024) needs.shared -= 1024;  // CUDA's own, which limits leave out
        for (uint32_t i = 0; needs.found && i < sections(); i++) {
            if (name(i) != ".nv.info" && name(i) != ".nv.info." + kernel) continue;
            for (uint64_t p = offset(i), end = p + size(i); p + 4 <= end;) {
                const uint8_t format = bytes[p], attribute = bytes[p + 1];
                const uint16_t length = format == 4 ? at<uint16_t>(p + 2) : 0;
                if (attribute == 0x2f && section_of(symbols, at<uint32_t>(p + 4)) == text) needs.registers = at<uint32_t>(p + 8);
                if (attribute == 0x05) needs.most_threads = at<uint32_t>(p + 4);
                p += 4 + length;
            }
        }
        return needs;
    }

private:
    std::string bytes;

    template <class T> static T at(const char* p) { T value; memcpy(&value, p, sizeof value); return value; }
    template <class T> T at(uint64_t p) const { return p + sizeof(T) <= bytes.size() ? at<T>(&bytes[p]) : T(); }
    uint32_t sections() const { return at<uint16_t>(60); }
    uint64_t header(uint32_t i) const { return at<uint64_t>(40) + 64ull * i; }
    uint32_t type(uint32_t i) const { return at<uint32_t>(header(i) + 4); }
    uint64_t offset(uint32_t i) const { return at<uint64_t>(header(i) + 24); }
    uint64_t size(uint32_t i) const { return at<uint64_t>(header(i) + 32); }
    std::string name(uint32_t i) const { return &bytes[offset(at<uint16_t>(62)) + at<uint32_t>(header(i))]; }
    uint32_t section_of(uint32_t symbols, uint32_t symbol) const { return at<uint16_t>(offset(symbols) + 24ull * symbol + 6); }
};

}  // namespace emulator
