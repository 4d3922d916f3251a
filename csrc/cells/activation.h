// The functions that a candidate or an output may use. The derivative is taken from the function's own value, so
// that nothing else need be kept. sigmoid, tanh, fma, select and absolute come from the engine's value type V.
#pragma once

#include "inline.h"

namespace fastrnn {
namespace {

struct TanhActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        return tanh(x);
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return V(1) - y * y;
    }
};

struct SoftsignActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        return x / (V(1) + absolute(x));
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        const V rest = V(1) - absolute(y);  // 1 / (1 + |x|)
        return rest * rest;
    }
};

struct ReluActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        return select(x < V(0), V(0), x);  // NaN stays NaN
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return select(y <= V(0), V(0), V(1));
    }
};

struct HardtanhActivation {
    template <class V>
    static FASTRNN_INLINE V apply(V x) {
        const V lower = select(x < V(-1), V(-1), x);
        return select(lower > V(1), V(1), lower);
    }
    template <class V>
    static FASTRNN_INLINE V derivative(V y) {
        return select(absolute(y) >= V(1), V(0), V(1));
    }
};

}  // namespace
}  // namespace fastrnn
