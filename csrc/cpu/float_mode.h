// How a thread rounds and whether it flushes denormals: a register of its own, which a new thread inherits once.
#pragma once

#if !defined(__x86_64__)
#include <fenv.h>
#endif

#include "../cells/inline.h"

namespace fastrnn {
namespace {

#if defined(__x86_64__)
using FloatMode = unsigned;  // fegetenv and fesetenv, which bring the x87 unit's mode too, take 100 ns each

FASTRNN_INLINE FloatMode float_mode() { return __builtin_ia32_stmxcsr(); }
FASTRNN_INLINE void set_float_mode(FloatMode mode) {
    __asm__ volatile("" ::: "memory");
    __builtin_ia32_ldmxcsr(mode);
    __asm__ volatile("" ::: "memory");
}
#else
using FloatMode = fenv_t;

inline FloatMode float_mode() {
    FloatMode mode;
    fegetenv(&mode);
    return mode;
}
inline void set_float_mode(const FloatMode& mode) { fesetenv(&mode); }
#endif

}  // namespace
}  // namespace fastrnn
