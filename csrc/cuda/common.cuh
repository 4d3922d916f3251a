// The value type of the shared cells on the device: a scalar. Included before the cells, which find these names by it.
#pragma once

#include <cstdint>

#include "../cells/inline.h"

namespace fastrnn {
namespace {

FASTRNN_INLINE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FASTRNN_INLINE double fma(double a, double b, double c) { return ::fma(a, b, c); }
FASTRNN_INLINE float tanh(float x) { return ::tanhf(x); }
FASTRNN_INLINE double tanh(double x) { return ::tanh(x); }
FASTRNN_INLINE float sigmoid(float x) { return 1.0f / (1.0f + ::expf(-x)); }
FASTRNN_INLINE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
FASTRNN_INLINE float absolute(float x) { return ::fabsf(x); }
FASTRNN_INLINE double absolute(double x) { return ::fabs(x); }
template <class T>
FASTRNN_INLINE T select(bool condition, T yes, T no) {
    return condition ? yes : no;
}

}  // namespace
}  // namespace fastrnn
