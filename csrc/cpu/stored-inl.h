// Matrices of weights that are stored in bfloat16: widened while they are packed, or while they are read as they lie.
#pragma once

#include "vec.h"

namespace fastrnn {
namespace {

struct Bfloat16 {
    uint16_t bits;
};

// -- a vector of stored values, widened -------------------------------------------------------------------------------

template <class T>
FASTRNN_INLINE Vec<T> load_stored(const T* p) {
    return Vec<T>::load(p);
}
template <class T>
FASTRNN_INLINE Vec<T> load_stored(const T* p, int64_t count) {
    return load_partial(p, count);
}

typedef uint16_t HalfBits __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 2)));
FASTRNN_INLINE Vec<float> load_stored(const Bfloat16* p, int64_t count = Vec<float>::kLanes) {
    HalfBits v{};
    __builtin_memcpy(&v, p, static_cast<size_t>(count) * sizeof(Bfloat16));
    return reinterpret_cast<Vec<float>::Raw>(__builtin_convertvector(v, Vec<float>::Bits) << 16);
}

// -- bfloat16 as it lies ----------------------------------------------------------------------------------------------

// 2 * kLanes weights are one load, whose even values are a shift away and whose odd ones a mask: so they meet a row of
// a that has each 2 * kLanes values in that order, zero up to a whole number of them. Widening by the instruction made
// for it took 2.5 times as long.
constexpr int64_t kBfloat16Vector = 2 * Vec<float>::kLanes;

inline int64_t split_size(int64_t length) { return (length + kBfloat16Vector - 1) / kBfloat16Vector * kBfloat16Vector; }

template <class W>
FASTRNN_NOINLINE void split_row(const W* row, int64_t length, float* out) {
    using V = Vec<float>;
    V::Mask even, odd;
    for (int l = 0; l < V::kLanes; ++l) {
        even[l] = 2 * l;
        odd[l] = 2 * l + 1;
    }
    const auto load = [&](int64_t k) {
        return k + V::kLanes <= length ? load_stored(row + k) : k < length ? load_stored(row + k, length - k) : V{0.0f};
    };
    for (int64_t k = 0; k < length; k += kBfloat16Vector) {
        const V first = load(k), second = load(k + V::kLanes);
        V{__builtin_shuffle(first.raw, second.raw, even)}.store(out + k);
        V{__builtin_shuffle(first.raw, second.raw, odd)}.store(out + k + V::kLanes);
    }
}

FASTRNN_INLINE Vec<float>::Bits load_pairs(const Bfloat16* p) {
    return reinterpret_cast<Vec<float>::Bits>(Vec<float>::load(reinterpret_cast<const float*>(p)).raw);
}
FASTRNN_INLINE Vec<float>::Bits load_pairs(const Bfloat16* p, int64_t count) {
#if defined(__AVX512BW__)
    return reinterpret_cast<Vec<float>::Bits>(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << count) - 1), p));
#else
    Vec<float>::Bits pairs{};
    __builtin_memcpy(&pairs, p, static_cast<size_t>(count) * sizeof(Bfloat16));
    return pairs;
#endif
}

template <int Count>
FASTRNN_INLINE void multiply_split_rows(const float* a, const Bfloat16* w, int64_t row_stride, int64_t rows,
                                        int64_t length, Vec<float>* out) {
    using V = Vec<float>;
    const Bfloat16* row[Count];
#pragma GCC unroll 16
    for (int l = 0; l < Count; ++l) {
        row[l] = w + (l < rows ? l : rows - 1) * row_stride;
        out[l] = V{0.0f};
    }
    V sum[Count];
#pragma GCC unroll 16
    for (int l = 0; l < Count; ++l) sum[l] = V{0.0f};
    const auto add = [&](int64_t k, int l, V::Bits pairs) {
        sum[l] = fma(V{reinterpret_cast<V::Raw>(pairs << 16)}, V::load(a + k), sum[l]);
        sum[l] = fma(V{reinterpret_cast<V::Raw>(pairs & 0xffff0000u)}, V::load(a + k + V::kLanes), sum[l]);
    };
    int64_t k = 0;
    for (; k + kBfloat16Vector <= length; k += kBfloat16Vector) {
#pragma GCC unroll 16
        for (int l = 0; l < Count; ++l) add(k, l, load_pairs(row[l] + k));
    }
    if (k < length) {
#pragma GCC unroll 16
        for (int l = 0; l < Count; ++l) add(k, l, load_pairs(row[l] + k, length - k));
    }
#pragma GCC unroll 16
    for (int l = 0; l < Count; ++l) out[l] = sum[l];
}

// The sums over k of a[k] * w[l * row_stride + k] for one vector of rows of w, a split; rows beyond `rows` repeat the
// last.
FASTRNN_NOINLINE inline Vec<float> multiply_unpacked(const float* a, const Bfloat16* w, int64_t row_stride,
                                                     int64_t rows, int64_t length) {
    constexpr int kLanes = Vec<float>::kLanes, kFew = kLanes < 8 ? kLanes : 8;
    Vec<float> total[kLanes];
    for (int l = 0; l < kLanes; l += kFew) {
        multiply_split_rows<kFew>(a, w + l * row_stride, row_stride, rows - l, length, total + l);
    }
    return sum_lanes(total);
}

}  // namespace
}  // namespace fastrnn
