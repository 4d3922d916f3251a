// The vectors' exp, sigmoid, its logarithm and tanh against the C library in double precision, on one instruction set:
// test_math ISA takes a dense sample of the floats, test_math ISA all takes every float (minutes).
#include <omp.h>

#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/target.h"

namespace {

using fastrnn::MathFunction;

// The largest errors in units in the last place: float over all 2^32 inputs, double over the sample below.
struct MaxUlp {
    MathFunction function;
    const char* name;
    double in_float, in_double;
};
constexpr MaxUlp kMaxUlp[] = {{MathFunction::sigmoid, "sigmoid", 2.5, 2.5},
                              {MathFunction::tanh, "tanh", 3.5, 3.2},
                              {MathFunction::exp, "exp", 1.5, 1.5},
                              {MathFunction::log_sigmoid, "log_sigmoid", 3.5, 3.5}};

constexpr int64_t kBlock = 1 << 16;

template <class Wide>
Wide exact(MathFunction function, Wide x) {
    switch (function) {
        case MathFunction::tanh: return std::tanh(x);
        case MathFunction::exp: return std::exp(-std::fabs(x));
        case MathFunction::log_sigmoid: return std::fmin(x, Wide(0)) - std::log1p(std::exp(-std::fabs(x)));
        default: return 1 / (1 + std::exp(-x));
    }
}

// |got - want| in units in the last place of T; below the smallest normal number, where zero is allowed, in that
// number's
template <class T, class Wide>
double error_in_ulp(T got, Wide want) {
    if (std::isnan(want)) return std::isnan(got) ? 0 : HUGE_VAL;
    const Wide magnitude = std::fabs(want);
    if (magnitude < std::numeric_limits<T>::min())
        return std::fabs(static_cast<Wide>(got)) <= std::numeric_limits<T>::min() ? 0 : HUGE_VAL;
    int exponent;
    std::frexp(magnitude, &exponent);
    return static_cast<double>(std::fabs(static_cast<Wide>(got) - want) /
                               std::ldexp(static_cast<Wide>(1), exponent - std::numeric_limits<T>::digits));
}

// input(i) for i in [0, count), the largest error
template <class T, class Wide, class Input, class Evaluate>
double largest_error(MathFunction function, int64_t count, const Input& input, const Evaluate& evaluate) {
    double largest = 0;
#pragma omp parallel for reduction(max : largest) schedule(dynamic)
    for (int64_t begin = 0; begin < count; begin += kBlock) {
        const int64_t size = count - begin < kBlock ? count - begin : kBlock;
        std::vector<T> in(static_cast<size_t>(size)), out(static_cast<size_t>(size));
        for (int64_t i = 0; i < size; ++i) in[static_cast<size_t>(i)] = input(begin + i);
        evaluate(function, in.data(), out.data(), size);
        for (size_t i = 0; i < in.size(); ++i) {
            largest = std::fmax(largest, error_in_ulp(out[i], exact(function, static_cast<Wide>(in[i]))));
        }
    }
    return largest;
}

float float_of_bits(int64_t bits) {
    const auto narrow = static_cast<uint32_t>(bits);
    float value;
    std::memcpy(&value, &narrow, sizeof value);
    return value;
}

template <class T>
void test_special_values(const MaxUlp& f, void (*evaluate)(MathFunction, const T*, T*, int64_t)) {
    const T inf = std::numeric_limits<T>::infinity(), max = std::numeric_limits<T>::max();
    const T in[] = {-inf, inf, -max, max, T(0), -T(0), std::numeric_limits<T>::quiet_NaN()};
    T out[7];
    evaluate(f.function, in, out, 7);
    for (int i = 0; i < 6; ++i) {
        const T want = static_cast<T>(exact(f.function, static_cast<long double>(in[i])));
        const bool close = std::fabs(out[i] - want) <=
                           (std::fabs(want) < 1 && want != 0 ? f.in_double : 1) *
                               (want == 0 ? std::numeric_limits<T>::min() : std::numeric_limits<T>::epsilon() / 2);
        CHECK(out[i] == want || close, std::string(f.name) + " of special " + std::to_string(i));
    }
    CHECK(std::isnan(out[6]), f.name);
}

void report(const char* name, const char* type, double error, double limit) {
    std::printf("%-11s %-7s largest error %.3f ulp, stated %.3f\n", name, type, error, limit);
    CHECK(error <= limit, std::string(name) + " in " + type);
}

}  // namespace

int main(int argc, char** argv) {
    const char* isa = argc > 1 ? argv[1] : "generic";
    const bool all = argc > 2 && std::strcmp(argv[2], "all") == 0;
    if (!fastrnn::isa_supported(isa)) {
        std::printf("this build or CPU has no %s\n", isa);
        return 77;
    }
    fastrnn::force_isa(isa);
    const fastrnn::Passes& kernels = *fastrnn::active_kernels().passes;
    for (const MaxUlp& f : kMaxUlp) {
        const int64_t step = all ? 1 : 1021;
        const double in_float = largest_error<float, double>(
            f.function, (int64_t{1} << 32) / step, [step](int64_t i) { return float_of_bits(i * step); },
            kernels.evaluate_float);
        report(f.name, "float", in_float, f.in_float);
        const int64_t samples = all ? 1 << 26 : 1 << 20;
        const double in_double = largest_error<double, long double>(
            f.function, samples,
            [samples](int64_t i) {  // half of them evenly in [-40, 40], half evenly in the exponent
                const double at = static_cast<double>(i) / static_cast<double>(samples) * 2 - 1;
                return i % 2 ? at * 40 : std::copysign(std::exp2(40 - 700 * std::fabs(at)), at);
            },
            kernels.evaluate_double);
        report(f.name, "double", in_double, f.in_double);
        test_special_values(f, kernels.evaluate_float);
        test_special_values(f, kernels.evaluate_double);
    }
    return fastrnn_test::finish();
}
