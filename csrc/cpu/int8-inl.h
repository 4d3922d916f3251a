// int8 weights times activations of 16 bits, in exact integer arithmetic.
//
// The activations' own rounding (2^-16 of the largest in a row) is far below that of the weights. Where the CPU has
// VNNI's products of bytes an activation is two digits of 8 bits; elsewhere it meets weights widened to 16 bits.
//
// Weights come packed: units in blocks of kUnitAlignment, in a block [K/4][G][units][4], zero beyond the last unit and
// the last k. One pointer streams a block, whatever the instruction set.
//
// Cost: a byte a weight, two products of bytes for four weights of a row: 45 GB/s a core from the second-level cache
// with one row, 32 multiply-adds a cycle with several, twice those of float32.
#pragma once

#include "gemm-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kQuad = 4;

inline int64_t quads_of(int64_t length) { return (length + kQuad - 1) / kQuad; }

// The packed form of one matrix: unit u of a gate begins at block(u) + gate * kUnitAlignment * kQuad.
struct Int8Matrix {
    const int8_t* data;
    const float* scales;  // [G*H]
    int64_t length, gates, hidden;

    int64_t stride() const { return gates * kUnitAlignment * kQuad; }  // from four k to the next
    const int8_t* at(int64_t gate, int64_t unit) const {
        const int64_t block = unit / kUnitAlignment, within = unit % kUnitAlignment;
        return data + block * quads_of(length) * stride() + (gate * kUnitAlignment + within) * kQuad;
    }
};

// A row of activations: scale * (256 * high + low), also as `wide`; zero beyond the length.
struct RoundedRow {
    float scale;
    int32_t high_sum, low_sum;
    const int8_t *high, *low;  // [4 quads]
    const int16_t* wide;       // [4 quads]

    static int64_t bytes(int64_t length) {
        return (static_cast<int64_t>(sizeof(RoundedRow)) + 63) / 64 * 64 + (length + 63) / 64 * 64 * 4;
    }
};

// Fills RoundedRow::bytes(length) bytes. A row that holds an infinity or NaN makes every product NaN.
FASTRNN_NOINLINE inline void round_row(const float* row, int64_t length, float* place) {
    RoundedRow* out = reinterpret_cast<RoundedRow*>(place);
    using V = Vec<float>;
    using Int = V::Mask;
    constexpr int kLanes = V::kLanes;
    typedef int16_t Values __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 2)));
    typedef int8_t Digits __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 4)));
    const auto load = [&](int64_t k) {
        return k + kLanes <= length ? V::load(row + k) : k < length ? load_partial(row + k, length - k) : V{0.0f};
    };
    V largest{0.0f}, finite{0.0f};
    for (int64_t k = 0; k < length; k += kLanes) {
        const V x = load(k);
        largest = select(absolute(x) > largest, absolute(x), largest);
        finite = fma(x, V{0.0f}, finite);
    }
    float most = 0, rest = 0;
    for (int i = 0; i < kLanes; ++i) {
        most = largest.raw[i] > most ? largest.raw[i] : most;
        rest += finite.raw[i];
    }
    constexpr float kLargest = 127 * 256 + 127;  // two digits of -128 .. 127
    out->scale = most / kLargest + rest;
    const V to_steps{most > 1e-30f && rest == 0 ? kLargest / most : 0.0f};  // next to nothing is nothing
    const V magic{12582912.0f};                                             // 1.5 * 2^23: sums end in an integer
    const int64_t padded = (length + 63) / 64 * 64;
    char* after = reinterpret_cast<char*>(out) + (sizeof(RoundedRow) + 63) / 64 * 64;
    int16_t* wide = reinterpret_cast<int16_t*>(after);
    int8_t *high = reinterpret_cast<int8_t*>(after + 2 * padded), *low = high + padded;
    Int high_sum{}, low_sum{};
    for (int64_t k = 0; k < padded; k += kLanes) {
        const V sum = fma(load(k), to_steps, magic);
        const Int value = reinterpret_cast<Int>(sum.raw) - reinterpret_cast<Int>(magic.raw);
        const Int upper = (value + 128) >> 8, lower = value - upper * 256;
        high_sum += upper;
        low_sum += lower;
        const Values values = __builtin_convertvector(value, Values);
        const Digits uppers = __builtin_convertvector(upper, Digits), lowers = __builtin_convertvector(lower, Digits);
        __builtin_memcpy(wide + k, &values, sizeof(values));
        __builtin_memcpy(high + k, &uppers, sizeof(uppers));
        __builtin_memcpy(low + k, &lowers, sizeof(lowers));
    }
    out->high_sum = out->low_sum = 0;
    for (int i = 0; i < kLanes; ++i) {
        out->high_sum += high_sum[i];
        out->low_sum += low_sum[i];
    }
    out->high = high;
    out->low = low;
    out->wide = wide;
}

#if defined(__AVX512BW__)
typedef __m512i WideBits;
FASTRNN_INLINE __m512i add_products(__m512i a, __m512i b) { return _mm512_madd_epi16(a, b); }
#elif defined(__AVX2__)
typedef __m256i WideBits;
FASTRNN_INLINE __m256i add_products(__m256i a, __m256i b) { return _mm256_madd_epi16(a, b); }
#endif

typedef int16_t Wide __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
// lane l: a[2l] * b[2l] + a[2l + 1] * b[2l + 1]
FASTRNN_INLINE Vec<float>::Mask multiply_pairs(Wide a, Wide b) {
#if defined(__AVX2__)
    return reinterpret_cast<Vec<float>::Mask>(
        add_products(reinterpret_cast<WideBits>(a), reinterpret_cast<WideBits>(b)));
#else
    Vec<float>::Mask sum{};
    for (int l = 0; l < Vec<float>::kLanes; ++l) sum[l] = a[2 * l] * b[2 * l] + a[2 * l + 1] * b[2 * l + 1];
    return sum;
#endif
}

FASTRNN_INLINE int64_t load_four(const int16_t* p) {
    int64_t four;
    __builtin_memcpy(&four, p, sizeof(four));
    return four;
}
FASTRNN_INLINE int32_t load_quad(const int8_t* p) {
    int32_t quad;
    __builtin_memcpy(&quad, p, sizeof(quad));
    return quad;
}

constexpr int kInt8Rows = 3;  // with four vectors of units, and two sums for each, these fill the registers

// sums[r][v] = the products of row r with the units at w[v], without any scale; rows <= Rows
template <int Rows, int Vectors>
FASTRNN_NOINLINE void multiply_wide_quads(const RoundedRow* const* a, const int8_t* const* w, int64_t stride,
                                          int64_t quads, Vec<float> (*sums)[4]) {
    using V = Vec<float>;
    using Int = V::Mask;
    constexpr int kLanes = V::kLanes;
    constexpr int64_t kChain = 128;  // both sums of a unit together, 4 * 127 * 32639 * 128, still fit 32 bits
    typedef int8_t Narrow __attribute__((vector_size(FASTRNN_VECTOR_BYTES / 2)));
    typedef int64_t Quads __attribute__((vector_size(FASTRNN_VECTOR_BYTES)));
    Int even, odd;  // lanes of the sums of k, k + 1 and of k + 2, k + 3 of each unit
    for (int l = 0; l < kLanes; ++l) {
        even[l] = 2 * l;
        odd[l] = 2 * l + 1;
    }
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) sums[r][v] = V{0.0f};
    }
    for (int64_t begin = 0; begin < quads; begin += kChain) {
        const int64_t end = quads - begin < kChain ? quads : begin + kChain;
        Int sum[Rows][Vectors][2];
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sum[r][v][0] = sum[r][v][1] = Int{};
        }
        for (int64_t k = begin; k < end; ++k) {
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) {
#pragma GCC unroll 2
                for (int half = 0; half < 2; ++half) {
                    Narrow bytes;
                    __builtin_memcpy(&bytes, w[v] + k * stride + half * static_cast<int64_t>(sizeof(Narrow)),
                                     sizeof(bytes));
                    const Wide weights = __builtin_convertvector(bytes, Wide);
#pragma GCC unroll 4
                    for (int r = 0; r < Rows; ++r) {
                        const int64_t four = load_four(a[r]->wide + k * kQuad);
                        sum[r][v][half] += multiply_pairs(weights, reinterpret_cast<Wide>(Quads{} + four));
                    }
                }
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) {
                const Int total = __builtin_shuffle(sum[r][v][0], sum[r][v][1], even) +
                                  __builtin_shuffle(sum[r][v][0], sum[r][v][1], odd);
                sums[r][v] = sums[r][v] + V{__builtin_convertvector(total, V::Raw)};
            }
        }
    }
}

#if defined(__AVX512BW__)
#define FASTRNN_VNNI __attribute__((target("avx512vnni")))
constexpr int64_t kVnniQuads = 1 << 14;  // 4 * 255 * 128 * 2^14 just fits 32 bits

FASTRNN_VNNI FASTRNN_INLINE Vec<float>::Mask add_byte_products(Vec<float>::Mask sum, __m512i w, __m512i a) {
    return reinterpret_cast<Vec<float>::Mask>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), w, a));
}

// the same from the two digits of a: the instruction takes weights without a sign, w + 128, so sums begin with
// -128 * (the sum of a)
template <int Rows, int Vectors>
FASTRNN_VNNI FASTRNN_NOINLINE void multiply_byte_quads(const RoundedRow* const* a, const int8_t* const* w,
                                                       int64_t stride, int64_t quads, Vec<float> (*sums)[4]) {
    using V = Vec<float>;
    using Int = V::Mask;
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    Int high[Rows][Vectors], low[Rows][Vectors];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            high[r][v] = Int{} - 128 * a[r]->high_sum;
            low[r][v] = Int{} - 128 * a[r]->low_sum;
        }
    }
    const int8_t *upper[Rows], *lower[Rows];
    for (int r = 0; r < Rows; ++r) {
        upper[r] = a[r]->high;
        lower[r] = a[r]->low;
    }
    for (int64_t k = 0; k < quads; ++k) {
        __m512i weights[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            __builtin_prefetch(w[v] + (k + 16) * stride, 0, 3);
            weights[v] = _mm512_xor_si512(_mm512_loadu_si512(w[v] + k * stride), sign);
        }
#pragma GCC unroll 4
        for (int r = 0; r < Rows; ++r) {
            const __m512i four_upper = _mm512_set1_epi32(load_quad(upper[r] + k * kQuad));
            const __m512i four_lower = _mm512_set1_epi32(load_quad(lower[r] + k * kQuad));
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) {
                high[r][v] = add_byte_products(high[r][v], weights[v], four_upper);
                low[r][v] = add_byte_products(low[r][v], weights[v], four_lower);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            sums[r][v] = fma(V{__builtin_convertvector(high[r][v], V::Raw)}, V{256.0f},
                             V{__builtin_convertvector(low[r][v], V::Raw)});
        }
    }
}
#endif

// Where the vectors of one product of int8 weights come from: units of several gates, or of one gate.
struct Int8Panel {
    const int8_t* weights[4];
    const float* scales[4];
    int64_t lanes[4];  // units that there are
    int vectors;
};

template <int Rows, int Vectors>
FASTRNN_INLINE void multiply_quads(const RoundedRow* const* a, const Int8Panel& panel, int64_t stride, int64_t quads,
                                   Vec<float> (*sums)[4]) {
#if defined(__AVX512BW__)
    if (quads <= kVnniQuads && __builtin_cpu_supports("avx512vnni")) {
        return multiply_byte_quads<Rows, Vectors>(a, panel.weights, stride, quads, sums);
    }
#endif
    multiply_wide_quads<Rows, Vectors>(a, panel.weights, stride, quads, sums);
}

template <int Rows>
FASTRNN_INLINE void multiply_quads(const RoundedRow* const* a, const Int8Panel& panel, int64_t stride, int64_t quads,
                                   Vec<float> (*sums)[4]) {
    switch (panel.vectors) {
        case 1: return multiply_quads<Rows, 1>(a, panel, stride, quads, sums);
        case 2: return multiply_quads<Rows, 2>(a, panel, stride, quads, sums);
        case 3: return multiply_quads<Rows, 3>(a, panel, stride, quads, sums);
        default: return multiply_quads<Rows, 4>(a, panel, stride, quads, sums);
    }
}

// c[r][v * vector_stride ..] = (bias or c) + a[r] w^T; the rows of a are RoundedRows
FASTRNN_NOINLINE inline void multiply_int8(const float* const* a, int64_t rows, const Int8Panel& panel,
                                           const Int8Matrix& w, float* const* c, int64_t vector_stride, Init init,
                                           const float* bias) {
    using V = Vec<float>;
    V sums[kInt8Rows][4], scales[4];
    for (int v = 0; v < panel.vectors; ++v) scales[v] = load_partial(panel.scales[v], panel.lanes[v]);
    for (int64_t first = 0; first < rows; first += kInt8Rows) {
        const int64_t count = rows - first < kInt8Rows ? rows - first : kInt8Rows;
        const RoundedRow* rounded[kInt8Rows];
        for (int64_t r = 0; r < count; ++r) rounded[r] = reinterpret_cast<const RoundedRow*>(a[first + r]);
        switch (count) {
            case 1: multiply_quads<1>(rounded, panel, w.stride(), quads_of(w.length), sums); break;
            case 2: multiply_quads<2>(rounded, panel, w.stride(), quads_of(w.length), sums); break;
            default: multiply_quads<3>(rounded, panel, w.stride(), quads_of(w.length), sums); break;
        }
        for (int64_t r = 0; r < count; ++r) {
            const V scale{rounded[r]->scale};
            for (int v = 0; v < panel.vectors; ++v) {
                float* at = c[first + r] + v * vector_stride;
                const V start = V::load(init == Init::bias ? bias + v * vector_stride : at);
                fma(sums[r][v] * scale, scales[v], start).store(at);
            }
        }
    }
}

}  // namespace
}  // namespace fastrnn
