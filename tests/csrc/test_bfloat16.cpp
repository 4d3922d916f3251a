// Sequences and weights in bfloat16: test_bfloat16 ISA. The product of tiles against sums in double precision, in place
// and emulated, which are the same bit for bit; then layers against the reference. "emulated" is avx512 with emulated
// tiles.
#include <cmath>
#include <cstring>

#include "check.h"
#include "emulation/tile.h"

#include "cpu/amx-inl.h"
#include "cpu/target.h"
#include "runner.h"

using namespace fastrnn_test;
using fastrnn::Bfloat16Unit;

namespace {

constexpr double kUnit = 0x1p-8;  // of rounding to the nearest bfloat16

uint16_t upper_half(double value) {
    const auto narrow = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof(bits));
    return static_cast<uint16_t>(bits >> 16);
}
float widened(uint16_t half) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

// -- the product ------------------------------------------------------------------------------------------------------

struct Size {
    int64_t rows, length;
    int vectors;
};

enum class Start { zero, bias, there };

// sums [rows][vectors][16] of Random's numbers, in rows that are unevenly spaced
std::vector<float> product(const Bfloat16Unit& unit, const Size& size, Start start, bool check) {
    const std::string where = "rows" + std::to_string(size.rows) + "-K" + std::to_string(size.length) + "-vectors" +
                              std::to_string(size.vectors);
    const int64_t depth = (size.length + 31) / 32, stride = depth * 32 + 8, units = size.vectors * 16;
    Random random(static_cast<uint64_t>(size.rows * 1000 + size.length * 10 + size.vectors));
    const std::vector<double> a = random(size.rows * size.length, 1), w = random(units * size.length, 1),
                              begin = random(size.rows * units, 4), bias = random(units, 4);
    const Array<float> rows(a), biases(bias), sums(2 * size.rows * (units + 16));
    Array<uint16_t> rounded((size.rows + 15) / 16 * 16 * stride), panel(depth * units * 32);
    std::memset(panel.data(), 0, static_cast<size_t>(depth * units * 32) * sizeof(uint16_t));
    for (int64_t u = 0; u < units; ++u) {
        for (int64_t k = 0; k < size.length; ++k) {
            const int64_t tile = k / 32 * size.vectors + u / 16;
            panel.data()[((tile * 16 + k % 32 / 2) * 16 + u % 16) * 2 + k % 2] =
                upper_half(w[static_cast<size_t>(u * size.length + k)]);
        }
    }
    std::vector<const float*> from;
    std::vector<float*> to;
    for (int64_t r = 0; r < size.rows; ++r) {
        from.push_back(rows.data() + r * size.length);
        to.push_back(sums.data() + (2 * r + r % 2) * (units + 16));
        for (int64_t u = 0; u < units; ++u)
            to.back()[u] = static_cast<float>(begin[static_cast<size_t>(r * units + u)]);
    }
    unit.begin();
    unit.round(from.data(), size.rows, size.length, rounded.data(), stride);
    fastrnn::Bfloat16Block block{rounded.data(),      stride, size.rows,
                                 panel.data(),        depth,  size.vectors,
                                 to.data(),           16,     start == Start::bias ? biases.data() : nullptr,
                                 start == Start::zero};
    unit.multiply(block);
    unit.end();
    std::vector<float> found;
    for (int64_t r = 0; r < size.rows; ++r) {
        for (int64_t k = 0; k < size.length && check; ++k) {
            const double given = a[static_cast<size_t>(r * size.length + k)];
            const auto value = static_cast<double>(widened(rounded.data()[r * stride + k]));
            CHECK(std::fabs(value - given) <= kUnit * std::fabs(given), where + " rounding");
        }
        for (int64_t u = 0; u < units; ++u) {
            found.push_back(to[static_cast<size_t>(r)][u]);
            const auto at = static_cast<size_t>(r * units + u);
            double want = start == Start::zero ? 0 : start == Start::bias ? bias[static_cast<size_t>(u)] : begin[at];
            double terms = std::fabs(want);
            for (int64_t k = 0; k < size.length && check && u % 5 == r % 5; ++k) {
                const auto value = static_cast<double>(widened(rounded.data()[r * stride + k]));
                const double term =
                    value * static_cast<double>(widened(upper_half(w[static_cast<size_t>(u * size.length + k)])));
                want += term;
                terms += std::fabs(term);
            }
            const double allowed = terms * 6e-8 * (16 + static_cast<double>(depth));
            if (check && u % 5 == r % 5) CHECK(std::fabs(static_cast<double>(found.back()) - want) <= allowed, where);
        }
        CHECK(std::isnan(to[static_cast<size_t>(r)][units]), where + " wrote beyond its vectors");
    }
    return found;
}

template <class Visit>
void for_each_product(const Visit& visit) {
    for (int64_t rows : {1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 96}) {
        for (int64_t length : {1, 2, 31, 32, 33, 64, 97}) {
            for (int vectors : {1, 2, 3, 4}) {
                for (Start start : {Start::zero, Start::bias, Start::there}) visit(Size{rows, length, vectors}, start);
            }
        }
    }
    visit(Size{5, 0, 2}, Start::bias);
}

void test_products(const Bfloat16Unit& unit) {
    for_each_product([&](const Size& size, Start start) {
        const std::vector<float> found = product(unit, size, start, true);
        CHECK(found == product(fastrnn::kTileUnit, size, start, false), "as emulated");
    });
}

// values at the edges of what bfloat16 rounds to
void test_rounding(const Bfloat16Unit& unit) {
    const uint32_t bits[] = {0x00000000, 0x80000000, 0x3f800000, 0x3f807fff, 0x3f808000, 0x3f808001, 0x3f818000,
                             0x7f7fffff, 0xff7f8000, 0x7f800000, 0xff800000, 0x00800000, 0x007fffff, 0x80000001};
    std::vector<float> values(std::begin(bits), std::end(bits));
    std::memcpy(values.data(), bits, sizeof(bits));
    values.push_back(std::nanf(""));
    const int64_t count = static_cast<int64_t>(values.size());
    uint16_t found[32], want[32];
    const float* row = values.data();
    unit.round(&row, 1, count, found, 32);
    fastrnn::kTileUnit.round(&row, 1, count, want, 32);
    CHECK(std::memcmp(found, want, sizeof(found)) == 0, "rounding as emulated");
    CHECK(want[3] == 0x3f80 && want[4] == 0x3f80 && want[5] == 0x3f81 && want[6] == 0x3f82, "ties to even");
    CHECK(want[7] == 0x7f80 && want[12] == 0 && want[13] == 0x8000 && want[14] == 0x7fc0, "special values");
}

// -- layers -----------------------------------------------------------------------------------------------------------

// A sequence or a matrix in bfloat16, element by element where the float32 one is. Bytes between the rows are all ones.
class Halves {
   public:
    Halves(const float* from, int64_t count) : halves_(count) {
        for (int64_t i = 0; i < count; ++i) std::memcpy(halves_.data() + i, upper(from + i), sizeof(uint16_t));
    }
    void write_back(float* to, int64_t count) const {
        for (int64_t i = 0; i < count; ++i) {
            if (halves_.data()[i] != 0xffff) to[i] = widened(halves_.data()[i]);
        }
    }
    const void* data() const { return halves_.data(); }
    void* data() { return halves_.data(); }

   private:
    static const char* upper(const float* value) { return reinterpret_cast<const char*>(value) + 2; }
    Array<uint16_t> halves_;
};

struct Bfloat16Library {
    template <class T>
    using Reserve = T;
    template <class T>
    static constexpr fastrnn::DType dtype() {
        return dtype_of<T>();
    }
    static inline fastrnn::Kernels kernels;

    static int64_t extent(const fastrnn::Shape& s, int64_t time, int64_t batch, int64_t width) {
        if (s.rows == 0 || width == 0) return 0;
        return (s.packed ? (s.rows - 1) * batch : (s.time - 1) * time + (s.batch - 1) * batch) + width;
    }
    static void forward(fastrnn::ForwardParams& params) {
        const fastrnn::Shape& s = params.shape;
        const int64_t gates = fastrnn::gate_count(params.cell) * s.hidden;
        const int64_t width = s.projection ? s.projection : s.hidden;
        std::vector<Halves> kept;
        kept.reserve(8);
        const auto halve = [&](const void*& matrix, int64_t count) {
            if (!matrix) return;
            kept.emplace_back(static_cast<const float*>(matrix), count);
            matrix = kept.back().data();
        };
        for (int d = 0; d < s.directions; ++d) {
            halve(params.weights[d].w_ih, gates * s.input);
            halve(params.weights[d].w_hh, gates * width / s.heads);
            halve(params.weights[d].w_hr, width * s.hidden);
        }
        halve(params.x, extent(s, params.x_stride_time, params.x_stride_batch, s.input));
        auto* const y = static_cast<float*>(params.y);
        const int64_t count = extent(s, params.y_stride_time, params.y_stride_batch, s.directions * width);
        Halves half_y(y, count);
        params.y = half_y.data();
        params.format = fastrnn::WeightFormat::bfloat16;
        params.bfloat16_sequences = params.rounds_operands = true;
        const Bytes workspace(fastrnn::forward_workspace_bytes(params, kernels));
        params.workspace = workspace.get();
        fastrnn::forward(params, kernels);
        half_y.write_back(y, count);
    }
};

void round_all(std::vector<double>& values) {
    for (double& value : values) value = static_cast<double>(widened(upper_half(value)));
}

// sequences' own rounding, and where a product rounds what it multiplies that of states, which a step passes on
double largest_error(const std::vector<float>& got, const std::vector<double>& want) {
    double largest = got.size() == want.size() ? 0 : 1;
    for (size_t i = 0; i < got.size() && i < want.size(); ++i) {
        const double error = std::fabs(static_cast<double>(got[i]) - want[i]) / std::fmax(1.0, std::fabs(want[i]));
        largest = error <= largest ? largest : error;
    }
    return largest;
}

void test(const Problem& p) {
    Tensors given = random_tensors(p);
    round_all(given.x);
    for (int d = 0; d < p.directions; ++d) {
        for (auto* matrix : {&given.weights[d].w_ih, &given.weights[d].w_hh, &given.weights[d].w_hr})
            round_all(*matrix);
    }
    const Reference reference(p, given);
    const bool rounds = Bfloat16Library::kernels.unit && p.batch > 3;
    const double of_states = !rounds ? 5e-6 : p.projection ? 2 * kUnit : kUnit;  // a projection is one product more
    for (Layout layout : {Layout::gapped, Layout::ragged}) {
        if (layout == Layout::ragged && p.batch_sizes.empty()) continue;
        Results<float> alone;
        for (int threads : {1, 2, 3}) {
            const std::string where = p.name() + "-threads" + std::to_string(threads);
            Results<float> results;
            Runner<float, Bfloat16Library>(p, given, layout, threads).forward(false, results);
            CHECK(largest_error(results.y, reference.outputs.y) <= kUnit + of_states, where + " y");
            CHECK(largest_error(results.h_n, reference.outputs.h_n) <= of_states, where + " h_n");
            CHECK(largest_error(results.c_n, reference.outputs.c_n) <= 2 * of_states, where + " c_n");
            CHECK(results.kept_gaps, where);
            if (threads == 1) alone = results;
            CHECK(Runner<float>::same_bytes(alone.y, results.y) && Runner<float>::same_bytes(alone.c_n, results.c_n),
                  where + " as with one thread");
        }
    }
}

void test_layers() {
    struct LayerSize {
        int64_t time, batch, input, hidden, projection;
    };
    const LayerSize sizes[] = {{1, 1, 1, 1, 1},    {4, 1, 5, 7, 3},     {5, 3, 6, 17, 18},   {3, 7, 4, 33, 5},
                               {2, 0, 3, 5, 2},    {3, 5, 0, 9, 4},     {2, 6, 37, 65, 9},   {1, 20, 33, 40, 17},
                               {12, 5, 40, 97, 7}, {3, 33, 31, 80, 64}, {2, 101, 64, 33, 20}};
    for (const LayerSize& s : sizes) {
        for (Cell cell : {Cell::lstm, Cell::gru, Cell::gru_reset_before, Cell::rnn}) {
            for (int64_t projection : {int64_t{0}, s.projection}) {
                if (projection && cell != Cell::lstm) continue;
                test({cell, Activation::tanh, s.time, s.batch, s.input, s.hidden, projection, 2, {}, true, true});
            }
            if (s.batch < 2) continue;
            std::vector<int64_t> falling;
            for (int64_t t = 0; t < s.time; ++t) falling.push_back(s.batch - (s.batch - 1) * t / s.time);
            test({cell, Activation::tanh, s.time, s.batch, s.input, s.hidden, 0, 1, falling, true, true});
        }
    }
    for (Cell cell : {Cell::lstm, Cell::gru}) {
        test({cell, Activation::tanh, 5, 20, 9, 192, 0, 2, {}, true, true, 3});
        test({cell, Activation::tanh, 4, 6, 9, 40, 0, 2, {}, true, false, 1, true, true, cell == Cell::lstm});
    }
    test({Cell::lstm_layer_norm, Activation::tanh, 4, 18, 9, 40, 0, 1, {}, true, true});
}

}  // namespace

int main(int argc, char** argv) {
    const std::string isa = argc > 1 ? argv[1] : "generic";
    const bool emulated = isa == "emulated";
    if (emulated) {
        test_products(fastrnn::kTileUnit);
        test_rounding(fastrnn::kTileUnit);
    }
    const char* const base = emulated ? "avx512" : isa.c_str();
    if (!fastrnn::isa_supported(base)) {
        std::printf("this build or CPU has no %s\n", base);
        return emulated ? finish() : 77;
    }
    fastrnn::force_isa(base);
    Bfloat16Library::kernels = fastrnn::active_kernels();
    if (emulated) Bfloat16Library::kernels.unit = &fastrnn::kTileUnit;
    if (const Bfloat16Unit* unit = Bfloat16Library::kernels.unit; unit && !emulated) {
        test_products(*unit);
        test_rounding(*unit);
    }
    test_layers();
    return finish();
}
