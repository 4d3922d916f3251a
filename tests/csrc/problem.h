// One layer with its inputs and incoming gradients, and what a loop over scalars in double precision makes of it.
// Arrays are dense in the order of the shapes in kernels.h; sequences are [N, features] with row (t, b) at row_of(t,
// b).
#pragma once

#include <string>
#include <vector>

#include "fastrnn/kernels.h"
#include "random.h"
#include "tape.h"

namespace fastrnn_test {

using fastrnn::Activation;
using fastrnn::Cell;

struct Problem {
    Cell cell;
    Activation activation;
    int64_t time, batch, input, hidden, projection;
    int directions;
    std::vector<int64_t> batch_sizes;  // empty: not packed
    bool biases, states;               // states: h0 and c0 are given
    int64_t heads = 1;
    bool masked = false;  // there is a recurrent mask
    bool resets = false, cell_states = false;
    Activation gate = Activation::sigmoid;
    unsigned given = 0;  // bit i: operand i is there, of those that the cell may do without

    int64_t gates() const { return fastrnn::gate_count(cell) * hidden; }
    int64_t recurrent() const { return projection ? projection : hidden; }
    int64_t head_length() const { return recurrent() / heads; }
    int64_t cell_width() const { return fastrnn::cell_width(cell, hidden); }
    bool has_c() const { return fastrnn::has_cell_state(cell); }
    bool layer_norm() const {
        return cell == Cell::lstm_layer_norm || cell == Cell::gru_layer_norm || cell == Cell::rnn_layer_norm;
    }
    const fastrnn::CellInfo& info() const { return fastrnn::cell_info(cell); }
    fastrnn::Functions functions() const { return {activation, gate}; }
    bool coupled() const { return cell == Cell::lstm_coupled; }
    int operands() const { return info().operands; }
    int learned() const { return info().learned; }
    bool has(int operand) const { return operand < info().required || (given >> operand & 1); }
    // the operands behind the parameters: what zones out h and c, and the bound of c
    int zone_h() const { return learned(); }
    int zone_c() const { return learned() + 1; }
    int bound() const { return operands() - 1; }
    bool is_zone(int operand) const { return operand == zone_h() || (has_c() && operand == zone_c()); }
    int64_t operand_size(int index) const {
        if (!has(index)) return 0;
        return index < info().gate_operands ? gates() : is_zone(index) ? time * batch * hidden : hidden;
    }
    int64_t rows() const {
        if (batch_sizes.empty()) return time * batch;
        int64_t rows = 0;
        for (int64_t size : batch_sizes) rows += size;
        return rows;
    }
    int64_t length(int64_t b) const {
        int64_t length = 0;
        for (int64_t size : batch_sizes) length += size > b;
        return batch_sizes.empty() ? time : length;
    }
    int64_t row_of(int64_t t, int64_t b) const {
        if (batch_sizes.empty()) return t * batch + b;
        int64_t row = b;
        for (int64_t i = 0; i < t; ++i) row += batch_sizes[static_cast<size_t>(i)];
        return row;
    }
    // whether the state of row b is zero before the step at t
    bool is_reset(int64_t t, int64_t b) const { return resets && (t * 7 + b * 5) % 3 == 0; }
    std::string name() const {
        std::string text = std::string(fastrnn::cell_info(cell).name) + "-";
        text += fastrnn::kActivations[static_cast<int>(activation)];
        if (gate != Activation::sigmoid) text += std::string("-") + fastrnn::kActivations[static_cast<int>(gate)];
        for (int i = 0; i < operands(); ++i) text += given >> i & 1 ? "-o" + std::to_string(i) : "";
        text += "-B" + std::to_string(batch) + "-T" + std::to_string(time) + "-I" + std::to_string(input);
        text += "-H" + std::to_string(hidden) + (projection ? "-P" + std::to_string(projection) : "");
        text += masked ? "-masked" : "";
        text += heads > 1 ? "-heads" + std::to_string(heads) : "";
        return text + (directions == 2 ? "-bi" : "") + (batch_sizes.empty() ? "" : "-packed") +
               (biases ? "" : "-nobias") + (states ? "" : "-nostate") + (resets ? "-resets" : "") +
               (cell_states ? "-cells" : "");
    }
};

// values of every tensor, or their gradients
struct Tensors {
    struct Direction {
        std::vector<double> w_ih, w_hh, b_ih, b_hh, w_hr;
        std::vector<double> operands[fastrnn::kMaxOperands];
        std::vector<double> recurrent_mask = {};  // [B, R], or empty
    };
    Direction weights[2];
    std::vector<double> x, h0, c0, y, h_n, c_n, cell_states;
};

// the layer's arguments; y, h_n, c_n and cell_states hold the gradients that come in
inline Tensors random_tensors(const Problem& p) {
    Random random(static_cast<uint64_t>(p.hidden * 131 + p.input * 17 + p.batch));
    const double recurrent = std::exp2(std::floor(-std::log2(p.head_length()) / 2));  // states neither fade nor grow
    Tensors t;
    for (int d = 0; d < p.directions; ++d) {
        t.weights[d] = {random(p.gates() * p.input, 0.25),
                        random(p.info().recurrent ? p.gates() * p.head_length() : 0, recurrent),
                        random(p.biases ? p.gates() : 0, 1),
                        random(p.biases && p.info().recurrent ? p.gates() : 0, 1),
                        random(p.projection * p.hidden, 0.5),
                        {}};
        for (int i = 0; i < p.operands(); ++i) {
            t.weights[d].operands[i] = random(p.operand_size(i), 1);
            for (double& value : t.weights[d].operands[i]) {
                if (i >= p.learned()) value = p.is_zone(i) ? (value + 1) / 2 : 0.5 + value / 4;
            }
        }
        t.weights[d].recurrent_mask = random(p.masked ? p.batch * p.recurrent() : 0, 1);
    }
    const int64_t states = p.directions * p.batch;
    t.x = random(p.rows() * p.input, 2);
    t.h0 = random(p.states ? states * p.recurrent() : 0, 1);
    t.c0 = random(p.states && p.has_c() ? states * p.cell_width() : 0, 1);
    for (size_t i = 0; i < t.c0.size() && p.info().memories == 3; ++i) {  // n is above zero
        const size_t unit = i % static_cast<size_t>(3 * p.hidden), hidden = static_cast<size_t>(p.hidden);
        if (unit >= hidden && unit < 2 * hidden) t.c0[i] = std::fabs(t.c0[i]) + 0.5;
    }
    t.y = random(p.rows() * p.directions * p.recurrent(), 1);
    t.h_n = random(states * p.recurrent(), 1);
    t.c_n = random(p.has_c() ? states * p.cell_width() : 0, 1);
    t.cell_states = random(p.cell_states ? p.rows() * p.directions * p.hidden : 0, 1);
    return t;
}

class Reference {
   public:
    // outputs: y, h_n, c_n and cell_states of the layer; gradients: of x, h0, c0 and the weights
    Tensors outputs, gradients;

    Reference(const Problem& p, const Tensors& given) : p_(p) {
        tape.clear();
        const std::vector<Var> x = leaves(given.x);
        const std::vector<Var> h0 = leaves(p.states ? given.h0 : zeros(p.directions * p.batch * p.recurrent()));
        const std::vector<Var> c0 =
            leaves(p.states && p.has_c() ? given.c0 : zeros(p.directions * p.batch * p.cell_width()));
        std::vector<Var> y(static_cast<size_t>(p.rows() * p.directions * p.recurrent()));
        std::vector<Var> h_n(h0.size()), c_n(c0.size());
        std::vector<Var> cells(static_cast<size_t>(p.rows() * p.directions * p.hidden));
        Weights weights[2];
        for (int d = 0; d < p.directions; ++d) {
            const Tensors::Direction& w = given.weights[d];
            weights[d] = {leaves(w.w_ih), leaves(w.w_hh), leaves(w.b_ih), leaves(w.b_hh), leaves(w.w_hr), {}};
            for (int i = 0; i < p.operands(); ++i) weights[d].operands[i] = leaves(w.operands[i]);
            for (int64_t b = 0; b < p.batch; ++b) {
                const int64_t state = d * p.batch + b;
                mask_ = p.masked ? w.recurrent_mask.data() + b * p.recurrent() : nullptr;
                given_ = &w;
                std::vector<Var> h = slice(h0, state, p.recurrent()), c = slice(c0, state, p.cell_width());
                for (int64_t i = 0; i < p.length(b); ++i) {
                    const int64_t t = d ? p.length(b) - 1 - i : i, row = p.row_of(t, b);
                    if (d ? i > 0 && p.is_reset(t + 1, b) : p.is_reset(t, b)) {
                        h.assign(h.size(), Var(0.0));
                        c.assign(c.size(), Var(0.0));
                    }
                    zone_row_ = (t * p.batch + b) * p.hidden;
                    step(weights[d], slice(x, row, p.input), h, c);
                    write(h, y, (row * p.directions + d) * p.recurrent());
                    if (p.cell_states) write(c, cells, (row * p.directions + d) * p.hidden);
                }
                write(h, h_n, state * p.recurrent());
                write(c, c_n, state * p.cell_width());
            }
        }
        outputs.y = values(y);
        outputs.h_n = values(h_n);
        if (p.has_c()) outputs.c_n = values(c_n);
        if (p.cell_states) outputs.cell_states = values(cells);

        std::vector<std::pair<int, double>> seeds;
        seed(y, given.y, seeds);
        seed(h_n, given.h_n, seeds);
        seed(c_n, given.c_n, seeds);
        seed(cells, given.cell_states, seeds);
        slopes_ = fastrnn_test::gradients(seeds);
        gradients.x = slopes(x);
        gradients.h0 = slopes(h0);
        if (p.has_c()) gradients.c0 = slopes(c0);
        for (int d = 0; d < p.directions; ++d) {
            const Weights& w = weights[d];
            gradients.weights[d] = {slopes(w.w_ih), slopes(w.w_hh), slopes(w.b_ih), slopes(w.b_hh), slopes(w.w_hr), {}};
            for (int i = 0; i < p.operands(); ++i) gradients.weights[d].operands[i] = slopes(w.operands[i]);
        }
    }

   private:
    using Vars = std::vector<Var>;
    struct Weights {
        Vars w_ih, w_hh, b_ih, b_hh, w_hr;
        Vars operands[fastrnn::kMaxOperands];
    };

    Var activate(Var x) const { return apply(p_.activation, x); }
    Var gate(Var x) const { return apply(p_.gate, x); }
    static Var apply(Activation activation, Var x) {
        switch (activation) {
            case Activation::softsign: return softsign(x);
            case Activation::relu: return relu(x);
            case Activation::hardtanh: return hardtanh(x);
            case Activation::sigmoid: return sigmoid(x);
            case Activation::identity: return x;
            case Activation::silu: return x * sigmoid(x);
            case Activation::leaky_relu: return x.value() > 0 ? x : x * Var(0.01);
            case Activation::hardsigmoid: return clamp(x * Var(1.0 / 6) + Var(0.5), 0, 1);
            case Activation::half_linear: return x.value() < 0 ? sigmoid(x) : x + Var(0.5);
            case Activation::onnx_hardsigmoid: return clamp(x * Var(0.2) + Var(0.5), 0, 1);
            default: return tanh(x);
        }
    }

    // what is carried on of a new state
    Var zone_out(int operand, int64_t unit, Var made, Var before) const {
        if (!p_.has(operand)) return made;
        const double z = given_->operands[operand][static_cast<size_t>(zone_row_ + unit)];
        return Var(z) * before + Var(1 - z) * made;
    }

    void step(const Weights& w, const Vars& x, Vars& h, Vars& c) const {
        const int64_t H = p_.hidden;
        const auto at = [](const Vars& v, int64_t i) { return v[static_cast<size_t>(i)]; };
        const Vars products_x = product(w.w_ih, w.b_ih, w.operands[0], x, 1);
        if (p_.cell == Cell::slstm || !p_.info().recurrent) return step_of_others(w, products_x, h, c);
        const Vars products_h = product(w.w_hh, w.b_hh, w.operands[1], masked(h), p_.heads);
        const auto from_x = [&](int64_t gate, int64_t u) { return at(products_x, gate * H + u); };
        const auto from_h = [&](int64_t gate, int64_t u) { return at(products_h, gate * H + u); };
        const bool is_gru = !p_.has_c() && p_.gates() == 3 * H, coupled = p_.coupled();
        const bool reset_before = p_.cell == Cell::gru_reset_before || p_.cell == Cell::gru_reset_before_options;
        const bool peeps = !p_.layer_norm() && p_.learned() > 0 && p_.has(0);
        const int of_g = coupled ? 1 : 2, of_o = of_g + 1;
        Vars outputs_of_c, made_c;
        Vars h_next, c_next, reset_h;
        if (reset_before) {
            for (int64_t u = 0; u < H; ++u) reset_h.push_back(gate(from_x(0, u) + from_h(0, u)) * at(h, u));
        }
        for (int64_t u = 0; u < H; ++u) {
            if (p_.has_c()) {
                const auto seen = [&](int operand, Var c) {
                    return peeps ? w.operands[operand][at_(u)] * c : Var(0.0);
                };
                const Var i = gate(from_x(0, u) + from_h(0, u) + seen(0, at(c, u)));
                const Var f = coupled ? Var(1.0) - i : gate(from_x(1, u) + from_h(1, u) + seen(1, at(c, u)));
                const Var g = activate(from_x(of_g, u) + from_h(of_g, u));
                Var made = f * at(c, u) + i * g;
                if (!p_.layer_norm() && p_.operands() && p_.has(p_.bound())) {
                    const double bound = given_->operands[p_.bound()][at_(u)];
                    made = clamp(made, -bound, bound);
                }
                made_c.push_back(made);
                outputs_of_c.push_back(gate(from_x(of_o, u) + from_h(of_o, u) + seen(of_o - 1, made)));
                c_next.push_back(zone_out(p_.zone_c(), u, made, at(c, u)));
            } else if (!is_gru) {
                h_next.push_back(activate(from_x(0, u) + from_h(0, u)));
            } else {
                const Var z = gate(from_x(1, u) + from_h(1, u));
                const Var n =
                    !reset_before
                        ? activate(from_x(2, u) + gate(from_x(0, u) + from_h(0, u)) * from_h(2, u))
                        : activate(from_x(2, u) + affine(w.w_hh, w.b_hh, 2 * H + u, masked(reset_h), p_.heads));
                h_next.push_back((Var(1.0) - z) * n + z * at(h, u));
            }
        }
        if (p_.has_c()) {
            c = c_next;
            const Vars shown = p_.layer_norm() ? layer_norm(made_c, w.operands[2], w.operands[3]) : made_c;
            for (int64_t u = 0; u < H; ++u) h_next.push_back(at(outputs_of_c, u) * activate(at(shown, u)));
        }
        for (int64_t u = 0; u < H && !p_.projection; ++u) {
            h_next[at_(u)] = zone_out(p_.zone_h(), u, at(h_next, u), at(h, u));
        }
        h = h_next;
        if (p_.projection) {
            h.clear();
            for (int64_t r = 0; r < p_.projection; ++r) h.push_back(affine(w.w_hr, {}, r, h_next, 1));
        }
    }

    // sLSTM, IndRNN, minGRU and minLSTM
    void step_of_others(const Weights& w, const Vars& products_x, Vars& h, Vars& c) const {
        const size_t H = at_(p_.hidden);
        const bool exponential = p_.cell == Cell::slstm;
        const Vars products_h = exponential ? product(w.w_hh, w.b_hh, {}, masked(h), p_.heads) : Vars();
        for (size_t u = 0; u < H; ++u) {
            const auto seen = [&](size_t gate) {
                return exponential ? products_x[gate * H + u] + products_h[gate * H + u] : products_x[gate * H + u];
            };
            if (p_.cell == Cell::indrnn) {
                h[u] = activate(seen(0) + w.operands[0][u] * h[u]);
            } else if (p_.cell == Cell::min_gru) {
                const Var z = sigmoid(seen(0));
                h[u] = (Var(1.0) - z) * h[u] + z * activate(seen(1));
            } else if (p_.cell == Cell::min_lstm) {
                const Var i = sigmoid(seen(0)), f = sigmoid(seen(1)), share = reciprocal(i + f);
                h[u] = f * share * h[u] + i * share * activate(seen(2));
            } else {
                Var &memory = c[u], &n = c[H + u], &m = c[2 * H + u];
                const Var to_f = log_sigmoid(seen(1)) + m, to_i = seen(0);
                m = n.value() > 0 && to_f.value() > to_i.value() ? to_f : to_i;
                const Var i = exp(to_i - m), exponent = to_f - m;
                const Var f = exp(exponent.value() > 0 ? Var(0.0) : exponent);
                memory = f * memory + i * tanh(seen(2));
                n = f * n + i;
                h[u] = sigmoid(seen(3)) * memory * reciprocal(n);
            }
        }
    }

    // as it enters a recurrent product
    Vars masked(Vars v) const {
        for (size_t i = 0; mask_ && i < v.size(); ++i) v[i] = v[i] * Var(mask_[i]);
        return v;
    }

    // what each row of a matrix adds to the preactivations
    Vars product(const Vars& matrix, const Vars& bias, const Vars& gain, const Vars& v, int64_t heads) const {
        Vars found;
        for (int64_t row = 0; row < p_.gates(); ++row) {
            found.push_back(affine(matrix, p_.layer_norm() ? Vars() : bias, row, v, heads));
        }
        return p_.layer_norm() ? layer_norm(found, gain, bias) : found;
    }

    static Vars layer_norm(const Vars& v, const Vars& gain, const Vars& bias) {
        const Var share(1.0 / static_cast<double>(v.size()));
        Var mean(0.0), variance(0.0);
        for (Var value : v) mean = mean + value * share;
        for (Var value : v) variance = variance + (value - mean) * (value - mean) * share;
        const Var scale = reciprocal_root(variance + Var(1e-5));
        Vars found;
        for (size_t i = 0; i < v.size(); ++i) {
            found.push_back((v[i] - mean) * scale * gain[i] + (bias.empty() ? Var(0.0) : bias[i]));
        }
        return found;
    }

    // with several heads row is gate * H + unit, and the unit's head meets its part of v
    Var affine(const Vars& matrix, const Vars& bias, int64_t row, const Vars& v, int64_t heads) const {
        const size_t length = v.size() / static_cast<size_t>(heads);
        const size_t first = heads == 1 ? 0 : static_cast<size_t>(row % p_.hidden / (p_.hidden / heads)) * length;
        Var sum = bias.empty() ? Var(0.0) : bias[static_cast<size_t>(row)];
        for (size_t i = 0; i < length; ++i) {
            sum = sum + matrix[static_cast<size_t>(row) * length + i] * v[first + i];
        }
        return sum;
    }

    static size_t at_(int64_t index) { return static_cast<size_t>(index); }
    static std::vector<double> zeros(int64_t count) { return std::vector<double>(static_cast<size_t>(count), 0.0); }
    static Vars leaves(const std::vector<double>& given) {
        Vars vars;
        for (double value : given) vars.push_back(Var::leaf(value));
        return vars;
    }
    static Vars slice(const Vars& vars, int64_t index, int64_t width) {
        return {vars.begin() + index * width, vars.begin() + (index + 1) * width};
    }
    static void write(const Vars& from, Vars& to, int64_t at) {
        for (size_t i = 0; i < from.size(); ++i) to[static_cast<size_t>(at) + i] = from[i];
    }
    static std::vector<double> values(const Vars& vars) {
        std::vector<double> values;
        for (const Var& var : vars) values.push_back(var.value());
        return values;
    }
    static void seed(const Vars& vars, const std::vector<double>& given, std::vector<std::pair<int, double>>& seeds) {
        for (size_t i = 0; i < given.size(); ++i) seeds.emplace_back(vars[i].node(), given[i]);
    }
    std::vector<double> slopes(const Vars& vars) const {
        std::vector<double> slopes;
        for (const Var& var : vars) slopes.push_back(slopes_[static_cast<size_t>(var.node())]);
        return slopes;
    }

    const Problem& p_;
    std::vector<double> slopes_;
    const double* mask_ = nullptr;  // of the row at work
    const Tensors::Direction* given_ = nullptr;
    int64_t zone_row_ = 0;
};

}  // namespace fastrnn_test
