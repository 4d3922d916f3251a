// Products with rows of x that are stored in bfloat16, and with weights packed for a Bfloat16Unit.
#pragma once

#include "bfloat16.h"
#include "product-inl.h"

namespace fastrnn {
namespace {

// the row at an address that stands among those of float32 rows
inline const Bfloat16* stored_row(const float* row) { return reinterpret_cast<const Bfloat16*>(row); }

FASTRNN_NOINLINE inline void widen_row(const float* row, int64_t length, float* out) {
    using V = Vec<float>;
    const Bfloat16* const from = stored_row(row);
    for (int64_t k = 0; k < length; k += V::kLanes) {
        const bool whole = k + V::kLanes <= length;
        (whole ? load_stored(from + k) : load_stored(from + k, length - k)).store(out + k);
    }
}
inline int64_t widened_size(int64_t length) { return round_up(length, Vec<float>::kLanes); }

inline void split_stored_row(const float* row, int64_t length, float* out) { split_row(stored_row(row), length, out); }

// to the nearest, ties to even, as torch rounds
FASTRNN_NOINLINE inline void round_to_stored(const float* from, Bfloat16* to, int64_t count) {
    using V = Vec<float>;
    for (int64_t k = 0; k < count; k += V::kLanes) {
        const int64_t lanes = min(count - k, V::kLanes);
        const V value = lanes == V::kLanes ? V::load(from + k) : load_partial(from + k, lanes);
        const V::Bits bits = reinterpret_cast<V::Bits>(value.raw);
        const V::Bits nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        const V::Bits rounded = value.raw == value.raw ? nearest : V::Bits{} + 0x7fc0;
        const HalfBits half = __builtin_convertvector(rounded, HalfBits);
        __builtin_memcpy(to + k, &half, static_cast<size_t>(lanes) * sizeof(Bfloat16));
    }
}

// Panels as bfloat16.h has them: the pairs of a vector of units are transposed as numbers of 32 bits.
struct UnitProduct {
    using V = Vec<float>;
    static constexpr int64_t kPairs = kBfloat16Depth / 2, kTile = kPairs * kBfloat16Units;  // of a vector of units

    static int64_t depth(int64_t length) { return (length + kBfloat16Depth - 1) / kBfloat16Depth; }
    static int64_t packed_size(const Product<float>& p) { return depth(p.length) * kPairs * p.slots.count; }
    static float* panel_of(const Product<float>& p, int64_t u) {
        return p.packed + (u - p.first) * depth(p.length) * kPairs * p.slots.count;
    }

    template <class Visit>
    static void for_each_panel(const Product<float>& p, Range units, const Visit& visit) {
        const bool single = p.slots.count == 1;
        for (int64_t v = units.begin; v < units.end; v += kBfloat16Units * (single ? p.wide : 1)) {
            visit(v, single ? wide_vectors<float>(p.units - v, p.wide) : p.slots.count);
        }
    }

    // one vector of a panel; a tile of it every `step`
    static FASTRNN_NOINLINE void pack_vector(const Bfloat16* w, int64_t length, int64_t units, float* out,
                                             int64_t step) {
        for (int64_t k = 0; k < length; k += kBfloat16Depth, out += step) {
            const int64_t left = length - k;
            V block[V::kLanes];
            for (int l = 0; l < V::kLanes; ++l) {
                const Bfloat16* const row = w + l * length + k;
                const V::Bits pairs = l >= units               ? V::Bits{}
                                      : left >= kBfloat16Depth ? load_pairs(row)
                                                               : load_pairs(row, left);
                block[l] = V{reinterpret_cast<V::Raw>(pairs)};
            }
            transpose(block);
            for (int l = 0; l < V::kLanes; ++l) block[l].store(out + l * V::kLanes);
        }
    }

    static void pack(const Product<float>& p, Range units) {
        const bool single = p.slots.count == 1;
        for_each_panel(p, units, [&](int64_t v, int vectors) {
            for (int i = 0; i < vectors; ++i) {
                const int64_t unit = single ? v + i * kBfloat16Units : v;
                pack_vector(Panels<float, Bfloat16>::rows_of(p, p.slots.begin + (single ? 0 : i), unit), p.length,
                            p.units - unit, panel_of(p, v) + i * kTile, vectors * kTile);
            }
        });
    }

    // rows that are a multiple of 256 bytes apart share few sets of the first-level cache
    static int64_t prepared_size(int64_t length) {
        const int64_t size = depth(length) * kPairs;
        return size % 64 == 0 ? size + kBfloat16Units : size;
    }
    static void prepare(const Product<float>& p, const float* const* rows, int64_t count, float* out, int64_t stride) {
        p.unit->round(rows, count, p.length, reinterpret_cast<uint16_t*>(out), 2 * stride);
    }
    static void copy(const Product<float>& p, const float* const* rows, int64_t count, float* out, int64_t stride) {
        const auto bytes = static_cast<size_t>(p.length) * sizeof(Bfloat16);
        const size_t whole = static_cast<size_t>(depth(p.length) * kBfloat16Depth) * sizeof(Bfloat16);
        for (int64_t r = 0; r < count; ++r) {
            char* const to = reinterpret_cast<char*>(out + r * stride);
            __builtin_memcpy(to, rows[r], bytes);
            __builtin_memset(to + bytes, 0, whole - bytes);
        }
    }

    // a: of a block that is prepared as a whole
    static void multiply(const Product<float>& p, const float* const* a, int64_t rows, Range units, float* const* out,
                         Init init, const float* bias) {
        float* c[kRowBlock];
        Bfloat16Block block{};
        block.a = reinterpret_cast<const uint16_t*>(a[0]);
        block.stride = rows > 1 ? 2 * (a[1] - a[0]) : 0;
        block.rows = rows;
        block.depth = depth(p.length);
        block.c = c;
        block.zero = init == Init::zero;
        block.vector_stride = p.slots.count == 1 ? kBfloat16Units : p.padded;
        for_each_panel(p, units, [&](int64_t v, int vectors) {
            const int64_t at = p.slots.begin * p.padded + v;
            for (int64_t r = 0; r < rows; ++r) c[r] = out[r] + at;
            block.panel = reinterpret_cast<const uint16_t*>(panel_of(p, v));
            block.vectors = vectors;
            block.bias = init == Init::bias ? bias + at : nullptr;
            p.unit->multiply(block);
        });
    }
};

}  // namespace
}  // namespace fastrnn
