// The product of many rows with weights as they lie, for so few steps that packing the weights would cost more than it
// saves: rows side by side in the lanes of a vector meet one weight after another. Instead of the weights the rows are
// transposed, of which there are fewer, and the results.
//
// Sums are made in the chains of gemm-inl.h, so that the result is that of packed weights, bit for bit.
#pragma once

#include "panels-inl.h"

namespace fastrnn {
namespace {

constexpr int kRowVectors = kVectorRegisters == 32 ? 4 : 2;  // of rows that meet a weight at once

// vectors of rows in the group that begins at a row, when `rows` are left
template <class T>
int row_vectors(int64_t rows) {
    const int64_t vectors = (rows + Vec<T>::kLanes - 1) / Vec<T>::kLanes;
    return static_cast<int>(vectors < kRowVectors ? vectors : kRowVectors);
}

// rows in groups of kRowVectors vectors or fewer, a group [length][vectors][lanes], zero beyond the last row
template <class T>
FASTRNN_NOINLINE void put_in_lanes(const T* const* rows, int64_t count, int64_t length, T* out) {
    using V = Vec<T>;
    constexpr int kLanes = V::kLanes;
    for (int64_t r = 0; r < count;) {
        const int vectors = row_vectors<T>(count - r);
        for (int v = 0; v < vectors; ++v, r += kLanes) {
            for (int64_t k = 0; k < length; k += kLanes) {
                const int64_t depth = length - k < kLanes ? length - k : kLanes;
                V block[kLanes];
                for (int l = 0; l < kLanes; ++l) {
                    block[l] = r + l >= count    ? V{T(0)}
                               : depth == kLanes ? V::load(rows[r + l] + k)
                                                 : load_partial(rows[r + l] + k, depth);
                }
                transpose(block);
                for (int64_t i = 0; i < depth; ++i) block[i].store(out + ((k + i) * vectors + v) * kLanes);
            }
        }
        out += vectors * kLanes * length;
    }
}

// sums[u][v] = (sums, starts[u] or 0) + sum over k in [begin, end) of w[u][k] * rows[k][v]; sums are added last
template <class T, int Units, int Vectors>
FASTRNN_INLINE void multiply_lanes(const T* w, int64_t row_stride, int64_t begin, int64_t end, const T* rows, T* sums,
                                   Init init, const T* starts) {
    using V = Vec<T>;
    constexpr int kLanes = V::kLanes, kStride = kRowVectors * kLanes;
    V sum[Units][Vectors];
    const T* weights[Units];
#pragma GCC unroll 8
    for (int u = 0; u < Units; ++u) {
        weights[u] = w + u * row_stride;
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[u][v] = init == Init::bias ? V{starts[u]} : V{T(0)};
    }
    for (int64_t k = begin; k != end; ++k) {
        V x[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) x[v] = V::load(rows + (k * Vectors + v) * kLanes);
#pragma GCC unroll 8
        for (int u = 0; u < Units; ++u) {
            const V weight{weights[u][k]};
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sum[u][v] = fma(weight, x[v], sum[u][v]);
        }
    }
#pragma GCC unroll 8
    for (int u = 0; u < Units; ++u) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            T* at = sums + u * kStride + v * kLanes;
            (init == Init::accumulate ? V::load(at) + sum[u][v] : sum[u][v]).store(at);
        }
    }
}

// the next chain of so many rows of w, into the second-level cache
template <int Units, class T>
FASTRNN_INLINE void fetch_rows(const T* w, int64_t row_stride) {
    constexpr int64_t kInLine = 64 / sizeof(T);
    for (int u = 0; u < Units; ++u) {
        for (int64_t k = 0; k < kProductChain; k += kInLine) __builtin_prefetch(w + u * row_stride + k, 0, 2);
    }
}

// one vector of units against one group of rows: out[r][0 .. lanes) = (bias, out or 0) + sums, of units beyond `units`
// without sums. `next`: the rows of w that come after these.
template <class T, int Vectors>
FASTRNN_NOINLINE void multiply_group(const T* w, int64_t length, int64_t units, const T* next, const T* rows,
                                     int64_t count, T* const* out, Init init, const T* bias) {
    using V = Vec<T>;
    constexpr int kLanes = V::kLanes, kStride = kRowVectors * kLanes;
    constexpr int kMost = Vectors > 2 ? 4 : 8, kUnits = kLanes < kMost ? kLanes : kMost;  // sums fit the registers
    alignas(64) T sums[kLanes * kStride];
    const auto turn = [&](auto&& move) {  // between out and sums
        for (int v = 0; v < Vectors; ++v) {
            const int64_t first = v * kLanes, left = count - first < kLanes ? count - first : kLanes;
            V block[kLanes];
            move(block, first, left);
        }
    };
    if (init == Init::accumulate) {
        turn([&](V* block, int64_t first, int64_t left) {
            for (int64_t i = 0; i < kLanes; ++i) block[i] = i < left ? V::load(out[first + i]) : V{T(0)};
            transpose(block);
            for (int l = 0; l < kLanes; ++l) block[l].store(sums + l * kStride + first);
        });
    }
    for (int64_t k = 0; k < length || k == 0; k += kProductChain) {  // once even if there is no k
        const int64_t end = k + kProductChain < length ? k + kProductChain : length;
        for (int u = 0; u < kLanes; u += kUnits) {
            // single rows near the end of the matrix, which has no more
            const Init first = k == 0 ? init : Init::accumulate;
            const T* const starts = first == Init::bias ? bias + u : nullptr;
            if (u + kUnits <= units) {
                fetch_rows<kUnits>(end < length ? w + u * length + end : next + u * length, length);
                multiply_lanes<T, kUnits, Vectors>(w + u * length, length, k, end, rows, sums + u * kStride, first,
                                                   starts);
                continue;
            }
            for (int i = u; i < u + kUnits; ++i) {
                const Init own = i < units || first == Init::accumulate ? first : Init::zero;
                multiply_lanes<T, 1, Vectors>(w + i * length, length, k, i < units ? end : k, rows, sums + i * kStride,
                                              own, starts ? starts + i - u : nullptr);
            }
        }
    }
    turn([&](V* block, int64_t first, int64_t left) {
        for (int l = 0; l < kLanes; ++l) block[l] = V::load(sums + l * kStride + first);
        transpose(block);
        for (int64_t i = 0; i < left; ++i) block[i].store(out[first + i]);
    });
}

// any number of rows, in the form of put_in_lanes
template <class T>
FASTRNN_INLINE void multiply_in_lanes(const T* w, int64_t length, int64_t units, const T* next, const T* rows,
                                      int64_t count, T* const* out, Init init, const T* bias) {
    for (int64_t r = 0; r < count;) {
        const int vectors = row_vectors<T>(count - r);
        const int64_t taken = vectors * Vec<T>::kLanes, present = count - r < taken ? count - r : taken;
        const auto run = [&](auto group) { group(w, length, units, next, rows, present, out + r, init, bias); };
        switch (vectors) {
            case 1: run(multiply_group<T, 1>); break;
            case 2: run(multiply_group<T, 2>); break;
            default:
                if constexpr (kRowVectors > 2) vectors == 3 ? run(multiply_group<T, 3>) : run(multiply_group<T, 4>);
        }
        rows += taken * length;
        r += taken;
    }
}

}  // namespace
}  // namespace fastrnn
