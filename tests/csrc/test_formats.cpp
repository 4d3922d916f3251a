// Weights stored in bfloat16 and int8 against the reference with the weights that they stand for, on one instruction
// set: test_formats ISA.
#include <cmath>
#include <cstring>

#include "check.h"
#include "runner.h"

using namespace fastrnn_test;
using fastrnn::WeightFormat;

namespace {

// of 1, which no output exceeds by far: float32's rounding; for int8 also that of activations to 16 bits, of a sum of
// `length` terms
double tolerance(WeightFormat format, int64_t length) {
    return format == WeightFormat::bfloat16 ? 5e-6 : 2e-5 + 2e-5 * std::sqrt(static_cast<double>(length));
}

// Matrices of one direction as they are stored. The values that they were made from become what they stand for.
class StoredWeights {
   public:
    StoredWeights(const Problem& p, Tensors::Direction& w, WeightFormat format)
        : w_ih_(store(p, w.w_ih, p.input, scale_ih_, format)),
          w_hh_(store(p, w.w_hh, p.head_length(), scale_hh_, format)),
          w_hr_(format == WeightFormat::bfloat16 ? bfloat16(w.w_hr) : Bytes(0)) {}

    void fill(fastrnn::Weights& weights) const {
        weights.w_ih = w_ih_.get();
        weights.w_hh = w_hh_.get();
        if (w_hr_.size()) weights.w_hr = w_hr_.get();
        weights.scale_ih = scale_ih_.empty() ? nullptr : scale_ih_.data();
        weights.scale_hh = scale_hh_.empty() ? nullptr : scale_hh_.data();
    }

   private:
    static Bytes store(const Problem& p, std::vector<double>& values, int64_t length, std::vector<float>& scales,
                       WeightFormat format) {
        return format == WeightFormat::bfloat16 ? bfloat16(values) : int8(p, values, length, scales);
    }

    static Bytes bfloat16(std::vector<double>& values) {
        Bytes stored(values.size() * 2);
        for (size_t i = 0; i < values.size(); ++i) {
            float value = static_cast<float>(values[i]);
            uint32_t bits;
            std::memcpy(&bits, &value, sizeof(bits));
            const uint16_t upper = static_cast<uint16_t>(bits >> 16);
            std::memcpy(stored.get() + 2 * i, &upper, sizeof(upper));
            bits &= 0xffff0000u;
            std::memcpy(&value, &bits, sizeof(value));
            values[i] = value;
        }
        return stored;
    }

    static Bytes int8(const Problem& p, std::vector<double>& values, int64_t length, std::vector<float>& scales) {
        const int64_t gates = fastrnn::gate_count(p.cell), block = fastrnn::kUnitAlignment;
        Bytes stored(static_cast<size_t>(fastrnn::packed_int8(gates, p.hidden, length)));
        std::memset(stored.get(), 0, stored.size());
        for (int64_t row = 0; row < gates * p.hidden; ++row) {
            double* at = values.data() + row * length;
            double largest = 0;
            for (int64_t k = 0; k < length; ++k) largest = std::fmax(largest, std::fabs(at[k]));
            scales.push_back(largest > 0 ? static_cast<float>(largest / 127) : 1.0f);
            const double scale = static_cast<double>(scales.back());
            const int64_t gate = row / p.hidden, unit = row % p.hidden;
            for (int64_t k = 0; k < length; ++k) {
                const double value = std::fmax(-127.0, std::fmin(127.0, std::nearbyint(at[k] / scale)));
                const int64_t quads = (length + 3) / 4;
                const int64_t place =
                    ((((unit / block) * quads + k / 4) * gates + gate) * block + unit % block) * 4 + k % 4;
                stored.get()[place] = static_cast<unsigned char>(static_cast<int>(value));
                at[k] = value * scale;
            }
        }
        return stored;
    }

    std::vector<float> scale_ih_, scale_hh_;
    Bytes w_ih_, w_hh_, w_hr_;
};

void compare(const std::vector<float>& got, const std::vector<double>& want, double allowed, const std::string& where) {
    CHECK(got.size() == want.size(), where);
    for (size_t i = 0; i < got.size() && i < want.size(); ++i) {
        const double value = static_cast<double>(got[i]);
        const bool close = std::fabs(value - want[i]) <= allowed * std::fmax(1.0, std::fabs(want[i]));
        if (close) continue;
        return CHECK(close, where + "[" + std::to_string(i) + "] is " + std::to_string(value) + ", not " +
                                std::to_string(want[i]));
    }
}

void test(const Problem& p) {
    for (WeightFormat format : {WeightFormat::bfloat16, WeightFormat::int8}) {
        Tensors given = random_tensors(p);
        std::vector<StoredWeights> stored;
        for (int d = 0; d < p.directions; ++d) stored.emplace_back(p, given.weights[d], format);
        const Reference reference(p, given);
        const std::string where = p.name() + (format == WeightFormat::int8 ? "-int8" : "-bfloat16");
        const double allowed = tolerance(format, p.input + p.recurrent());
        Results<float> alone;
        for (int threads : {1, 2, 3}) {
            Results<float> results;
            Runner<float>(p, given, Layout::gapped, threads)
                .forward(false, results, [&](fastrnn::ForwardParams& params) {
                    params.format = format;
                    for (int d = 0; d < p.directions; ++d) stored[static_cast<size_t>(d)].fill(params.weights[d]);
                });
            compare(results.y, reference.outputs.y, allowed, where + " y");
            compare(results.h_n, reference.outputs.h_n, allowed, where + " h_n");
            compare(results.c_n, reference.outputs.c_n, allowed, where + " c_n");
            CHECK(results.kept_gaps, where);
            if (threads == 1) alone = results;
            CHECK(Runner<float>::same_bytes(alone.y, results.y) && Runner<float>::same_bytes(alone.c_n, results.c_n),
                  where + "-threads" + std::to_string(threads));
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    const char* isa = argc > 1 ? argv[1] : "generic";
    if (!fastrnn::isa_supported(isa)) {
        std::printf("this build or CPU has no %s\n", isa);
        return 77;
    }
    fastrnn::force_isa(isa);
    struct Size {
        int64_t time, batch, input, hidden, projection;
    };
    // rows as they lie and packed, one and several of them, no whole vector of anything; then enough for three threads
    const Size sizes[] = {{1, 1, 1, 1, 1},    {4, 1, 5, 7, 3},    {3, 2, 1, 16, 16}, {5, 3, 6, 17, 18},
                          {3, 7, 4, 33, 5},   {2, 0, 3, 5, 2},    {3, 5, 0, 9, 4},   {2, 6, 37, 65, 9},
                          {9, 1, 70, 97, 20}, {60, 1, 9, 147, 8}, {12, 5, 40, 97, 7}};
    for (const Size& s : sizes) {
        for (Cell cell : {Cell::lstm, Cell::gru, Cell::gru_reset_before, Cell::rnn}) {
            for (int directions : {1, 2}) {
                test({cell, Activation::tanh, s.time, s.batch, s.input, s.hidden, 0, directions, {}, true, true});
                if (cell != Cell::lstm) continue;
                test({cell,
                      Activation::tanh,
                      s.time,
                      s.batch,
                      s.input,
                      s.hidden,
                      s.projection,
                      directions,
                      {},
                      true,
                      false});
            }
            if (s.batch < 2) continue;
            std::vector<int64_t> falling;
            for (int64_t t = 0; t < s.time; ++t) falling.push_back(s.batch - (s.batch - 1) * t / s.time);
            test({cell, Activation::tanh, s.time, s.batch, s.input, s.hidden, 0, 2, falling, true, true});
        }
    }
    for (Cell cell : {Cell::lstm, Cell::gru, Cell::gru_reset_before, Cell::rnn}) {
        for (int64_t heads : {2, 3}) {
            test({cell, Activation::tanh, 40, 1, 9, 48 * heads, 0, 1, {}, true, true, heads});
            test({cell, Activation::tanh, 5, 20, 9, 64 * heads, 0, 2, {}, true, true, heads});
        }
    }
    test({Cell::lstm, Activation::tanh, 5, 3, 9, 64, 32, 2, {}, true, true, 2});
    return finish();
}
