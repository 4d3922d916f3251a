// The ops: check, allocate, fill the contract's structs, call the device's kernels.
//
// For the CPU, half-precision tensors are widened to float32 here and the results rounded once at the end, but for what
// the forward pass takes in bfloat16.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <utility>
#include <vector>

#include "layer.h"
#include "run_cpu.h"
#include "run_cuda.h"

namespace fastrnn {
namespace {

template <class Params>
void run(Params& p, [[maybe_unused]] const Layer& layer) {
#if defined(FASTRNN_WITH_CUDA)
    if (!layer.on_cpu) return run_on_cuda(p, layer.x);
#endif
    run_on_cpu(p);
}

std::vector<Tensor> run_forward(const Layer& layer, bool training) {
    const Shape& s = layer.shape;
    ForwardParams p{};
    p.format = layer.format;
    layer.fill(p);
    std::vector<Tensor> outputs;  // y, final states, cell states, reserve
    outputs.reserve(5);
    const auto next = [&](Tensor made) {
        outputs.push_back(std::move(made));
        return outputs.back().data_ptr();
    };
    p.bfloat16_sequences = layer.keeps_bfloat16();
    p.rounds_operands = !training;  // the backward pass multiplies in float32
    const int32_t type_of_y = dtype_code_of(p.bfloat16_sequences ? layer.stored : layer.computed);
    p.y = next(layer.empty_output(s.directions * layer.recurrent, type_of_y));
    const auto strides = layer.strides_of(outputs[0]);
    p.y_stride_time = strides.time;
    p.y_stride_batch = strides.batch;
    p.h_n = layer.spec.single_step ? p.y : next(layer.empty_state(layer.recurrent));
    if (has_cell_state(layer.spec.cell)) p.c_n = next(layer.empty_state(layer.state_width(1)));
    if (layer.spec.cell_states) {
        p.cell_states = next(layer.empty_output(s.directions * s.hidden, layer.dtype_code));
        const auto of_c = layer.strides_of(outputs.back());
        p.cell_states_stride_time = of_c.time;
        p.cell_states_stride_batch = of_c.batch;
    }
    std::optional<Tensor> reserve;
    if (training) {
        reserve = layer.empty_reserve();
        if (layer.spec.info().saved) p.reserve = reserve->data_ptr();
    }
    run(p, layer);
    if (layer.widened) {
        for (Tensor& output : outputs) output = layer.narrow(output);
    }
    if (reserve) outputs.push_back(std::move(*reserve));
    return outputs;
}

// d_y, d_h_n, d_c_n, d_cell_states, checked and in the kernels' form
void read_gradients(const Layer& layer, std::vector<MaybeTensor>& d_outputs, BackwardParams& p) {
    const size_t states = static_cast<size_t>(layer.spec.info().states), first = layer.spec.single_step ? 0 : 1;
    const size_t expected = first + states + (layer.spec.cell_states ? 1 : 0);
    check(d_outputs.size() == expected, "fastrnn: expected ", expected, " gradients of outputs, got ",
          d_outputs.size());
    const auto read = [&](const char* name, MaybeTensor& given, int64_t width, const void*& data, int64_t& stride_time,
                          int64_t& stride_batch) {
        if (!given) return;
        layer.check_sequence(name, *given, layer.shape.directions * width);
        given = with_unit_stride(layer.widen(*given));
        const auto strides = layer.strides_of(*given);
        data = given->data_ptr();
        stride_time = strides.time;
        stride_batch = strides.batch;
    };
    if (first) read("d_y", d_outputs[0], layer.recurrent, p.d_y, p.d_y_stride_time, p.d_y_stride_batch);
    if (layer.spec.cell_states) {
        read("the gradient of cell states", d_outputs.back(), layer.shape.hidden, p.d_cell_states,
             p.d_cell_states_stride_time, p.d_cell_states_stride_batch);
    }
    const void** const finals[] = {&p.d_h_n, &p.d_c_n};
    for (size_t i = 0; i < states; ++i) {
        MaybeTensor& d_final = d_outputs[first + i];
        if (!d_final) continue;
        layer.check_state("the gradient of a final state", *d_final, layer.state_width(i));
        d_final = layer.dense(*d_final);
        *finals[i] = d_final->data_ptr();
    }
}

std::vector<Tensor> run_backward(Layer& layer, std::vector<MaybeTensor> d_outputs, Tensor y, const Tensor& reserve,
                                 Needs needs) {
    const Shape& s = layer.shape;
    const CellInfo& cell = layer.spec.info();
    BackwardParams p{};
    layer.widen_all();
    layer.fill(p);
    check_shape("reserve", reserve, {s.directions, layer.reserve_rows(), cell.saved, padded_units(s.hidden)});
    layer.check_kind("reserve", reserve, layer.stored == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
    check(reserve.is_contiguous(), "fastrnn: reserve must be contiguous");
    p.reserve = reserve.data_ptr();
    layer.check_sequence("y", y, s.directions * layer.recurrent);
    y = with_unit_stride(layer.widen(y));
    const auto y_strides = layer.strides_of(y);
    p.y = y.data_ptr();
    p.y_stride_time = y_strides.time;
    p.y_stride_batch = y_strides.batch;
    read_gradients(layer, d_outputs, p);

    std::vector<Tensor> gradients;
    gradients.reserve(1 + layer.states.size() + layer.weights.size() + layer.operands.size());
    const auto next = [&](bool needed, Tensor made) {
        gradients.push_back(std::move(made));
        return needed ? gradients.back().data_ptr() : nullptr;
    };
    p.d_x = next(needs.x, needs.x ? layer.empty_output(s.input, layer.dtype_code) : layer.nothing());
    if (needs.x) {
        const auto strides = layer.strides_of(gradients[0]);
        p.d_x_stride_time = strides.time;
        p.d_x_stride_batch = strides.batch;
    }
    void** const d_states[] = {&p.d_h0, &p.d_c0};
    for (size_t i = 0; i < layer.states.size(); ++i) {
        *d_states[i] = next(needs.states, needs.states ? layer.empty_state(layer.state_width(i)) : layer.nothing());
    }
    for (int d = 0; d < s.directions; ++d) {
        const Tensor* w = &layer.weights[static_cast<size_t>(d * layer.weights_per_direction)];
        const auto of = [&](int i) {
            return next(needs.weights, needs.weights ? layer.empty_like_weight(w[i]) : layer.nothing());
        };
        WeightGradients& found = p.d_weights[d];
        found.d_w_ih = of(0);
        if (cell.recurrent) found.d_w_hh = of(1);
        if (layer.spec.has_biases) {
            found.d_b_ih = of(layer.matrices());
            if (cell.recurrent) found.d_b_hh = of(3);
        }
        if (s.projection) found.d_w_hr = of(layer.weights_per_direction - 1);
    }
    for (size_t i = 0; i < layer.operands.size(); ++i) {
        const auto count = static_cast<size_t>(layer.operand_count()), learned = static_cast<size_t>(cell.learned);
        const bool needed = needs.operands && i % count < learned && !layer.is_absent(layer.operands[i]);
        void* const made = next(needed, needed ? layer.empty_like_weight(layer.operands[i]) : layer.nothing());
        if (needed) p.d_weights[i / count].d_operands[i % count] = made;
    }
    run(p, layer);
    for (Tensor& gradient : gradients) gradient = layer.narrow(gradient);
    return gradients;
}

// -- the ops ----------------------------------------------------------------------------------------------------------

std::vector<Tensor> layer_forward(Tensor x, std::vector<Tensor> states, std::vector<Tensor> weights,
                                  MaybeTensor batch_sizes, std::vector<Tensor> operands, int64_t spec_bits,
                                  bool training) {
    const Spec spec(spec_bits);
    std::optional<Layer> layer;
    try {
        layer.emplace(spec, std::move(x), std::move(states), std::move(weights), std::move(batch_sizes),
                      std::move(operands));
        check(!(training && layer->quantized), "fastrnn: quantized weights have no gradients");
    } catch (const Refusal&) {
        if (spec.quiet) return {};
        throw;
    }
    return run_forward(*layer, training);
}

std::vector<Tensor> layer_backward(std::vector<MaybeTensor> d_outputs, Tensor x, std::vector<Tensor> states,
                                   std::vector<Tensor> weights, MaybeTensor batch_sizes, std::vector<Tensor> operands,
                                   Tensor y, Tensor reserve, int64_t spec_bits, int64_t needs) {
    const Spec spec(spec_bits);
    check(!spec.quiet, "fastrnn: layer_backward is never quiet");
    Layer layer(spec, std::move(x), std::move(states), std::move(weights), std::move(batch_sizes), std::move(operands));
    return run_backward(layer, std::move(d_outputs), std::move(y), reserve, Needs(needs));
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
    m.impl("layer_forward", TORCH_BOX(&fastrnn::layer_forward));
    m.impl("layer_backward", TORCH_BOX(&fastrnn::layer_backward));
}

#if defined(FASTRNN_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastrnn, CUDA, m) {
    m.impl("layer_forward", TORCH_BOX(&fastrnn::layer_forward));
    m.impl("layer_backward", TORCH_BOX(&fastrnn::layer_backward));
}
#endif
