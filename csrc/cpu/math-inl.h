// exp, sigmoid, its logarithm and tanh of a vector, for float and double.
//
// Method: x = n ln2 + r with |r| <= ln2 / 2; e^r - 1 = r q(r) with q a Chebyshev interpolant of (e^r - 1) / r
// (relative error 1.3e-8 in float, 2.2e-17 in double); then 2^n by its bits. Working with e^r - 1 keeps tanh
// accurate near zero without a second range.
//
// The largest errors, over all 2^32 float inputs, are in kMaxUlp of tests/csrc/test_math.cpp, which checks them.
// Results under the smallest normal number may be flushed to zero. NaN gives NaN; -inf and +inf give the exact limits.
#pragma once

#include "vec.h"

namespace fastrnn {
namespace {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
    static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    static constexpr int kExponentBits = 23, kExponentBias = 127;
    static constexpr float kLowest = -87.0f;  // e^x stays a normal number
    static constexpr float kHighest = 89.0f;  // n = 128 gives 2^n = inf, as it must beyond 88.73
    static constexpr float kTanhFlat = 10.0f;
    static constexpr float kQ[] = {1.000000011f,   0.5000000014f,   0.16666502f,
                                   0.04166646094f, 0.008369508219f, 0.001393409035f};
};

template <>
struct ExpConstants<double> {
    static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
    static constexpr int kExponentBits = 52, kExponentBias = 1023;
    static constexpr double kLowest = -708.0;
    static constexpr double kHighest = 710.0;
    static constexpr double kTanhFlat = 20.0;
    static constexpr double kQ[] = {1.0,
                                    0.5000000000000005904,
                                    0.1666666666666667121,
                                    0.04166666666656933378,
                                    0.008333333333325847985,
                                    0.001388888893381381305,
                                    0.0001984126987581957906,
                                    0.00002480150267412631339,
                                    2.755725413931689046e-6,
                                    2.76270501551510515e-7,
                                    2.510573921958671297e-8};
};

// e^x = scale * (1 + expm1_r), for kLowest <= x <= kHighest or NaN
template <class T>
struct SplitExp {
    Vec<T> scale, expm1_r;
};

template <class T>
FASTRNN_INLINE SplitExp<T> split_exp(Vec<T> x) {
    using C = ExpConstants<T>;
    using V = Vec<T>;
    const V round{C::kRound};
    const V shifted = fma(x, V{T(1.44269504088896340736)}, round);
    const V n = shifted - round;
    V r = fma(n, V{-C::kLn2High}, x);
    r = fma(n, V{-C::kLn2Low}, r);
    constexpr int kTerms = sizeof(C::kQ) / sizeof(T);
    V q{C::kQ[kTerms - 1]};
#pragma GCC unroll 16
    for (int i = kTerms - 2; i >= 0; --i) q = fma(q, r, V{C::kQ[i]});
    const auto bits = (reinterpret_cast<typename V::Bits>(shifted.raw) + C::kExponentBias) << C::kExponentBits;
    return {reinterpret_cast<typename V::Raw>(bits), q * r};
}

// 1 / (1 + e^-x)
template <class T>
FASTRNN_INLINE Vec<T> sigmoid(Vec<T> x) {
    using C = ExpConstants<T>;
    const Vec<T> zero{T(0)}, one{T(1)};
    const SplitExp<T> e = split_exp(smaller(Vec<T>{C::kHighest}, larger(Vec<T>{C::kLowest}, zero - x)));
    return one / fma(e.scale, one + e.expm1_r, one);
}

// e^x of an x that is not above zero; a unit below kLowest 2^n is zero
template <class T>
FASTRNN_INLINE Vec<T> exp(Vec<T> x) {
    using C = ExpConstants<T>;
    const SplitExp<T> e = split_exp(larger(Vec<T>{C::kLowest - 1}, x));
    return fma(e.scale, e.expm1_r, e.scale);
}

// log(1 / (1 + e^-x)) = min(x, 0) - log(1 + e^-|x|), the latter as 2 atanh(e / (2 + e)) by its series in
// (e / (2 + e))^2 <= 1/9
template <class T>
FASTRNN_INLINE Vec<T> log_sigmoid(Vec<T> x) {
    constexpr int kTerms = sizeof(T) == sizeof(float) ? 8 : 17;
    const Vec<T> zero{T(0)}, e = exp(zero - absolute(x)), s = e / (e + Vec<T>{T(2)}), square = s * s;
    Vec<T> sum{T(2) / (2 * kTerms - 1)};
#pragma GCC unroll 16
    for (int i = kTerms - 2; i >= 0; --i) sum = fma(sum, square, Vec<T>{T(2) / (2 * i + 1)});
    return select(x < zero, x, zero) - s * sum;
}

// (e^2|x| - 1) / (e^2|x| + 1) with the sign of x; from 1/2 on as 1 - 2 / (e^2|x| + 1), whose rounding a derivative
// 1 - y^2 near saturation multiplies
template <class T>
FASTRNN_INLINE Vec<T> tanh(Vec<T> x) {
    using C = ExpConstants<T>;
    const Vec<T> one{T(1)}, two{T(2)};
    const SplitExp<T> e = split_exp(smaller(Vec<T>{2 * C::kTanhFlat}, absolute(x + x)));
    const Vec<T> expm1 = fma(e.scale, e.expm1_r, e.scale - one);
    const auto small = expm1 < two;
    const Vec<T> part = select(small, expm1, two) / (expm1 + two);
    return with_sign(select(small, part, one - part), x);
}

}  // namespace
}  // namespace fastrnn
