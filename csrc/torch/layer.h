// What every op's arguments have in common, checked and brought to the kernels' form.
#pragma once

#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "fastrnn/cuda_plan.h"
#include "kept_memory.h"
#include "ragged.h"
#include "spec.h"
#include "tensors.h"

namespace fastrnn {
namespace {

using MaybeTensor = std::optional<Tensor>;

#if defined(FASTRNN_EMULATED)
constexpr bool kEmulated = true;  // the CUDA kernels' text runs on the CPU and takes the tensors that are there
#else
constexpr bool kEmulated = false;
#endif

struct Layer {
    Spec spec;
    bool on_cpu;                       // the CPU kernels run it
    ScalarType stored, computed;       // of the tensors given; of those that the kernels are given
    bool widened;                      // stored is a half-precision type
    int32_t dtype_code, reserve_code;  // of computed, and of what is kept for the backward pass
    Shape shape{};
    bool batch_first, packed;
    int64_t recurrent;
    Tensor x;
    std::vector<Tensor> states, weights, operands;
    MaybeTensor batch_sizes;  // or lengths
    MaybeTensor resets;
    std::vector<int64_t> order, sizes;  // of ragged rows, as Shape has them
    int weights_per_direction;
    WeightFormat format = WeightFormat::plain;  // of the matrices
    bool quantized = false;                     // they have fewer bits than x

    Layer(Spec spec_, Tensor x_, std::vector<Tensor> states_, std::vector<Tensor> weights_, MaybeTensor batch_sizes_,
          std::vector<Tensor> operands_)
        : spec(spec_),
          on_cpu(x_.is_cpu() && !(kEmulated && cuda_runs(spec.cell) && spec.plain())),
          stored(x_.scalar_type()),
          computed(is_half(stored) && on_cpu ? ScalarType::Float : stored),
          widened(computed != stored),
          dtype_code(dtype_code_of(computed)),
          reserve_code(stored == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32()),
          batch_first(spec.batch_first && (spec.ragged || !batch_sizes_)),
          packed(batch_sizes_ && !spec.ragged),
          x(std::move(x_)),
          states(std::move(states_)),
          weights(std::move(weights_)),
          operands(std::move(operands_)),
          batch_sizes(std::move(batch_sizes_)) {
        check(on_cpu || cuda_runs(spec.cell), "fastrnn: no CUDA engine runs the cell ", spec.info().name);
        check(on_cpu || spec.plain(),
              "fastrnn: no CUDA engine runs heads, a recurrent mask, lengths, resets, the cell states of every step or "
              "these activations");
        check(stored == ScalarType::Float || stored == ScalarType::Double || is_half(stored),
              "fastrnn: x must be float32, float64, bfloat16 or float16");
        shape.directions = spec.bidirectional ? 2 : 1;
        read_sizes();
        read_resets();
        read_weights();
        read_states();
        read_operands();
        x = with_unit_stride(keeps_bfloat16() ? std::move(x) : widen(x));
    }

    // x and y go to the forward pass as they are; those of a single step are its states too
    bool keeps_bfloat16() const {
        return widened && stored == ScalarType::BFloat16 && format == WeightFormat::bfloat16 && !spec.single_step;
    }

    void read_sizes() {
        const int64_t dim = x.dim();
        const int64_t expected = packed || spec.single_step ? 2 : 3;
        check(dim == expected, "fastrnn: x must have ", expected, " dimensions, got ", dim);
        check(!spec.single_step || (!batch_sizes && shape.directions == 1 && !spec.cell_states),
              "fastrnn: a single step has neither batch sizes nor lengths, one direction, and its states alone");
        check(!spec.ragged || batch_sizes, "fastrnn: a ragged sequence has lengths");
        check(!spec.cell_states || (has_cell_state(spec.cell) && spec.info().memories == 1),
              "fastrnn: ", spec.info().name, " has no cell states");
        shape.input = x.size(dim - 1);
        if (packed) {
            check(batch_sizes->dim() == 1 && batch_sizes->scalar_type() == ScalarType::Long && batch_sizes->is_cpu(),
                  "fastrnn: batch_sizes must be an int64 CPU tensor of one dimension");
            batch_sizes = torch::stable::contiguous(*batch_sizes);
            shape.batch_sizes = static_cast<const int64_t*>(batch_sizes->data_ptr());
            shape.time = batch_sizes->numel();
            shape.rows = x.size(0);
            int64_t rows = 0, previous = shape.time ? shape.batch_sizes[0] : 0;
            shape.batch = previous;
            for (int64_t t = 0; t < shape.time; ++t) {
                check(shape.batch_sizes[t] > 0 && shape.batch_sizes[t] <= previous,
                      "fastrnn: batch_sizes must be positive and never rise");
                rows += previous = shape.batch_sizes[t];
            }
            check(rows == shape.rows, "fastrnn: batch_sizes add up to ", rows, " rows, but x has ", shape.rows);
            check(!states.empty(), "fastrnn: packed input needs its initial states");
        } else if (spec.single_step) {
            shape.time = 1;
            shape.batch = shape.rows = x.size(0);
        } else {
            shape.time = x.size(batch_first ? 1 : 0);
            shape.batch = x.size(batch_first ? 0 : 1);
            shape.rows = shape.time * shape.batch;
            if (spec.ragged) read_lengths();
        }
        check(shape.time > 0, "Expected sequence length to be larger than 0 in RNN");
    }

    void read_lengths() {
        check(batch_sizes->scalar_type() == ScalarType::Long && batch_sizes->is_cpu(),
              "fastrnn: lengths must be an int64 CPU tensor");
        check_shape("lengths", *batch_sizes, {shape.batch});
        batch_sizes = torch::stable::contiguous(*batch_sizes);
        const auto* const lengths = static_cast<const int64_t*>(batch_sizes->data_ptr());
        for (int64_t b = 0; b < shape.batch; ++b) {
            check(lengths[b] >= 0 && lengths[b] <= shape.time, "fastrnn: a length must be from 0 to ", shape.time,
                  ", got ", lengths[b]);
        }
        if (!order_by_length(lengths, shape.time, shape.batch, sizes, order)) return;  // each takes part in all steps
        shape.rows = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
        shape.batch_sizes = sizes.data();
        shape.order = order.data();
    }

    void read_resets() {
        if (!spec.resets) return;
        check(!operands.empty(), "fastrnn: resets are the last operand");
        resets = std::move(operands.back());
        operands.pop_back();
        check(resets->scalar_type() == ScalarType::Bool, "fastrnn: resets must be bool");
        check(on_one_device(*resets, x), "fastrnn: resets and x must be on the same device");
        if (packed || spec.single_step) {
            check_shape("resets", *resets, {shape.rows});
        } else {
            batch_first ? check_shape("resets", *resets, {shape.batch, shape.time})
                        : check_shape("resets", *resets, {shape.time, shape.batch});
        }
        const Strides strides = strides_of(*resets);
        shape.resets = static_cast<const bool*>(resets->data_ptr());
        shape.resets_stride_time = strides.time;
        shape.resets_stride_batch = strides.batch;
    }

    // weights of a direction are w_ih, w_hh, b_ih, b_hh, w_hr and scales, as many of them as there are
    int matrices() const { return spec.info().recurrent ? 2 : 1; }
    int base() const { return matrices() * (spec.has_biases ? 2 : 1); }  // those before w_hr

    void read_weights() {
        weights_per_direction = static_cast<int>(weights.size()) / shape.directions;
        const ScalarType kept = weights.empty() ? stored : weights[0].scalar_type();
        const bool scaled = kept == ScalarType::Char;
        const int plain = base() + (scaled ? matrices() : 0);
        const bool projected = spec.info().may_project && weights_per_direction == plain + 1;
        check(weights.size() == static_cast<size_t>(shape.directions * (plain + (projected ? 1 : 0))),
              "fastrnn: ", shape.directions, " direction(s) take ", plain, " weights each, got ", weights.size());
        const int64_t gates = spec.info().gates;
        // int8 matrices are packed, so the other weights tell the sizes
        const Tensor& rows = weights[static_cast<size_t>(scaled ? weights_per_direction - 1 : matrices() - 1)];
        check(rows.dim() == (scaled ? 1 : 2), "fastrnn: w_hh must have 2 dimensions, its scales 1");
        shape.hidden = rows.size(0) / gates;
        if (projected) {
            const Tensor& w_hr = weights[static_cast<size_t>(base())];
            check(w_hr.dim() == 2, "fastrnn: w_hr must have 2 dimensions");
            shape.projection = w_hr.size(0);
        }
        recurrent = projected ? shape.projection : shape.hidden;
        shape.heads = spec.heads;
        const auto divides = [&](int64_t width) { return width > 0 && width % (shape.heads * kUnitAlignment) == 0; };
        check(shape.heads == 1 || (spec.info().recurrent && divides(shape.hidden) && divides(recurrent)),
              "fastrnn: each of ", shape.heads, " heads must have a multiple of ", kUnitAlignment, " units");
        const auto check_matrix = [&](const char* name, const Tensor& w, int64_t length) {
            if (!scaled) return check_shape(name, w, {gates * shape.hidden, length});
            check_shape(name, w,
                        {aligned_units(shape.hidden) / kUnitAlignment, (length + 3) / 4, gates, kUnitAlignment, 4});
        };
        for (int d = 0; d < shape.directions; ++d) {
            Tensor* w = &weights[static_cast<size_t>(d * weights_per_direction)];
            check_matrix("w_ih", w[0], shape.input);
            if (spec.info().recurrent) check_matrix("w_hh", w[1], recurrent / shape.heads);
            const char *const biases[] = {"b_ih", "b_hh"}, *const scales[] = {"scale_ih", "scale_hh"};
            for (int i = 0; i < base() - matrices(); ++i) {
                check_shape(biases[i], w[matrices() + i], {gates * shape.hidden});
            }
            if (projected) check_shape("w_hr", w[base()], {shape.projection, shape.hidden});
            for (int i = 0; scaled && i < matrices(); ++i) {
                check_shape(scales[i], w[base() + (projected ? 1 : 0) + i], {gates * shape.hidden});
            }
        }
        if (scaled) format = WeightFormat::int8;
        if (kept == ScalarType::BFloat16 && computed == ScalarType::Float) format = WeightFormat::bfloat16;
        quantized = kept != stored && format != WeightFormat::plain;
        // torch.nn refuses weights of another dtype than x; biases of x's dtype show that it is meant
        check(!quantized || spec.has_biases, "fastrnn: matrices of fewer bits than x come with biases");
        check(!quantized || (stored == ScalarType::Float && on_cpu),
              "fastrnn: matrices of fewer bits than x take a float32 x on the CPU");
        for (Tensor& w : weights) {
            if (format != WeightFormat::plain && w.dim() == (scaled ? 5 : 2)) {
                check(w.scalar_type() == kept && w.is_cpu(), "fastrnn: every matrix must have one dtype and device");
                w = w.is_contiguous() ? w : torch::stable::contiguous(w);
            } else {
                check_dtype("every weight", w, x);
                w = dense(std::move(w));
            }
        }
    }

    void read_states() {
        const auto count = static_cast<size_t>(spec.info().states);
        check(states.empty() || states.size() == count, "fastrnn: expected ", count, " initial states or none, got ",
              states.size());
        for (size_t i = 0; i < states.size(); ++i) {
            check_state("an initial state", states[i], state_width(i));
            states[i] = dense(states[i]);
        }
    }

    // a place that is left empty
    bool is_absent(const Tensor& operand) const {
        return operand.dim() == 1 && operand.numel() == 0 && shape.hidden > 0;
    }

    // of a direction: the cell's, and a recurrent mask
    int operand_count() const { return spec.info().operands + (spec.recurrent_mask ? 1 : 0); }

    void read_operands() {
        check(!spec.recurrent_mask || spec.info().recurrent, "fastrnn: the cell has no recurrent product");
        const auto count = static_cast<size_t>(shape.directions * operand_count());
        check(operands.size() == count, "fastrnn: expected ", count, " operands, got ", operands.size());
        for (size_t i = 0; i < count; ++i) {
            const int place = static_cast<int>(i) % operand_count();
            check(place >= spec.info().operands ||
                      is_absent(operands[i]) == is_absent(operands[static_cast<size_t>(place)]),
                  "fastrnn: both directions take the same operands");
            read_operand(operands[i], place, operands[i - static_cast<size_t>(place)]);
        }
    }

    void read_operand(Tensor& operand, int place, const Tensor& first) const {
        const CellInfo& info = spec.info();
        // what is no parameter may be more exact than x
        const bool exact = place >= info.learned && operand.scalar_type() == computed;
        check_kind("an operand", operand, exact ? computed : stored);
        const bool absent = place < info.operands && is_absent(operand);
        check(!absent || place >= info.required, "fastrnn: ", info.name, " needs its operand ", place);
        check(place >= info.learned || absent == is_absent(first), "fastrnn: ", info.name,
              " takes an operand for each of its parameters, or none");
        if (absent) return;
        const bool zones_h = info.may_project && place == info.learned && place < info.operands;
        check(!zones_h || !shape.projection, "fastrnn: zoneout of h does not go with a projection");
        if (place == info.operands) {
            check_shape("a recurrent mask", operand, {shape.batch, recurrent});
        } else if (place < info.learned || operand.dim() == 1) {
            check_shape("an operand", operand, {(place < info.gate_operands ? info.gates : 1) * shape.hidden});
        } else if (operand.dim() == 2) {
            check_shape("an operand", operand, {shape.batch, shape.hidden});
        } else {
            check_shape("an operand", operand, {shape.time, shape.batch, shape.hidden});
        }
        operand = dense(operand);
    }

    int64_t state_width(size_t index) const { return index == 0 ? recurrent : cell_width(spec.cell, shape.hidden); }

    void widen_all() {
        check(!quantized, "fastrnn: quantized weights have no gradients");
        for (Tensor& w : weights) w = widen(w);
        x = with_unit_stride(widen(x));
        format = WeightFormat::plain;
    }

    void check_kind(const char* name, const Tensor& tensor, ScalarType type) const {
        check(tensor.scalar_type() == type, "fastrnn: ", name, " and x must have the same dtype");
        check(on_one_device(tensor, x), "fastrnn: ", name, " and x must be on the same device");
    }

    void check_state(const char* name, const Tensor& state, int64_t width) const {
        check_kind(name, state, stored);
        spec.single_step ? check_shape(name, state, {shape.batch, width})
                         : check_shape(name, state, {shape.directions, shape.batch, width});
    }

    void check_sequence(const char* name, const Tensor& sequence, int64_t features) const {
        check_kind(name, sequence, stored);
        if (packed || spec.single_step) return check_shape(name, sequence, {shape.rows, features});
        batch_first ? check_shape(name, sequence, {shape.batch, shape.time, features})
                    : check_shape(name, sequence, {shape.time, shape.batch, features});
    }

    Tensor widen(const Tensor& t) const { return widened ? torch::stable::to(t, ScalarType::Float) : t; }
    Tensor narrow(const Tensor& t) const { return widened ? torch::stable::to(t, stored) : t; }
    Tensor dense(Tensor t) const {
        if (widened) t = widen(t);
        return t.is_contiguous() ? t : torch::stable::contiguous(t);
    }

    Tensor empty_sequence(int64_t features, int32_t code) const {
        if (packed || spec.single_step) return empty(x, {shape.rows, features}, code);
        return batch_first ? empty(x, {shape.batch, shape.time, features}, code)
                           : empty(x, {shape.time, shape.batch, features}, code);
    }
    // malloc gives memory of this size back to the system each time that it is freed
    Tensor empty_output(int64_t features, int32_t code) const {
        Tensor made = empty_sequence(features, code);
        constexpr size_t kGivenBack = size_t{32} << 20;
        const bool large = static_cast<size_t>(made.numel()) * made.element_size() >= kGivenBack;
        return large ? in_huge_pages(std::move(made)) : made;
    }
    Tensor empty_state(int64_t width) const {
        return spec.single_step ? empty(x, {shape.batch, width}, dtype_code)
                                : empty(x, {shape.directions, shape.batch, width}, dtype_code);
    }
    Tensor empty_like_weight(const Tensor& w) const {
        return w.dim() == 2 ? in_huge_pages(empty(x, {w.size(0), w.size(1)}, dtype_code))
                            : empty(x, {w.size(0)}, dtype_code);
    }
    Tensor nothing() const { return empty(x, {0}, dtype_code); }
    // of a ragged sequence there is room for all of x, so that its size does not depend on the lengths
    int64_t reserve_rows() const { return spec.ragged ? shape.time * shape.batch : shape.rows; }
    Tensor empty_reserve() const {
        const int64_t values = spec.info().saved, units = padded_units(shape.hidden), row = values * units;
        const int64_t rows = reserve_rows();
        const int64_t sizes[] = {shape.directions, rows, values, units}, strides[] = {rows * row, row, units, 1};
        const ScalarType type = stored == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
        const auto bytes = static_cast<size_t>(shape.directions * rows * row) * (type == ScalarType::Double ? 8 : 4);
        if (!x.is_cpu() || bytes < KeptMemory::kLeastBlock) {
            return empty(x, {shape.directions, rows, values, units}, reserve_code);
        }
        Pages pages = kept_memory().take_block(bytes);
        void* const data = pages.data();
        return torch::stable::from_blob(
            data, sizes, strides, torch::stable::Device(torch::headeronly::DeviceType::CPU), type,
            [pages = std::move(pages)](void*) mutable { kept_memory().give_block(std::move(pages)); });
    }

    struct Strides {
        int64_t time, batch;
    };
    Strides strides_of(const Tensor& sequence) const {
        if (packed || spec.single_step) return {0, sequence.stride(0)};
        return {sequence.stride(batch_first ? 1 : 0), sequence.stride(batch_first ? 0 : 1)};
    }

    // the members that ForwardParams and BackwardParams share
    template <class Params>
    void fill(Params& p) const {
        p.dtype = dtype_of(computed);
        p.cell = spec.cell;
        p.functions = spec.functions;
        p.shape = shape;
        p.shape.packed = packed;
        for (int d = 0; d < shape.directions; ++d) {
            const Tensor* w = &weights[static_cast<size_t>(d * weights_per_direction)];
            const bool recurrent_too = spec.info().recurrent;
            p.weights[d].w_ih = w[0].data_ptr();
            if (recurrent_too) p.weights[d].w_hh = w[1].data_ptr();
            if (spec.has_biases) p.weights[d].b_ih = w[matrices()].data_ptr();
            if (spec.has_biases && recurrent_too) p.weights[d].b_hh = w[3].data_ptr();
            if (shape.projection) p.weights[d].w_hr = w[base()].data_ptr();
            for (int i = 0; i < spec.info().operands; ++i) {
                const Tensor& operand = operands[static_cast<size_t>(d * operand_count() + i)];
                if (is_absent(operand)) continue;
                const int64_t dim = operand.dim();
                p.weights[d].operands[i] = {operand.data_ptr(), dim == 3 ? shape.batch * shape.hidden : 0,
                                            dim >= 2 ? shape.hidden : 0};
            }
            if (spec.recurrent_mask) {
                p.weights[d].recurrent_mask = operands[static_cast<size_t>((d + 1) * operand_count() - 1)].data_ptr();
            }
            if (format != WeightFormat::int8) continue;
            const Tensor* scale = w + base() + (shape.projection ? 1 : 0);
            p.weights[d].scale_ih = static_cast<const float*>(scale[0].data_ptr());
            if (recurrent_too) p.weights[d].scale_hh = static_cast<const float*>(scale[1].data_ptr());
        }
        const Strides x_strides = strides_of(x);
        p.x = x.data_ptr();
        p.x_stride_time = x_strides.time;
        p.x_stride_batch = x_strides.batch;
        p.h0 = states.empty() ? nullptr : states[0].data_ptr();
        p.c0 = states.size() < 2 ? nullptr : states[1].data_ptr();
        p.threads = x.is_cpu() ? static_cast<int>(torch::stable::get_num_threads()) : 1;
    }
};

}  // namespace
}  // namespace fastrnn
