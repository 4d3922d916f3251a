// One vector type for every instruction set: FASTRNN_VECTOR_BYTES (set by each target file) wide, built on the
// compiler's vector extension. Only what the extension cannot say (fused multiply-add, partial loads and stores)
// is written for each instruction set.
//
// Everything here has internal linkage: a target's code must never be picked for another target's callers.
#pragma once

#include <cstdint>

#if defined(__clang__) || !defined(__GNUC__)
#error "the CPU kernels use GCC's vector extension (__builtin_shuffle): compile them with g++ 10 or newer"
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../cells/inline.h"

namespace fastrnn {
namespace {

// the compiler's own vector types, and masks of 0 or -1 in each lane
template <class T>
struct RawVec;
template <>
struct RawVec<float> {
    typedef int32_t Int;
    typedef float Raw __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
    typedef int32_t Mask __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
    typedef uint32_t Bits __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
};
template <>
struct RawVec<double> {
    typedef int64_t Int;
    typedef double Raw __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
    typedef int64_t Mask __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
    typedef uint64_t Bits __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
};

template <class T>
struct Vec {
    using Scalar = T;
    using Int = typename RawVec<T>::Int;
    using Raw = typename RawVec<T>::Raw;
    using Mask = typename RawVec<T>::Mask;
    using Bits = typename RawVec<T>::Bits;  // unsigned, for arithmetic that wraps
    static constexpr int kLanes = FASTRNN_VECTOR_BYTES / sizeof(T);

    Raw raw;

    Vec() = default;
    FASTRNN_INLINE Vec(Raw r) : raw(r) {}
    FASTRNN_INLINE explicit Vec(T value) : raw(value - Raw{}) {}

    static FASTRNN_INLINE Vec load(const T* p) {
        Vec v;
        __builtin_memcpy(&v.raw, p, sizeof(Raw));
        return v;
    }
    FASTRNN_INLINE void store(T* p) const { __builtin_memcpy(p, &raw, sizeof(Raw)); }

    friend FASTRNN_INLINE Vec operator+(Vec a, Vec b) { return a.raw + b.raw; }
    friend FASTRNN_INLINE Vec operator-(Vec a, Vec b) { return a.raw - b.raw; }
    friend FASTRNN_INLINE Vec operator*(Vec a, Vec b) { return a.raw * b.raw; }
    friend FASTRNN_INLINE Vec operator/(Vec a, Vec b) { return a.raw / b.raw; }
    friend FASTRNN_INLINE Mask operator<(Vec a, Vec b) { return a.raw < b.raw; }
    friend FASTRNN_INLINE Mask operator>(Vec a, Vec b) { return a.raw > b.raw; }
    friend FASTRNN_INLINE Mask operator<=(Vec a, Vec b) { return a.raw <= b.raw; }
    friend FASTRNN_INLINE Mask operator>=(Vec a, Vec b) { return a.raw >= b.raw; }
};

template <class T>
FASTRNN_INLINE Vec<T> select(typename Vec<T>::Mask mask, Vec<T> yes, Vec<T> no) {
    return mask ? yes.raw : no.raw;
}

template <class T>
FASTRNN_INLINE Vec<T> absolute(Vec<T> x) {
    using Mask = typename Vec<T>::Mask;
    constexpr auto kMagnitude = static_cast<typename Vec<T>::Int>(~0ull >> (65 - 8 * sizeof(T)));
    return reinterpret_cast<typename Vec<T>::Raw>(reinterpret_cast<Mask>(x.raw) & kMagnitude);
}

// `size`, which is not negative, with the sign of `sign`
template <class T>
FASTRNN_INLINE Vec<T> with_sign(Vec<T> size, Vec<T> sign) {
    using Mask = typename Vec<T>::Mask;
    constexpr auto kSign = static_cast<typename Vec<T>::Int>(1ull << (8 * sizeof(T) - 1));
    return reinterpret_cast<typename Vec<T>::Raw>(reinterpret_cast<Mask>(size.raw) |
                                                  (reinterpret_cast<Mask>(sign.raw) & kSign));
}

// a < b ? a : b and a > b ? a : b, which is b where one is NaN: one instruction of x86 that the compiler does not find.
// The full mask keeps g++ 12 from a false warning.
#if defined(__AVX512F__)
FASTRNN_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) { return _mm512_maskz_min_ps(0xffff, a.raw, b.raw); }
FASTRNN_INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) { return _mm512_maskz_min_pd(0xff, a.raw, b.raw); }
FASTRNN_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm512_maskz_max_ps(0xffff, a.raw, b.raw); }
FASTRNN_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm512_maskz_max_pd(0xff, a.raw, b.raw); }
#elif defined(__AVX2__)
FASTRNN_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a.raw, b.raw); }
FASTRNN_INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) { return _mm256_min_pd(a.raw, b.raw); }
FASTRNN_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a.raw, b.raw); }
FASTRNN_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a.raw, b.raw); }
#elif defined(__SSE2__)
FASTRNN_INLINE Vec<float> smaller(Vec<float> a, Vec<float> b) { return _mm_min_ps(a.raw, b.raw); }
FASTRNN_INLINE Vec<double> smaller(Vec<double> a, Vec<double> b) { return _mm_min_pd(a.raw, b.raw); }
FASTRNN_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm_max_ps(a.raw, b.raw); }
FASTRNN_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm_max_pd(a.raw, b.raw); }
#else
template <class T>
FASTRNN_INLINE Vec<T> smaller(Vec<T> a, Vec<T> b) {
    return select(a < b, a, b);
}
template <class T>
FASTRNN_INLINE Vec<T> larger(Vec<T> a, Vec<T> b) {
    return select(a > b, a, b);
}
#endif

#if defined(__AVX512F__)
FASTRNN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a.raw, b.raw, c.raw); }
FASTRNN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
    return _mm512_fmadd_pd(a.raw, b.raw, c.raw);
}
// the first `lanes` lanes (0..kLanes) from memory, zero beyond
FASTRNN_INLINE Vec<float> load_partial(const float* p, int64_t lanes) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), p);
}
FASTRNN_INLINE Vec<double> load_partial(const double* p, int64_t lanes) {
    return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << lanes) - 1), p);
}
FASTRNN_INLINE void store_partial(Vec<float> v, float* p, int64_t lanes) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << lanes) - 1), v.raw);
}
FASTRNN_INLINE void store_partial(Vec<double> v, double* p, int64_t lanes) {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << lanes) - 1), v.raw);
}
#else
#if defined(__AVX2__)
FASTRNN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a.raw, b.raw, c.raw); }
FASTRNN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
    return _mm256_fmadd_pd(a.raw, b.raw, c.raw);
}
#else
// two roundings where the baseline has no fused instruction
template <class T>
FASTRNN_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
    return a * b + c;
}
#endif
template <class T>
FASTRNN_INLINE Vec<T> load_partial(const T* p, int64_t lanes) {
    Vec<T> v{T(0)};
    for (int64_t i = 0; i < lanes; ++i) v.raw[i] = p[i];
    return v;
}
template <class T>
FASTRNN_INLINE void store_partial(Vec<T> v, T* p, int64_t lanes) {
    for (int64_t i = 0; i < lanes; ++i) p[i] = v.raw[i];
}
#endif

// Lanes l of blocks of 2 * Half lanes: the first half from a, the second from b; `offset` 0 takes the lower half
// of each source block, Half the upper one.
template <int Half, class T>
FASTRNN_INLINE Vec<T> interleave_halves(Vec<T> a, Vec<T> b, int offset) {
    constexpr int kLanes = Vec<T>::kLanes;
    typename Vec<T>::Mask index;
    for (int l = 0; l < kLanes; ++l) {
        const int within = l % (2 * Half);
        index[l] = within < Half ? l + offset : kLanes + l - Half + offset;
    }
    return __builtin_shuffle(a.raw, b.raw, index);
}

// v becomes its transpose: lane l of vector i moves to lane i of vector l
template <int Half, class T>
FASTRNN_INLINE void transpose_stage(Vec<T>* v) {
    constexpr int kLanes = Vec<T>::kLanes;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
        if (i & Half) continue;
        const Vec<T> low = interleave_halves<Half>(v[i], v[i + Half], 0);
        v[i + Half] = interleave_halves<Half>(v[i], v[i + Half], Half);
        v[i] = low;
    }
    if constexpr (Half > 1) transpose_stage<Half / 2>(v);
}

template <class T>
FASTRNN_INLINE void transpose(Vec<T>* v) {
    transpose_stage<Vec<T>::kLanes / 2>(v);
}

// one vector whose lane i is the sum of all lanes of v[i]
template <int Half, class T>
FASTRNN_INLINE void sum_stage(Vec<T>* v) {
#pragma GCC unroll 16
    for (int i = 0; i < Half; ++i) {
        v[i] = interleave_halves<Half>(v[i], v[i + Half], 0) + interleave_halves<Half>(v[i], v[i + Half], Half);
    }
    if constexpr (Half > 1) sum_stage<Half / 2>(v);
}

template <class T>
FASTRNN_INLINE Vec<T> sum_lanes(Vec<T>* v) {
    sum_stage<Vec<T>::kLanes / 2>(v);
    return v[0];
}

}  // namespace
}  // namespace fastrnn
