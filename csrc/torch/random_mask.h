// Masks of zeros and one value, from a seed: xoshiro128++ (Blackman and Vigna 2021, https://prng.di.unimi.it), in four
// streams side by side that splitmix64 begins. The bits are the same on every CPU and for every number of threads.
#pragma once

#include <cstdint>
#include <cstring>

namespace fastrnn {
namespace {

class RandomBits {
   public:
    static constexpr int kLanes = 4;
    typedef uint32_t Lanes __attribute__((vector_size(kLanes * sizeof(uint32_t))));

    explicit RandomBits(uint64_t seed) {
        for (int lane = 0; lane < kLanes; ++lane) {
            for (int i = 0; i < 4; i += 2) {
                seed += 0x9e3779b97f4a7c15;
                uint64_t z = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9;
                z = (z ^ z >> 27) * 0x94d049bb133111eb;
                z ^= z >> 31;
                state_[i][lane] = static_cast<uint32_t>(z);
                state_[i + 1][lane] = static_cast<uint32_t>(z >> 32);
            }
        }
    }

    Lanes next() {
        Lanes *const s = state_, sum = s[0] + s[3];
        const Lanes result = rotate(sum, 7) + s[0], shifted = s[1] << 9;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = rotate(s[3], 11);
        return result;
    }

   private:
    static Lanes rotate(const Lanes& x, int by) { return x << by | x >> (32 - by); }
    Lanes state_[4];
};

constexpr int64_t kDraws = 1 << 16;

// mask[0 .. count) = value with probability ones / kDraws, elsewhere 0
template <class T>
void draw_mask(uint64_t seed, int64_t ones, T value, T* mask, int64_t count) {
    constexpr int64_t kLanes = RandomBits::kLanes, kBlock = 2 * kLanes;
    // compared as signed: SSE2 has no other way
    typedef int32_t Draws __attribute__((vector_size(kLanes * sizeof(int32_t))));
    typedef T Values __attribute__((vector_size(kLanes * sizeof(T))));
    RandomBits random(seed);
    const Draws limit = Draws{} + static_cast<int32_t>(ones);
    const auto write = [&](const Draws& draws, T* to, int64_t room) {
        const Values chosen = (Values{} - __builtin_convertvector(draws < limit, Values)) * value;
        room < kLanes ? std::memcpy(to, &chosen, sizeof(T) * static_cast<size_t>(room))
                      : std::memcpy(to, &chosen, sizeof(Values));
    };
    for (int64_t at = 0; at < count; at += kBlock) {
        const RandomBits::Lanes bits = random.next();
        write(reinterpret_cast<Draws>(bits & 0xffff), mask + at, count - at);
        if (count - at > kLanes) write(reinterpret_cast<Draws>(bits >> 16), mask + at + kLanes, count - at - kLanes);
    }
}

}  // namespace
}  // namespace fastrnn
