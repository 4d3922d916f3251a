// The instructions that csrc/cpu/amx-inl.h is written over, in plain C++: what they do as Intel's manual says it, with
// its order of sums and denormals that are zero. Memory is read and written by code that sanitizers see.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace fastrnn {
namespace {
struct TileConfig;

namespace tile {

struct State {
    int rows[8], row_bytes[8];
    bool configured = false;
    unsigned char data[8][16][64];
};
inline thread_local State state;

inline void require(bool condition) {
    if (!condition) std::abort();  // the CPU would raise a fault
}

inline void configure(const TileConfig& config) {
    const auto* const bytes = reinterpret_cast<const unsigned char*>(&config);
    require(bytes[0] == 1);
    for (int i = 0; i < 8; ++i) {
        state.row_bytes[i] = bytes[16 + 2 * i] + 256 * bytes[17 + 2 * i];
        state.rows[i] = bytes[48 + i];
        require(state.rows[i] <= 16 && state.row_bytes[i] <= 64);
    }
    std::memset(state.data, 0, sizeof(state.data));
    state.configured = true;
}
inline void release() { state.configured = false; }

template <int Tile>
void zero() {
    require(state.configured);
    std::memset(state.data[Tile], 0, sizeof(state.data[Tile]));
}
template <int Tile>
void load(const void* from, int64_t stride) {
    zero<Tile>();
    for (int r = 0; r < state.rows[Tile]; ++r) {
        std::memcpy(state.data[Tile][r], static_cast<const char*>(from) + r * stride,
                    static_cast<size_t>(state.row_bytes[Tile]));
    }
}
template <int Tile>
void load_once(const void* from, int64_t stride) {
    load<Tile>(from, stride);
}
template <int Tile>
void store(void* to, int64_t stride) {
    require(state.configured);
    for (int r = 0; r < state.rows[Tile]; ++r) {
        std::memcpy(static_cast<char*>(to) + r * stride, state.data[Tile][r],
                    static_cast<size_t>(state.row_bytes[Tile]));
    }
}

inline float flushed(float value) {
    return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}
inline float widened(uint16_t value) {
    const uint32_t bits = static_cast<uint32_t>(value) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof(wide));
    return flushed(wide);
}
inline uint16_t pair_member(const unsigned char* row, int pair, int member) {
    uint16_t value;
    std::memcpy(&value, row + 4 * pair + 2 * member, sizeof(value));
    return value;
}

// the even products of a row and the odd ones are two sums, whose sum joins what is there
template <int Sums, int RowTile, int Weights>
void multiply() {
    require(state.configured && state.row_bytes[RowTile] / 4 == state.rows[Weights]);
    for (int m = 0; m < state.rows[Sums]; ++m) {
        for (int n = 0; n < state.row_bytes[Sums] / 4; ++n) {
            float sums[2] = {0.0f, 0.0f};
            for (int k = 0; k < state.rows[Weights]; ++k) {
                for (int i = 0; i < 2; ++i) {
                    sums[i] = flushed(std::fma(widened(pair_member(state.data[RowTile][m], k, i)),
                                               widened(pair_member(state.data[Weights][k], n, i)), sums[i]));
                }
            }
            float total;
            std::memcpy(&total, state.data[Sums][m] + 4 * n, sizeof(total));
            total = flushed(flushed(total) + flushed(sums[0] + sums[1]));
            std::memcpy(state.data[Sums][m] + 4 * n, &total, sizeof(total));
        }
    }
}

inline void round(const float* from, uint16_t* to) {
    for (int i = 0; i < 32; ++i) {
        const float value = flushed(from[i]);
        uint32_t bits;
        std::memcpy(&bits, &value, sizeof(bits));
        const uint32_t nearest = bits + 0x7fff + (bits >> 16 & 1);
        to[i] = static_cast<uint16_t>((std::isnan(value) ? bits | 0x400000 : nearest) >> 16);
    }
}

}  // namespace tile
}  // namespace
}  // namespace fastrnn
