// Runs a problem in type T through fastrnn::forward and fastrnn::backward, or through another library with their
// contract.
#pragma once

#include <algorithm>

#include "buffers.h"

namespace fastrnn_test {

struct Wanted {
    bool x = true, state = true, weights = true;
};

// results in the order of the shapes in kernels.h; a part that was not asked for is empty
template <class T>
struct Results {
    std::vector<T> y, h_n, c_n, cell_states, d_x, d_h0, d_c0, d_weights[10], d_operands[2 * fastrnn::kMaxOperands];
    bool kept_inputs = true, kept_gaps = true;
};

template <class T>
constexpr fastrnn::DType dtype_of() {
    return sizeof(T) == sizeof(double) ? fastrnn::DType::float64 : fastrnn::DType::float32;
}

struct CpuLibrary {
    template <class T>
    using Reserve = T;
    template <class T>
    static constexpr fastrnn::DType dtype() {
        return dtype_of<T>();
    }
    static void forward(fastrnn::ForwardParams& params) {
        const Bytes workspace(fastrnn::forward_workspace_bytes(params));
        params.workspace = workspace.get();
        fastrnn::forward(params);
    }
    static void backward(fastrnn::BackwardParams& params) {
        const Bytes workspace(fastrnn::backward_workspace_bytes(params));
        params.workspace = workspace.get();
        fastrnn::backward(params);
    }
};

template <class T, class Library = CpuLibrary>
class Runner {
   public:
    Runner(const Problem& p, const Tensors& given, Layout layout, int threads)
        : p_(p),
          layout_(layout),
          threads_(threads),
          x_(p, p.input, layout, given.x),
          y_(sequence(features())),
          h0_(placed(given.h0)),
          c0_(placed(given.c0)),
          h_n_(states(p.recurrent())),
          c_n_(states(p.has_c() ? p.cell_width() : 0)),
          cell_states_(sequence(p.cell_states ? p.directions * p.hidden : 0)),
          resets_(p, p.resets ? 1 : 0, layout, marks(p)),
          reserve_(p.directions * p.rows() * fastrnn::saved_values(p.cell) * fastrnn::padded_units(p.hidden)) {
        for (int64_t b = 0; b < p.batch; ++b) order_.push_back(place_of(p, layout, b));
        for (int d = 0; d < p.directions; ++d) {
            const Tensors::Direction& w = given.weights[d];
            for (const std::vector<double>* part : {&w.w_ih, &w.w_hh, &w.b_ih, &w.b_hh, &w.w_hr}) {
                weights_.emplace_back(*part);
            }
            for (int i = 0; i < fastrnn::kMaxOperands; ++i) {
                const bool rows = i < p.operands() && p.is_zone(i) && p.has(i);
                operands_.emplace_back(rows ? reordered(w.operands[i], false, static_cast<int>(p.time))
                                            : w.operands[i]);
            }
            masks_.emplace_back(reordered(w.recurrent_mask, false, 1));
        }
    }

    // adjust(params) may change what is run
    template <class Adjust>
    void forward(bool keep_reserve, Results<T>& results, const Adjust& adjust) {
        fastrnn::ForwardParams params{};
        fill(params);
        adjust(params);
        params.y = y_.data();
        params.y_stride_time = y_.stride_time();
        params.y_stride_batch = y_.stride_batch();
        params.h_n = h_n_.data();
        params.c_n = p_.has_c() ? c_n_.data() : nullptr;
        if (p_.cell_states) params.cell_states = cell_states_.data();
        params.cell_states_stride_time = cell_states_.stride_time();
        params.cell_states_stride_batch = cell_states_.stride_batch();
        params.reserve = keep_reserve && fastrnn::saved_values(p_.cell) ? reserve_.data() : nullptr;
        Library::forward(params);
        results.y = y_.values();
        results.h_n = taken(h_n_);
        results.c_n = taken(c_n_);
        results.cell_states = cell_states_.values();
        results.kept_gaps &= y_.gaps_untouched() && cell_states_.gaps_untouched();
    }

    void forward(bool keep_reserve, Results<T>& results) {
        forward(keep_reserve, results, [](fastrnn::ForwardParams&) {});
    }

    // after forward(true); an empty member of `incoming` (y, h_n, c_n, cell_states) is handed over as null
    template <class Adjust>
    void backward(const Tensors& incoming, Wanted wanted, Results<T>& results, const Adjust& adjust) {
        const Sequence<T> d_y(p_, features(), layout_, incoming.y.empty() ? zeros(p_.rows() * features()) : incoming.y);
        const Sequence<T> d_cell_states(p_, incoming.cell_states.empty() ? 0 : p_.directions * p_.hidden, layout_,
                                        incoming.cell_states);
        const Sequence<T> d_x = sequence(p_.input);
        const Array<T> d_h_n(placed(incoming.h_n)), d_c_n(placed(incoming.c_n));
        const Array<T> d_h0(wanted.state ? states(p_.recurrent()) : 0);
        const Array<T> d_c0(wanted.state && p_.has_c() ? states(p_.cell_width()) : 0);
        std::vector<Array<T>> d_weights;
        for (const Array<T>& w : weights_) d_weights.emplace_back(static_cast<int64_t>(w.values().size()));
        std::vector<Array<T>> d_operands;
        for (const Array<T>& operand : operands_)
            d_operands.emplace_back(static_cast<int64_t>(operand.values().size()));
        const std::vector<Reserve> reserve_before = reserve_.values();
        const std::vector<T> y_before = y_.values();

        fastrnn::BackwardParams params{};
        fill(params);
        params.y = y_.data();
        params.y_stride_time = y_.stride_time();
        params.y_stride_batch = y_.stride_batch();
        params.reserve = reserve_.data_or_null();
        params.d_y = incoming.y.empty() ? nullptr : d_y.data();
        params.d_y_stride_time = d_y.stride_time();
        params.d_y_stride_batch = d_y.stride_batch();
        params.d_h_n = d_h_n.data_or_null();
        params.d_c_n = d_c_n.data_or_null();
        params.d_cell_states = incoming.cell_states.empty() ? nullptr : d_cell_states.data();
        params.d_cell_states_stride_time = d_cell_states.stride_time();
        params.d_cell_states_stride_batch = d_cell_states.stride_batch();
        params.d_x = wanted.x ? d_x.data() : nullptr;
        params.d_x_stride_time = d_x.stride_time();
        params.d_x_stride_batch = d_x.stride_batch();
        params.d_h0 = wanted.state ? d_h0.data() : nullptr;
        params.d_c0 = wanted.state && p_.has_c() ? d_c0.data() : nullptr;
        for (int d = 0; d < p_.directions && wanted.weights; ++d) {
            const Array<T>* w = &d_weights[static_cast<size_t>(5 * d)];
            params.d_weights[d] = {w[0].data_or_null(), w[1].data_or_null(), w[2].data_or_null(), w[3].data_or_null(),
                                   w[4].data_or_null()};
            for (int i = 0; i < p_.learned(); ++i) {
                params.d_weights[d].d_operands[i] = d_operands[operand_index(d, i)].data_or_null();
            }
        }
        adjust(params);
        Library::backward(params);

        if (wanted.x) results.d_x = d_x.values();
        results.kept_gaps &= d_x.gaps_untouched();
        results.d_h0 = taken(d_h0);
        results.d_c0 = taken(d_c0);
        for (size_t i = 0; i < d_weights.size() && wanted.weights; ++i) results.d_weights[i] = d_weights[i].values();
        for (size_t i = 0; i < d_operands.size() && wanted.weights; ++i) results.d_operands[i] = d_operands[i].values();
        results.kept_inputs &= same_bytes(reserve_before, reserve_.values()) && same_bytes(y_before, y_.values());
    }

    void backward(const Tensors& incoming, Wanted wanted, Results<T>& results) {
        backward(incoming, wanted, results, [](fastrnn::BackwardParams&) {});
    }

    template <class U>
    static bool same_bytes(const std::vector<U>& a, const std::vector<U>& b) {
        return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(U)) == 0);
    }

   private:
    using Reserve = typename Library::template Reserve<T>;

    // a state [D, B, width] with its rows in the layout's order, and back; or one of fewer directions
    template <class U>
    std::vector<U> reordered(const std::vector<U>& state, bool back, int directions) const {
        std::vector<U> moved(state.size());
        const int64_t rows = directions * p_.batch;
        const int64_t width = rows ? static_cast<int64_t>(state.size()) / rows : 0;
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t place = row / p_.batch * p_.batch + place_of(p_, layout_, row % p_.batch);
            const int64_t from = back ? place : row, to = back ? row : place;
            std::copy_n(state.begin() + from * width, width, moved.begin() + to * width);
        }
        return moved;
    }
    std::vector<double> placed(const std::vector<double>& state) const {
        return reordered(state, false, p_.directions);
    }
    std::vector<T> taken(const Array<T>& state) const { return reordered(state.values(), true, p_.directions); }

    int64_t features() const { return p_.directions * p_.recurrent(); }
    int64_t states(int64_t width) const { return p_.directions * p_.batch * width; }
    Sequence<T> sequence(int64_t features) const { return {p_, features, layout_}; }
    static std::vector<double> marks(const Problem& p) {
        std::vector<double> marks(static_cast<size_t>(p.resets ? p.rows() : 0));
        for (int64_t b = 0; b < p.batch && p.resets; ++b) {
            for (int64_t t = 0; t < p.length(b); ++t) {
                marks[static_cast<size_t>(p.row_of(t, b))] = p.is_reset(t, b) ? 1 : 0;
            }
        }
        return marks;
    }
    static std::vector<double> zeros(int64_t count) { return std::vector<double>(static_cast<size_t>(count), 0.0); }

    static size_t operand_index(int d, int i) { return static_cast<size_t>(d * fastrnn::kMaxOperands + i); }

    template <class Params>
    void fill(Params& params) const {
        params.dtype = Library::template dtype<T>();
        params.cell = p_.cell;
        params.functions = p_.functions();
        params.shape = {p_.time, p_.batch, p_.rows(), p_.input, p_.hidden, p_.projection, p_.directions, nullptr};
        params.shape.heads = p_.heads;
        if (!p_.batch_sizes.empty()) {
            params.shape.batch_sizes = p_.batch_sizes.data();
            params.shape.packed = layout_ != Layout::ragged;
            params.shape.order = layout_ == Layout::ragged ? order_.data() : nullptr;
        }
        if (p_.resets) {
            params.shape.resets = reinterpret_cast<const bool*>(resets_.data());
            params.shape.resets_stride_time = resets_.stride_time();
            params.shape.resets_stride_batch = resets_.stride_batch();
        }
        for (int d = 0; d < p_.directions; ++d) {
            const Array<T>* w = &weights_[static_cast<size_t>(5 * d)];
            params.weights[d] = {w[0].data(), w[1].data_or_null(), w[2].data_or_null(), w[3].data_or_null(),
                                 w[4].data_or_null()};
            params.weights[d].recurrent_mask = masks_[static_cast<size_t>(d)].data_or_null();
            for (int i = 0; i < p_.operands(); ++i) {
                const bool rows = p_.is_zone(i);
                params.weights[d].operands[i] = {operands_[operand_index(d, i)].data_or_null(),
                                                 rows ? p_.batch * p_.hidden : 0, rows ? p_.hidden : 0};
            }
        }
        params.x = x_.data();
        params.x_stride_time = x_.stride_time();
        params.x_stride_batch = x_.stride_batch();
        params.h0 = h0_.data_or_null();
        params.c0 = c0_.data_or_null();
        params.threads = threads_;
    }

    const Problem& p_;
    Layout layout_;
    std::vector<int64_t> order_;
    int threads_;
    Sequence<T> x_, y_;
    Array<T> h0_, c0_, h_n_, c_n_;
    Sequence<T> cell_states_;
    Sequence<unsigned char> resets_;
    Array<Reserve> reserve_;
    std::vector<Array<T>> weights_;   // w_ih, w_hh, b_ih, b_hh, w_hr of each direction
    std::vector<Array<T>> operands_;  // [kMaxOperands] of each direction
    std::vector<Array<T>> masks_;     // of each direction
};

inline std::vector<int64_t> falling_batch_sizes(int64_t time, int64_t batch) {
    std::vector<int64_t> sizes;
    for (int64_t t = 0; t < time; ++t)
        sizes.push_back(time == 1 ? batch : 1 + (batch - 1) * (time - 1 - t / 2 * 2) / (time - 1));
    return sizes;
}

// the last rows, where some are to have no step at all, and the last steps have no row
inline std::vector<int64_t> short_batch_sizes(int64_t time, int64_t batch) {
    std::vector<int64_t> sizes;
    for (int64_t t = 0; t < time; ++t) sizes.push_back((batch - 1) * (time - 1 - t) / time);
    return sizes;
}

}  // namespace fastrnn_test
