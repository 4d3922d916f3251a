// The types that tensors are stored in, and the type that each is computed in. Half-precision values are widened when
// they are read and rounded once, to nearest even, when they are written.
#pragma once

#include <cstdint>

#include "../cells/inline.h"

namespace fastrnn {

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

namespace {

template <class X>
struct Computed {
    using type = float;
};
template <>
struct Computed<double> {
    using type = double;
};
template <class X>
using Wide = typename Computed<X>::type;

FASTRNN_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return bits;
}
FASTRNN_INLINE float from_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    return value;
}

FASTRNN_INLINE float widen(float value) { return value; }
FASTRNN_INLINE double widen(double value) { return value; }
FASTRNN_INLINE float widen(bfloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }
FASTRNN_INLINE float widen(float16 value) {
#if defined(__CUDA_ARCH__)
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
#else
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
    const uint32_t rest = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
    if ((value.bits & 0x7c00) == 0x7c00) return from_bits(sign | 0x7f800000 | rest);  // infinite or NaN
    // the exponent's bias differs by 112; the product also brings subnormal values to their place
    const float magnitude = from_bits(rest) * 0x1p112f;
    return from_bits(sign | bits_of(magnitude));
#endif
}

template <class X>
struct Narrow {
    static FASTRNN_INLINE X of(X value) { return value; }
};
template <>
struct Narrow<bfloat16> {
    static FASTRNN_INLINE bfloat16 of(float value) {
        bfloat16 narrow;
#if defined(__CUDA_ARCH__)
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
#else
        const uint32_t bits = bits_of(value);
        const bool nan = (bits & 0x7fffffff) > 0x7f800000;
        narrow.bits = static_cast<uint16_t>(nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
#endif
        return narrow;
    }
};
template <>
struct Narrow<float16> {
    static FASTRNN_INLINE float16 of(float value) {
        float16 narrow;
#if defined(__CUDA_ARCH__)
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
#else
        const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
        uint32_t rest;
        if (size > 0x7f800000) {
            rest = 0x7fff;
        } else if (size >= 0x477ff000) {
            rest = 0x7c00;  // rounds beyond the largest finite value
        } else if (size < 0x38800000) {
            rest = bits_of(from_bits(size) + 0.5f) - 0x3f000000;  // subnormal: the sum rounds at 2^-24
        } else {
            rest = (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13;
        }
        narrow.bits = static_cast<uint16_t>(sign | rest);
#endif
        return narrow;
    }
};

template <class X>
FASTRNN_INLINE X narrow(Wide<X> value) {
    return Narrow<X>::of(value);
}

}  // namespace
}  // namespace fastrnn
