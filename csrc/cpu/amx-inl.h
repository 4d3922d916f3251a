// The product of bfloat16 rows and panels on matrix tiles of 16 rows of 64 bytes, written over a namespace `tile` of
// the instructions: target_amx.cpp has the CPU's, tests/csrc/emulation/tile.h has them in plain C++.
//
// A sum is made of 32 products at a time in the order of k, and every kLink times joins c, which begins as the bias,
// zero or what is there.
//
// Cost: two tiles of rows meet two of weights, so that a tile is loaded for each that is multiplied: 16 cycles each,
// and half of what the second-level cache can send. One tile of rows meets all vectors of a panel, which then is what
// is waited for.
#pragma once

#include "../cells/inline.h"
#include "bfloat16.h"

namespace fastrnn {
namespace {

constexpr int64_t kTileBytes = 64, kTileValues = kBfloat16Units * kBfloat16Depth;
static_assert(kBfloat16Rows * kTileBytes == kTileValues * sizeof(uint16_t), "a tile of weights is a whole tile");

// Tiles of k that are summed before their sum joins c: two tiles of rows of so many fit the first-level cache, and stay
// there for all vectors of a panel.
constexpr int64_t kLink = 16;

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

void begin_tiles() {
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
        config.row_bytes[i] = kTileBytes;
        config.rows[i] = kBfloat16Rows;
    }
    tile::configure(config);
}

// A tile's sums join what is there, the bias or zero, a row at a time: read from rows that lie apart and written back
// by the tile's own instructions they took 19 ns instead of 12.
template <int Tile>
FASTRNN_INLINE void end_sums(const Bfloat16Block& block, int64_t first, int64_t at) {
    typedef float Vector __attribute__((vector_size(kTileBytes), aligned(alignof(float)), may_alias));
    alignas(kTileBytes) float sums[kBfloat16Rows * kBfloat16Units];
    tile::store<Tile>(sums, kTileBytes);
    const int64_t left = block.rows - first, count = left < kBfloat16Rows ? left : kBfloat16Rows;
    for (int64_t r = 0; r < count; ++r) {
        float* const c = block.c[first + r] + at;
        Vector start{};
        if (block.bias) {
            start = *reinterpret_cast<const Vector*>(block.bias + at);
        } else if (!block.zero) {
            start = *reinterpret_cast<const Vector*>(c);
        }
        *reinterpret_cast<Vector*>(c) = start + *reinterpret_cast<const Vector*>(sums + r * kBfloat16Units);
    }
}

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 weights. Two tiles of rows from `first` on meet vectors from `vector`
// on.
template <int Vectors>
FASTRNN_NOINLINE void multiply_two(const Bfloat16Block& block, int64_t first, int vector) {
    const int64_t at = vector * block.vector_stride, next = block.vector_stride;
    const int64_t row_bytes = block.stride * static_cast<int64_t>(sizeof(uint16_t));
    const uint16_t *const a = block.a + first * block.stride, *const below = a + kBfloat16Rows * block.stride;
    const uint16_t* panel = block.panel + vector * kTileValues;
    const int64_t panel_step = block.vectors * kTileValues, depth = block.depth;
    tile::zero<0>();
    tile::zero<2>();
    if constexpr (Vectors == 2) tile::zero<1>();
    if constexpr (Vectors == 2) tile::zero<3>();
    for (int64_t k = 0; k < depth; ++k, panel += panel_step) {
        tile::load_once<6>(panel, kTileBytes);
        tile::load<4>(a + k * kBfloat16Depth, row_bytes);
        tile::multiply<0, 4, 6>();
        if constexpr (Vectors == 2) tile::load_once<7>(panel + kTileValues, kTileBytes);
        if constexpr (Vectors == 2) tile::multiply<1, 4, 7>();
        tile::load<5>(below + k * kBfloat16Depth, row_bytes);
        tile::multiply<2, 5, 6>();
        if constexpr (Vectors == 2) tile::multiply<3, 5, 7>();
    }
    end_sums<0>(block, first, at);
    if constexpr (Vectors == 2) end_sums<1>(block, first, at + next);
    end_sums<2>(block, first + kBfloat16Rows, at);
    if constexpr (Vectors == 2) end_sums<3>(block, first + kBfloat16Rows, at + next);
}

// Tiles 0 to 3 are sums, 4 is rows, 5 to 7 weights.
template <int Vectors>
FASTRNN_NOINLINE void multiply_one(const Bfloat16Block& block, int64_t first) {
    const int64_t next = block.vector_stride, row_bytes = block.stride * static_cast<int64_t>(sizeof(uint16_t));
    const uint16_t *const a = block.a + first * block.stride, *panel = block.panel;
    const int64_t depth = block.depth;
    tile::zero<0>();
    if constexpr (Vectors > 1) tile::zero<1>();
    if constexpr (Vectors > 2) tile::zero<2>();
    if constexpr (Vectors > 3) tile::zero<3>();
    for (int64_t k = 0; k < depth; ++k, panel += Vectors * kTileValues) {
        tile::load<4>(a + k * kBfloat16Depth, row_bytes);
        tile::load_once<5>(panel, kTileBytes);
        tile::multiply<0, 4, 5>();
        if constexpr (Vectors > 1) tile::load_once<6>(panel + kTileValues, kTileBytes);
        if constexpr (Vectors > 1) tile::multiply<1, 4, 6>();
        if constexpr (Vectors > 2) tile::load_once<7>(panel + 2 * kTileValues, kTileBytes);
        if constexpr (Vectors > 2) tile::multiply<2, 4, 7>();
        if constexpr (Vectors > 3) tile::load_once<5>(panel + 3 * kTileValues, kTileBytes);
        if constexpr (Vectors > 3) tile::multiply<3, 4, 5>();
    }
    end_sums<0>(block, first, 0);
    if constexpr (Vectors > 1) end_sums<1>(block, first, next);
    if constexpr (Vectors > 2) end_sums<2>(block, first, 2 * next);
    if constexpr (Vectors > 3) end_sums<3>(block, first, 3 * next);
}

void multiply_link(const Bfloat16Block& block) {
    int64_t first = 0;
    for (; block.rows - first > kBfloat16Rows; first += 2 * kBfloat16Rows) {
        for (int v = 0; v < block.vectors; v += 2) {
            v + 1 < block.vectors ? multiply_two<2>(block, first, v) : multiply_two<1>(block, first, v);
        }
    }
    if (first >= block.rows) return;
    switch (block.vectors) {
        case 1: return multiply_one<1>(block, first);
        case 2: return multiply_one<2>(block, first);
        case 3: return multiply_one<3>(block, first);
        default: return multiply_one<4>(block, first);
    }
}

void multiply_tiles(const Bfloat16Block& block) {
    Bfloat16Block link = block;
    for (int64_t k = 0; k < block.depth || k == 0; k += kLink) {  // once even if there is no k
        link.depth = block.depth - k < kLink ? block.depth - k : kLink;
        multiply_link(link);
        link.a += kLink * kBfloat16Depth;
        link.panel += kLink * block.vectors * kTileValues;
        link.bias = nullptr;
        link.zero = false;
    }
}

void round_rows(const float* const* rows, int64_t count, int64_t length, uint16_t* out, int64_t stride) {
    for (int64_t r = 0; r < count; ++r, out += stride) {
        int64_t k = 0;
        for (; k + kBfloat16Depth <= length; k += kBfloat16Depth) tile::round(rows[r] + k, out + k);
        if (k == length) continue;
        float rest[kBfloat16Depth] = {};
        __builtin_memcpy(rest, rows[r] + k, static_cast<size_t>(length - k) * sizeof(float));
        tile::round(rest, out + k);
    }
}

constexpr Bfloat16Unit kTileUnit{begin_tiles, tile::release, round_rows, multiply_tiles};

}  // namespace
}  // namespace fastrnn
