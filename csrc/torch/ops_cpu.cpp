// The ops: check, allocate, fill the contract's structs, call the device's kernels.
//
// For the CPU, half-precision tensors are widened to float32 here and the results rounded once at the end.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "layer.h"
#include "run_cuda.h"
#include "workspace.h"

namespace fastrnn {
namespace {

size_t workspace_bytes(const ForwardParams& p, const Kernels& kernels) { return forward_workspace_bytes(p, kernels); }
size_t workspace_bytes(const BackwardParams& p, const Kernels& kernels) { return backward_workspace_bytes(p, kernels); }
void run_on_cpu(const ForwardParams& p, const Kernels& kernels) { forward(p, kernels); }
void run_on_cpu(const BackwardParams& p, const Kernels& kernels) { backward(p, kernels); }

template <class Params>
void run(Params& p, [[maybe_unused]] const Tensor& x) {
#if defined(FASTRNN_WITH_CUDA)
    if (kEmulated || !x.is_cpu()) return run_on_cuda(p, x);
#endif
    const Kernels& kernels = active_kernels();
    const Workspace workspace(workspace_bytes(p, kernels));
    p.workspace = workspace.data();
    run_on_cpu(p, kernels);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer_forward(const Layer& layer, bool training) {
    const Shape& s = layer.shape;
    check(!(training && layer.quantized), "fastrnn: quantized weights have no gradients");
    ForwardParams p{};
    p.format = layer.format;
    layer.fill(p);
    const Tensor y = layer.empty_sequence(s.directions * layer.recurrent), h_n = layer.empty_state(layer.recurrent);
    const Tensor c_n = layer.cell == Cell::lstm ? layer.empty_state(s.hidden) : layer.nothing();
    const Tensor reserve = training ? layer.empty_reserve() : layer.no_reserve();
    const auto strides = layer.strides_of(y);
    p.y = y.data_ptr();
    p.y_stride_time = strides.time;
    p.y_stride_batch = strides.batch;
    p.h_n = h_n.data_ptr();
    p.c_n = c_n.data_ptr();
    p.reserve = training && saved_values(layer.cell) ? reserve.data_ptr() : nullptr;
    run(p, layer.x);
    return {layer.narrow(y), layer.narrow(h_n), layer.narrow(c_n), reserve};
}

struct Gradients {
    MaybeTensor d_y, d_h_n, d_c_n;
};

struct Needs {
    bool x, state, weights;
};

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> layer_backward(Layer layer, Gradients grads, Tensor y,
                                                                       const Tensor& reserve, Needs needs) {
    const Shape& s = layer.shape;
    BackwardParams p{};
    layer.widen_weights();
    layer.fill(p);
    check_shape("reserve", reserve, {s.directions, s.rows, saved_values(layer.cell), padded_units(s.hidden)});
    layer.check_kind("reserve", reserve, layer.stored == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
    check(reserve.is_contiguous(), "fastrnn: reserve must be contiguous");
    p.reserve = reserve.data_ptr();
    const int64_t features = s.directions * layer.recurrent;
    layer.check_sequence("y", y, features);
    y = Layer::with_unit_stride(layer.widen(y));
    const auto y_strides = layer.strides_of(y);
    p.y = y.data_ptr();
    p.y_stride_time = y_strides.time;
    p.y_stride_batch = y_strides.batch;
    if (grads.d_y) {
        layer.check_sequence("d_y", *grads.d_y, features);
        grads.d_y = Layer::with_unit_stride(layer.widen(*grads.d_y));
        const auto strides = layer.strides_of(*grads.d_y);
        p.d_y = grads.d_y->data_ptr();
        p.d_y_stride_time = strides.time;
        p.d_y_stride_batch = strides.batch;
    }
    if (grads.d_h_n) {
        layer.check_state("d_h_n", *grads.d_h_n, layer.recurrent);
        grads.d_h_n = layer.dense(*grads.d_h_n);
        p.d_h_n = grads.d_h_n->data_ptr();
    }
    if (grads.d_c_n) {
        layer.check_state("d_c_n", *grads.d_c_n, s.hidden);
        grads.d_c_n = layer.dense(*grads.d_c_n);
        p.d_c_n = grads.d_c_n->data_ptr();
    }
    const Tensor d_x = needs.x ? layer.empty_sequence(s.input) : layer.nothing();
    if (needs.x) {
        const auto strides = layer.strides_of(d_x);
        p.d_x = d_x.data_ptr();
        p.d_x_stride_time = strides.time;
        p.d_x_stride_batch = strides.batch;
    }
    const bool lstm = layer.cell == Cell::lstm;
    const Tensor d_h0 = needs.state ? layer.empty_state(layer.recurrent) : layer.nothing();
    const Tensor d_c0 = needs.state && lstm ? layer.empty_state(s.hidden) : layer.nothing();
    if (needs.state) p.d_h0 = d_h0.data_ptr();
    if (needs.state && lstm) p.d_c0 = d_c0.data_ptr();
    std::vector<Tensor> d_weights;
    d_weights.reserve(layer.weights.size());
    for (const Tensor& w : layer.weights) {
        d_weights.push_back(!needs.weights ? layer.nothing()
                            : w.dim() == 2
                                ? Layer::in_huge_pages(empty(layer.x, {w.size(0), w.size(1)}, layer.dtype_code))
                                : empty(layer.x, {w.size(0)}, layer.dtype_code));
    }
    for (int d = 0; d < s.directions && needs.weights; ++d) {
        const Tensor* w = &d_weights[static_cast<size_t>(d * layer.weights_per_direction)];
        p.d_weights[d] = {w[0].data_ptr(), w[1].data_ptr(), layer.has_biases ? w[2].data_ptr() : nullptr,
                          layer.has_biases ? w[3].data_ptr() : nullptr,
                          s.projection ? w[layer.weights_per_direction - 1].data_ptr() : nullptr};
    }
    run(p, layer.x);
    for (Tensor& w : d_weights) w = layer.narrow(w);
    return {layer.narrow(d_x), layer.narrow(d_h0), layer.narrow(d_c0), d_weights};
}

// -- the ops ----------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_forward(Tensor x, MaybeTensor h0, MaybeTensor c0,
                                                        std::vector<Tensor> weights, MaybeTensor batch_sizes,
                                                        bool has_biases, bool batch_first, bool bidirectional,
                                                        std::string activation, bool training) {
    return layer_forward(Layer(Cell::lstm, parse_activation(activation), x, h0, c0, std::move(weights), batch_sizes,
                               has_biases, batch_first, bidirectional),
                         training);
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    MaybeTensor d_y, MaybeTensor d_h_n, MaybeTensor d_c_n, Tensor x, MaybeTensor h0, MaybeTensor c0,
    std::vector<Tensor> weights, MaybeTensor batch_sizes, Tensor y, Tensor reserve, bool has_biases, bool batch_first,
    bool bidirectional, std::string activation, bool needs_x, bool needs_state, bool needs_weights) {
    return layer_backward(Layer(Cell::lstm, parse_activation(activation), x, h0, c0, std::move(weights), batch_sizes,
                                has_biases, batch_first, bidirectional),
                          {d_y, d_h_n, d_c_n}, y, reserve, {needs_x, needs_state, needs_weights});
}

using StateResult = std::tuple<Tensor, Tensor, Tensor>;
using StateGradients = std::tuple<Tensor, Tensor, std::vector<Tensor>>;

StateResult without_cell_state(std::tuple<Tensor, Tensor, Tensor, Tensor> result) {
    return {std::get<0>(result), std::get<1>(result), std::get<3>(result)};
}

StateGradients without_cell_state(std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> result) {
    return {std::get<0>(result), std::get<1>(result), std::get<3>(result)};
}

Layer gru_layer(Tensor x, MaybeTensor h0, std::vector<Tensor> weights, MaybeTensor batch_sizes, bool has_biases,
                bool batch_first, bool bidirectional, bool reset_after, const std::string& activation) {
    return Layer(reset_after ? Cell::gru : Cell::gru_reset_before, parse_activation(activation), x, h0, std::nullopt,
                 std::move(weights), batch_sizes, has_biases, batch_first, bidirectional);
}

StateResult gru_forward(Tensor x, MaybeTensor h0, std::vector<Tensor> weights, MaybeTensor batch_sizes, bool has_biases,
                        bool batch_first, bool bidirectional, bool reset_after, std::string activation, bool training) {
    return without_cell_state(layer_forward(gru_layer(x, h0, std::move(weights), batch_sizes, has_biases, batch_first,
                                                      bidirectional, reset_after, activation),
                                            training));
}

StateGradients gru_backward(MaybeTensor d_y, MaybeTensor d_h_n, Tensor x, MaybeTensor h0, std::vector<Tensor> weights,
                            MaybeTensor batch_sizes, Tensor y, Tensor reserve, bool has_biases, bool batch_first,
                            bool bidirectional, bool reset_after, std::string activation, bool needs_x,
                            bool needs_state, bool needs_weights) {
    return without_cell_state(layer_backward(gru_layer(x, h0, std::move(weights), batch_sizes, has_biases, batch_first,
                                                       bidirectional, reset_after, activation),
                                             {d_y, d_h_n, std::nullopt}, y, reserve,
                                             {needs_x, needs_state, needs_weights}));
}

Layer rnn_layer(Tensor x, MaybeTensor h0, std::vector<Tensor> weights, MaybeTensor batch_sizes, bool has_biases,
                bool batch_first, bool bidirectional, const std::string& nonlinearity) {
    return Layer(Cell::rnn, parse_nonlinearity(nonlinearity), x, h0, std::nullopt, std::move(weights), batch_sizes,
                 has_biases, batch_first, bidirectional);
}

StateResult rnn_forward(Tensor x, MaybeTensor h0, std::vector<Tensor> weights, MaybeTensor batch_sizes, bool has_biases,
                        bool batch_first, bool bidirectional, std::string nonlinearity, bool training) {
    return without_cell_state(layer_forward(
        rnn_layer(x, h0, std::move(weights), batch_sizes, has_biases, batch_first, bidirectional, nonlinearity),
        training));
}

StateGradients rnn_backward(MaybeTensor d_y, MaybeTensor d_h_n, Tensor x, MaybeTensor h0, std::vector<Tensor> weights,
                            MaybeTensor batch_sizes, Tensor y, Tensor reserve, bool has_biases, bool batch_first,
                            bool bidirectional, std::string nonlinearity, bool needs_x, bool needs_state,
                            bool needs_weights) {
    return without_cell_state(layer_backward(
        rnn_layer(x, h0, std::move(weights), batch_sizes, has_biases, batch_first, bidirectional, nonlinearity),
        {d_y, d_h_n, std::nullopt}, y, reserve, {needs_x, needs_state, needs_weights}));
}

// -- what is compiled and active --------------------------------------------------------------------------------------

std::string isas(bool (*wanted)(const char*)) {
    std::string names;
    for (const char* name : {"avx512", "avx2", "generic"}) {
        if (wanted(name)) names += (names.empty() ? "" : ",") + std::string(name);
    }
    return names;
}

std::string active_isa_op() { return active_isa(); }
std::string compiled_isas() { return isas(isa_compiled); }
std::string supported_isas() { return isas(isa_supported); }
void force_isa_op(std::string name) { force_isa(name.c_str()); }
int64_t num_threads() { return torch::stable::get_num_threads(); }

std::tuple<int64_t, int64_t, int64_t, double> plan(std::string cell, int64_t time, int64_t batch, int64_t input,
                                                   int64_t hidden, bool bidirectional, int64_t threads) {
    check(time > 0 && batch >= 0 && input >= 0 && hidden >= 0 && threads > 0,
          "fastrnn: time and threads must be positive, the other sizes not negative");
    check(cell == "lstm" || cell == "gru" || cell == "rnn", "fastrnn: unknown cell '", cell,
          "'; one of lstm, gru, rnn");
    ForwardParams p{};
    p.cell = cell == "lstm" ? Cell::lstm : cell == "gru" ? Cell::gru : Cell::rnn;
    p.shape.time = time;
    p.shape.batch = batch;
    p.shape.rows = time * batch;
    p.shape.input = input;
    p.shape.hidden = hidden;
    p.shape.directions = bidirectional ? 2 : 1;
    p.threads = static_cast<int>(threads);
    const Plan found = plan_forward(p);
    return {found.threads, found.batch_parts, found.unit_parts, found.seconds};
}

bool cuda_compiled() {
#if defined(FASTRNN_WITH_CUDA)
    return true;
#else
    return false;
#endif
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
    m.impl("lstm_forward", TORCH_BOX(&fastrnn::lstm_forward));
    m.impl("lstm_backward", TORCH_BOX(&fastrnn::lstm_backward));
    m.impl("gru_forward", TORCH_BOX(&fastrnn::gru_forward));
    m.impl("gru_backward", TORCH_BOX(&fastrnn::gru_backward));
    m.impl("rnn_forward", TORCH_BOX(&fastrnn::rnn_forward));
    m.impl("rnn_backward", TORCH_BOX(&fastrnn::rnn_backward));
}

#if defined(FASTRNN_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
    m.impl("lstm_forward", TORCH_BOX(&fastrnn::lstm_forward));
    m.impl("lstm_backward", TORCH_BOX(&fastrnn::lstm_backward));
    m.impl("gru_forward", TORCH_BOX(&fastrnn::gru_forward));
    m.impl("gru_backward", TORCH_BOX(&fastrnn::gru_backward));
    m.impl("rnn_forward", TORCH_BOX(&fastrnn::rnn_forward));
    m.impl("rnn_backward", TORCH_BOX(&fastrnn::rnn_backward));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
    m.impl("active_isa", TORCH_BOX(&fastrnn::active_isa_op));
    m.impl("compiled_isas", TORCH_BOX(&fastrnn::compiled_isas));
    m.impl("supported_isas", TORCH_BOX(&fastrnn::supported_isas));
    m.impl("force_isa", TORCH_BOX(&fastrnn::force_isa_op));
    m.impl("plan", TORCH_BOX(&fastrnn::plan));
    m.impl("num_threads", TORCH_BOX(&fastrnn::num_threads));
    m.impl("cuda_compiled", TORCH_BOX(&fastrnn::cuda_compiled));
}
