// The cell that the tests add (toy/masked_indrnn.h), with operands of every kind, against loops in double precision, on
// one instruction set: test_toy ISA.
#include <cmath>

#include "buffers.h"
#include "check.h"
#include "runner.h"

using namespace fastrnn_test;
using fastrnn::Activation;
using fastrnn::Cell;

namespace {

// which of the mask's strides are not 0
struct Kind {
    bool by_time, by_row;
};

double activate(Activation activation, double x) {
    return activation == Activation::relu ? (x > 0 ? x : 0) : std::tanh(x);
}
double slope(Activation activation, double y) { return activation == Activation::relu ? (y > 0 ? 1 : 0) : 1 - y * y; }

struct Values {
    std::vector<double> y, h_n, d_x, d_h0, d_w_ih[2], d_b_ih[2], d_u[2];
};

// what the operands hold: u [D][H] and m [D][T, B, H]
struct Operands {
    std::vector<double> u[2], m[2];
};

size_t at(int64_t index) { return static_cast<size_t>(index); }

double mask_of(const Problem& p, const Operands& o, Kind kind, int d, int64_t t, int64_t b, int64_t unit) {
    return o.m[d][at(((kind.by_time ? t : 0) * p.batch + (kind.by_row ? b : 0)) * p.hidden + unit)];
}

Values reference(const Problem& p, const Tensors& given, const Operands& o, Kind kind) {
    const int64_t H = p.hidden, I = p.input, D = p.directions;
    Values v;
    v.y.resize(at(p.rows() * D * H));
    v.h_n.resize(at(D * p.batch * H));
    v.d_x.resize(at(p.rows() * I));
    v.d_h0.resize(v.h_n.size());
    for (int d = 0; d < D; ++d) {
        const Tensors::Direction& w = given.weights[d];
        v.d_w_ih[d].resize(w.w_ih.size());
        v.d_b_ih[d].resize(w.b_ih.size());
        v.d_u[d].resize(at(H));
        for (int64_t b = 0; b < p.batch; ++b) {
            for (int64_t j = 0; j < H; ++j) {
                const int64_t state = (d * p.batch + b) * H + j, length = p.length(b);
                const auto time = [&](int64_t i) { return d ? length - 1 - i : i; };
                const auto y_at = [&](int64_t i) { return at((p.row_of(time(i), b) * D + d) * H + j); };
                std::vector<double> before{p.states ? given.h0[at(state)] : 0};
                for (int64_t i = 0; i < length; ++i) {
                    double sum = w.b_ih.empty() ? 0 : w.b_ih[at(j)];
                    for (int64_t k = 0; k < I; ++k) {
                        sum += w.w_ih[at(j * I + k)] * given.x[at(p.row_of(time(i), b) * I + k)];
                    }
                    const double m = mask_of(p, o, kind, d, time(i), b, j);
                    before.push_back(activate(p.activation, sum + o.u[d][at(j)] * m * before.back()));
                    v.y[y_at(i)] = before.back();
                }
                v.h_n[at(state)] = before.back();
                double d_h = given.h_n[at(state)];
                for (int64_t i = length - 1; i >= 0; --i) {
                    const double m = mask_of(p, o, kind, d, time(i), b, j);
                    const double d_sum = (d_h + given.y[y_at(i)]) * slope(p.activation, before[at(i + 1)]);
                    for (int64_t k = 0; k < I; ++k) {
                        const size_t x = at(p.row_of(time(i), b) * I + k);
                        v.d_w_ih[d][at(j * I + k)] += d_sum * given.x[x];
                        v.d_x[x] += d_sum * w.w_ih[at(j * I + k)];
                    }
                    if (!w.b_ih.empty()) v.d_b_ih[d][at(j)] += d_sum;
                    v.d_u[d][at(j)] += d_sum * m * before[at(i)];
                    d_h = d_sum * o.u[d][at(j)] * m;
                }
                v.d_h0[at(state)] = d_h;
            }
        }
    }
    return v;
}

template <class T>
void compare(const std::vector<T>& got, const std::vector<double>& want, const std::string& where) {
    if (got.size() != want.size()) return CHECK(got.size() == want.size(), where);
    double scale = 1;
    for (double value : want) scale = std::fmax(scale, std::fabs(value));
    for (size_t i = 0; i < got.size(); ++i) {
        const double off = std::fabs(static_cast<double>(got[i]) - want[i]);
        const bool close = off <= (sizeof(T) == sizeof(double) ? 1e-14 : 5e-6) * scale;
        if (!close) return CHECK(close, where + "[" + std::to_string(i) + "] is off by " + std::to_string(off));
    }
    CHECK(true, where);
}

template <class T>
void test(const Problem& p, Kind kind, Layout layout, int threads) {
    const Tensors given = random_tensors(p);
    Random random(7);
    Operands o;
    for (int d = 0; d < p.directions; ++d) {
        o.u[d] = random(p.hidden, 1);
        o.m[d] = random((kind.by_time ? p.time : 1) * (kind.by_row ? p.batch : 1) * p.hidden, 1);
        // rows of the mask are as far apart as its kind says: [T or 1, B or 1, H]
        if (kind.by_time && !kind.by_row) {
            std::vector<double> wide(at(p.time * p.batch * p.hidden));
            for (int64_t t = 0; t < p.time; ++t) {
                std::copy_n(o.m[d].begin() + t * p.hidden, p.hidden, wide.begin() + t * p.batch * p.hidden);
            }
            o.m[d] = wide;
        }
    }
    const Values want = reference(p, given, o, kind);
    std::vector<Array<T>> u, m, d_u;
    for (int d = 0; d < p.directions; ++d) {
        u.emplace_back(o.u[d]);
        std::vector<double> placed = o.m[d];
        for (int64_t t = 0; t < (kind.by_time ? p.time : 1) && kind.by_row; ++t) {
            for (int64_t b = 0; b < p.batch; ++b) {
                std::copy_n(o.m[d].begin() + (t * p.batch + b) * p.hidden, p.hidden,
                            placed.begin() + (t * p.batch + place_of(p, layout, b)) * p.hidden);
            }
        }
        m.emplace_back(placed);
        d_u.emplace_back(p.hidden);
    }
    const auto fill = [&](auto& params) {
        for (int d = 0; d < p.directions; ++d) {
            fastrnn::Weights& w = params.weights[d];
            w.w_hh = w.b_hh = nullptr;  // there is no product with h
            w.operands[0] = {u[at(d)].data(), 0, 0};
            w.operands[1] = {m[at(d)].data(), kind.by_time ? p.batch * p.hidden : 0, kind.by_row ? p.hidden : 0};
        }
    };
    Results<T> got;
    Runner<T> runner(p, given, layout, threads);
    runner.forward(true, got, fill);
    runner.backward(given, {}, got, [&](fastrnn::BackwardParams& params) {
        fill(params);
        for (int d = 0; d < p.directions; ++d) {
            params.d_weights[d].d_w_hh = params.d_weights[d].d_b_hh = nullptr;
            params.d_weights[d].d_operands[0] = d_u[at(d)].data();
        }
    });
    const std::string where = p.name() + (sizeof(T) == sizeof(double) ? "-f64" : "-f32") + "-layout" +
                              std::to_string(static_cast<int>(layout)) + "-mask" + std::to_string(kind.by_time) +
                              std::to_string(kind.by_row) + "-threads" + std::to_string(threads);
    compare(got.y, want.y, where + " y");
    compare(got.h_n, want.h_n, where + " h_n");
    compare(got.d_x, want.d_x, where + " d_x");
    compare(got.d_h0, want.d_h0, where + " d_h0");
    for (int d = 0; d < p.directions; ++d) {
        compare(got.d_weights[5 * d], want.d_w_ih[d], where + " d_w_ih");
        if (p.biases) compare(got.d_weights[5 * d + 2], want.d_b_ih[d], where + " d_b_ih");
        compare(d_u[at(d)].values(), want.d_u[d], where + " d_u");
    }
    CHECK(got.kept_inputs && got.kept_gaps, where);
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
        int64_t time, batch, input, hidden;
    };
    int count = 0;
    for (const Size& s :
         {Size{1, 1, 1, 1}, {4, 1, 5, 7}, {5, 3, 6, 17}, {3, 7, 4, 33}, {150, 5, 1, 12}, {12, 9, 90, 277}}) {
        for (Kind kind : {Kind{false, false}, {false, true}, {true, false}, {true, true}}) {
            for (Layout layout : {Layout::time_major, Layout::gapped, Layout::ragged}) {
                for (int directions : {1, 2}) {
                    std::vector<int64_t> sizes;
                    for (int64_t t = 0; t < s.time && layout != Layout::time_major; ++t) {
                        sizes.push_back(s.batch - (s.batch - 1) * t / s.time);
                    }
                    const auto activation = ++count % 2 ? Activation::relu : Activation::tanh;
                    const Problem p{
                        Cell::masked_indrnn, activation, s.time,         s.batch,       s.input, s.hidden, 0,
                        directions,          sizes,      count % 3 != 0, count % 4 != 1};
                    test<float>(p, kind, layout, 1 + count % 3);
                    test<double>(p, kind, layout, 1 + count % 3);
                }
            }
        }
    }
    return finish();
}
