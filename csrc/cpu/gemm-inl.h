// Matrix products as the engine needs them: a few rows of A times packed panels of B, added to rows of C that may
// lie anywhere.
//
// A panel is kVectors vectors of columns, packed [K][kVectors][lanes], so that one pointer streams it. The micro-kernel
// keeps rows x kVectors sums in registers; a sum is made of chains of fused multiply-adds of a fixed length in the
// order of k, whatever the number of rows. That makes a result independent of how rows and columns are spread over
// threads, and bounds its rounding error by the chain and not by the length of the sum.
//
// Cost: a row block reads its panel once, kVectors loads and `rows` broadcasts for rows * kVectors multiply-adds a k.
#pragma once

#include "stored-inl.h"

namespace fastrnn {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

// sums, one panel row and one broadcast must fit the registers
template <int Vectors>
constexpr int kMaxRows = (kVectorRegisters - 1 - (kVectorRegisters == 32 ? Vectors : 0)) / Vectors > 8
                             ? 8
                             : (kVectorRegisters - 1 - (kVectorRegisters == 32 ? Vectors : 0)) / Vectors;

enum class Init { zero, bias, accumulate };

constexpr int64_t kProductChain = 128;  // reading and writing c this often costs about two per cent

// The reduction dimension: `segments` runs of `length` values of A. Run s starts at s * segment_stride, and values are
// `step` apart. B's panel holds the runs one after another. At most `chain` products are added up before their sum
// joins c.
struct Reduction {
    int64_t segments, length, segment_stride, step;
    int64_t chain = kProductChain;
    int64_t row_step = 0;  // from row to row of a panel that lies in a matrix; 0: it is packed
};

// c[r][v * vector_stride ..] = (c, bias or 0) + sum over k in begin, begin + step .. end of a[r][k] * panel[..][v];
// c is added last. A vector a k is fetched from `ahead` into the second-level cache.
template <class T, int Rows, int Vectors>
FASTRNN_INLINE void multiply_block(const T* const* a, int64_t begin, int64_t end, int64_t step, const T* panel,
                                   int64_t row_step, const T* ahead, T* const* c, int64_t vector_stride, Init init,
                                   const T* bias) {
    using V = Vec<T>;
    constexpr int kLanes = V::kLanes;
    V sum[Rows][Vectors];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            sum[r][v] = init == Init::bias ? V::load(bias + v * vector_stride) : V{T(0)};
        }
    }
    for (int64_t k = begin; k != end; k += step, panel += row_step, ahead += kLanes) {
        if constexpr (Rows == kMaxRows<Vectors>) __builtin_prefetch(ahead, 0, 2);
        V b[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) b[v] = V::load(panel + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const V broadcast{a[r][k]};
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sum[r][v] = fma(broadcast, b[v], sum[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            T* at = c[r] + v * vector_stride;
            (init == Init::accumulate ? V::load(at) + sum[r][v] : sum[r][v]).store(at);
        }
    }
}

template <class T, int Rows, int Vectors>
FASTRNN_INLINE void multiply_chains(const T* const* a, const Reduction& reduction, const T* panel, const T* ahead,
                                    T* const* c, int64_t vector_stride, Init init, const T* bias) {
    const int64_t row_step = reduction.row_step ? reduction.row_step : Vectors * Vec<T>::kLanes;
    int64_t done = 0;
    for (int64_t s = 0; s < reduction.segments; ++s) {
        for (int64_t k = 0; k < reduction.length || done == 0; k += reduction.chain) {  // once even if there is no k
            const int64_t left = reduction.length - k, count = left < reduction.chain ? left : reduction.chain;
            const int64_t begin = s * reduction.segment_stride + k * reduction.step;
            multiply_block<T, Rows, Vectors>(a, begin, begin + count * reduction.step, reduction.step,
                                             panel + (s * reduction.length + k) * row_step, row_step,
                                             ahead + (s * reduction.length + k) * Vec<T>::kLanes, c, vector_stride,
                                             done++ == 0 ? init : Init::accumulate, bias);
        }
    }
}

template <class T, int Rows, int Vectors>
void multiply_few(const T* const* a, int64_t rows, const Reduction& reduction, const T* panel, const T* ahead,
                  T* const* c, int64_t vector_stride, Init init, const T* bias) {
    if (rows == Rows) {
        multiply_chains<T, Rows, Vectors>(a, reduction, panel, ahead, c, vector_stride, init, bias);
    } else if constexpr (Rows > 1) {
        multiply_few<T, Rows - 1, Vectors>(a, rows, reduction, panel, ahead, c, vector_stride, init, bias);
    }
}

// any number of rows against one panel of `Vectors` vectors
template <class T, int Vectors>
FASTRNN_NOINLINE void multiply_rows(const T* const* a, int64_t rows, const Reduction& reduction, const T* panel,
                                    T* const* c, int64_t vector_stride, Init init, const T* bias) {
    constexpr int kBlock = kMaxRows<Vectors>;
    const int64_t depth = reduction.segments * reduction.length * Vec<T>::kLanes;
    // the first blocks of many fetch the next panel, which would else be waited for: 3 to 5 per cent where weights are
    // further away than the second-level cache
    const bool fetches = rows >= Vectors * kBlock;
    // blocks of equal height instead of a low last one lost up to 5 per cent; a chain at a time for all blocks, or c
    // fetched beforehand, brought nothing
    for (int64_t r = 0, block = 0; r < rows; r += kBlock, ++block) {
        const T* ahead = panel + (fetches && block < Vectors ? Vectors + block : 0) * depth;
        multiply_few<T, kBlock, Vectors>(a + r, rows - r < kBlock ? rows - r : kBlock, reduction, panel, ahead, c + r,
                                         vector_stride, init, bias);
    }
}

template <class T>
void multiply_panel(int vectors, const T* const* a, int64_t rows, const Reduction& reduction, const T* panel,
                    T* const* c, int64_t vector_stride, Init init, const T* bias) {
    switch (vectors) {
        case 1: return multiply_rows<T, 1>(a, rows, reduction, panel, c, vector_stride, init, bias);
        case 2: return multiply_rows<T, 2>(a, rows, reduction, panel, c, vector_stride, init, bias);
        case 3: return multiply_rows<T, 3>(a, rows, reduction, panel, c, vector_stride, init, bias);
        default: return multiply_rows<T, 4>(a, rows, reduction, panel, c, vector_stride, init, bias);
    }
}

// Packs one vector of a panel from B^T: out[k * out_stride + l] = w[l * row_stride + k] for l < columns, else 0.
template <class T, class W>
FASTRNN_NOINLINE void pack_transposed(const W* w, int64_t row_stride, int64_t columns, int64_t length, T* out,
                                      int64_t out_stride) {
    using V = Vec<T>;
    constexpr int kLanes = V::kLanes;
    for (int64_t k = 0; k < length; k += kLanes) {
        const int64_t depth = length - k < kLanes ? length - k : kLanes;
        V block[kLanes];
        for (int l = 0; l < kLanes; ++l) {
            const W* row = w + l * row_stride + k;
            block[l] = l >= columns ? V{T(0)} : depth == kLanes ? load_stored(row) : load_stored(row, depth);
        }
        transpose(block);
        for (int64_t i = 0; i < depth; ++i) block[i].store(out + (k + i) * out_stride);
    }
}

// Packs one panel row of B as it lies: `vectors` vectors of row[0 .. columns), zero beyond.
template <class T>
FASTRNN_NOINLINE void pack_row(const T* row, int64_t columns, int vectors, T* out) {
    using V = Vec<T>;
    constexpr int kLanes = V::kLanes;
    for (int v = 0; v < vectors; ++v) {
        const int64_t left = columns - v * kLanes;
        (left >= kLanes ? V::load(row + v * kLanes)
         : left > 0     ? load_partial(row + v * kLanes, left)
                        : V{T(0)})
            .store(out + v * kLanes);
    }
}

// out[0 .. Count) = the vectors of a[k] * w[v * row_stride + k], v < Count, added up over k to one vector each, in
// `Unroll` chains; rows beyond `rows` repeat the last.
template <class T, int Count, int Unroll>
FASTRNN_INLINE void multiply_rows_of(const T* a, const T* w, int64_t row_stride, int64_t rows, int64_t length,
                                     Vec<T>* out) {
    using V = Vec<T>;
    constexpr int kLanes = V::kLanes;
    V sum[Count][Unroll];
    const T* row[Count];
#pragma GCC unroll 16
    for (int l = 0; l < Count; ++l) {
        row[l] = w + (l < rows ? l : rows - 1) * row_stride;
#pragma GCC unroll 2
        for (int i = 0; i < Unroll; ++i) sum[l][i] = V{T(0)};
    }
    int64_t k = 0;
    for (; k + Unroll * kLanes <= length; k += Unroll * kLanes) {
        V x[Unroll];
#pragma GCC unroll 2
        for (int i = 0; i < Unroll; ++i) x[i] = V::load(a + k + i * kLanes);
#pragma GCC unroll 16
        for (int l = 0; l < Count; ++l) {
#pragma GCC unroll 2
            for (int i = 0; i < Unroll; ++i) sum[l][i] = fma(V::load(row[l] + k + i * kLanes), x[i], sum[l][i]);
        }
    }
    for (; k < length; k += kLanes) {
        const int64_t count = length - k < kLanes ? length - k : kLanes;
        const V x = load_partial(a + k, count);
#pragma GCC unroll 16
        for (int l = 0; l < Count; ++l) sum[l][0] = fma(load_partial(row[l] + k, count), x, sum[l][0]);
    }
#pragma GCC unroll 16
    for (int l = 0; l < Count; ++l) {
        out[l] = sum[l][0];
        if constexpr (Unroll == 2) out[l] = out[l] + sum[l][1];
    }
}

// The product with weights as torch keeps them, for so few rows that packing would cost more than it saves:
// c[v] += sum over k of a[k] * w[v * row_stride + k] for one vector of rows of w; rows beyond `rows` repeat the last.
// Long rows are met eight at a time, two vectors of each: 16 at a time read 30 per cent slower from the third-level
// cache, four at a time 20 per cent slower from memory.
template <class T>
FASTRNN_NOINLINE Vec<T> multiply_unpacked(const T* a, const T* w, int64_t row_stride, int64_t rows, int64_t length) {
    constexpr int kLanes = Vec<T>::kLanes, kFew = kLanes < kVectorRegisters / 4 ? kLanes : kVectorRegisters / 4;
    Vec<T> total[kLanes];
    if (length < 512) {
        multiply_rows_of<T, kLanes, 1>(a, w, row_stride, rows, length, total);
    } else {
        for (int l = 0; l < kLanes; l += kFew) {
            // rows - l may be negative: all of the group then repeats row `rows - 1`
            multiply_rows_of<T, kFew, 2>(a, w + l * row_stride, row_stride, rows - l, length, total + l);
        }
    }
    return sum_lanes(total);
}

}  // namespace
}  // namespace fastrnn
