// Numbers that look random, the same on every machine.
#pragma once

#include <cstdint>
#include <vector>

namespace fastrnn_test {

// multiples of 2^-12 * scale in [-scale, scale]: exact in every type where scale is a power of two
class Random {
   public:
    explicit Random(uint64_t seed) : state_(seed * 2862933555777941757u + 3037000493u) {}
    std::vector<double> operator()(int64_t count, double scale) {
        std::vector<double> values(static_cast<size_t>(count));
        for (double& value : values) {
            state_ = state_ * 6364136223846793005u + 1442695040888963407u;
            value = scale * (static_cast<double>(state_ >> 51) / 4096.0 - 1.0);
        }
        return values;
    }

   private:
    uint64_t state_;
};

}  // namespace fastrnn_test
