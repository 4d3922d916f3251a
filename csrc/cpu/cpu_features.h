// What cpuid and the operating system say of the CPU that the compiler's own test does not know in all versions.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastrnn {

// Tiles that multiply bfloat16, and vectors that round to it. Linux keeps tiles for processes that ask for them alone;
// it may refuse, for one whose stacks of signal handlers are too small.
inline bool ask_for_bfloat16_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr unsigned kSystemKeepsState = 1u << 27, kBfloat16Tiles = 1u << 22, kTiles = 1u << 24, kRounding = 1u << 5;
    constexpr unsigned kTileState = 3u << 17;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSystemKeepsState)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBfloat16Tiles) || !(d & kTiles)) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kRounding)) return false;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & kTileState) != kTileState) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

// once a process
inline bool may_use_bfloat16_tiles() {
    static const bool may = ask_for_bfloat16_tiles();
    return may;
}

}  // namespace fastrnn
#endif
