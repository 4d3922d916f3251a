// Reverse-mode differentiation of scalar double arithmetic, so that a formula written once gives its own gradients.
#pragma once

#include <cmath>
#include <vector>

namespace fastrnn_test {

struct Node {
    int parents[2];  // -1: none
    double slopes[2];
};

inline std::vector<Node> tape;

class Var {
   public:
    Var(double value = 0) : value_(value), node_(-1) {}  // a constant
    Var(double value, Var a, double slope_a, Var b = {}, double slope_b = 0)
        : value_(value), node_(static_cast<int>(tape.size())) {
        tape.push_back({{a.node_, b.node_}, {slope_a, slope_b}});
    }
    static Var leaf(double value) { return Var(value, Var(), 0); }

    double value() const { return value_; }
    int node() const { return node_; }

   private:
    double value_;
    int node_;
};

inline Var operator+(Var a, Var b) { return {a.value() + b.value(), a, 1, b, 1}; }
inline Var operator-(Var a, Var b) { return {a.value() - b.value(), a, 1, b, -1}; }
inline Var operator*(Var a, Var b) { return {a.value() * b.value(), a, b.value(), b, a.value()}; }

inline Var sigmoid(Var x) {
    const double y = 1 / (1 + std::exp(-x.value()));
    return {y, x, y * (1 - y)};
}
inline Var tanh(Var x) {
    const double y = std::tanh(x.value());
    return {y, x, 1 - y * y};
}
inline Var exp(Var x) {
    const double y = std::exp(x.value());
    return {y, x, y};
}
inline Var log_sigmoid(Var x) {
    const double y = std::fmin(x.value(), 0) - std::log1p(std::exp(-std::fabs(x.value())));
    return {y, x, 1 - std::exp(y)};
}
inline Var reciprocal(Var x) {
    const double y = 1 / x.value();
    return {y, x, -y * y};
}
inline Var softsign(Var x) {
    const double rest = 1 / (1 + std::fabs(x.value()));
    return {x.value() * rest, x, rest * rest};
}
inline Var reciprocal_root(Var x) {
    const double y = 1 / std::sqrt(x.value());
    return {y, x, -0.5 * y * y * y};
}
inline Var relu(Var x) { return x.value() > 0 ? x : Var(0.0); }
inline Var clamp(Var x, double low, double high) {
    return x.value() < low ? Var(low) : x.value() > high ? Var(high) : x;
}
inline Var hardtanh(Var x) { return std::fabs(x.value()) < 1 ? x : Var(x.value() > 0 ? 1.0 : -1.0); }

// slopes of the sum of seed * value over all (node, seed) with respect to every node
inline std::vector<double> gradients(const std::vector<std::pair<int, double>>& seeds) {
    std::vector<double> slopes(tape.size(), 0.0);
    for (const auto& [node, seed] : seeds) {
        if (node >= 0) slopes[static_cast<size_t>(node)] += seed;
    }
    for (size_t i = tape.size(); i-- > 0;) {
        for (int side = 0; side < 2; ++side) {
            const int parent = tape[i].parents[side];
            if (parent >= 0) slopes[static_cast<size_t>(parent)] += slopes[i] * tape[i].slopes[side];
        }
    }
    return slopes;
}

}  // namespace fastrnn_test
