// The CPU's matrix tiles. What the compiler has for them since its version 11 is written out: it takes older ones, and
// numbers of tiles that are template arguments.
#include <immintrin.h>

#include <cstdint>

#include "../cells/inline.h"

namespace fastrnn {
namespace {
struct TileConfig;

namespace tile {

void configure(const TileConfig& config) {
    __asm__ volatile("ldtilecfg %0" ::"m"(*reinterpret_cast<const char (*)[64]>(&config)));
}
void release() { __asm__ volatile("tilerelease"); }

template <int Tile>
FASTRNN_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(Tile));
}
// 16 rows of 64 bytes, `stride` bytes apart
template <int Tile>
FASTRNN_INLINE void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}
// which need not stay in the nearest cache
template <int Tile>
FASTRNN_INLINE void load_once(const void* from, int64_t stride) {
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
FASTRNN_INLINE void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(Tile) : "memory");
}
// sums += rows * weights
template <int Sums, int RowTile, int Weights>
FASTRNN_INLINE void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" ::"i"(Weights), "i"(RowTile), "i"(Sums));
}
// 32 values to the nearest, ties to even; denormals are zero
FASTRNN_INLINE void round(const float* from, uint16_t* to) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from));
    __builtin_memcpy(to, &rounded, sizeof(rounded));
}

}  // namespace tile
}  // namespace
}  // namespace fastrnn

#include "amx-inl.h"

namespace fastrnn {
const Bfloat16Unit unit_amx = kTileUnit;
}
