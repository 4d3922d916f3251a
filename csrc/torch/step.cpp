// fastrnn/stream.py checks what it passes.
#include "step.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "run_cpu.h"

using torch::stable::Tensor;

// The handles are of the very tensors that Python has, so that they follow what becomes of these.
struct FastrnnWatch {
    struct Place {
        Tensor tensor;
        const void* data;
        int64_t bytes;  // of its storage
        std::vector<int64_t> sizes, strides;

        explicit Place(Tensor given)
            : tensor(std::move(given)),
              data(tensor.data_ptr()),
              bytes(storage_bytes()),
              sizes(tensor.sizes().begin(), tensor.sizes().end()),
              strides(tensor.strides().begin(), tensor.strides().end()) {}

        int64_t storage_bytes() const {
            int64_t found;
            const AOTITorchError error = aoti_torch_get_storage_size(tensor.get(), &found);
            return error == AOTI_TORCH_SUCCESS ? found : -1;
        }
        bool moved() const {
            const auto are = [](const auto& found, const std::vector<int64_t>& known) {
                return std::equal(found.begin(), found.end(), known.begin(), known.end());
            };
            return storage_bytes() != bytes || tensor.data_ptr() != data || !are(tensor.sizes(), sizes) ||
                   !are(tensor.strides(), strides);
        }
    };
    std::vector<Place> places;
};

namespace fastrnn {
namespace {

void run(const FastrnnStep& step, const void* x) {
    ForwardParams p{};
    p.cell = static_cast<Cell>(step.cell);
    p.functions = {static_cast<Activation>(step.activation), static_cast<Activation>(step.gate_activation)};
    p.dtype = step.is_float64 ? DType::float64 : DType::float32;
    p.format = static_cast<WeightFormat>(step.weight_format);
    p.shape.time = 1;
    p.shape.batch = p.shape.rows = step.batch;
    p.shape.input = step.input;
    p.shape.hidden = step.hidden;
    p.shape.projection = step.projection;
    p.shape.directions = 1;
    p.shape.heads = step.heads;
    p.x = x;
    p.x_stride_batch = step.input;
    p.y_stride_batch = step.projection ? step.projection : step.hidden;
    p.h0 = p.h_n = step.h;
    p.c0 = p.c_n = step.c;
    p.y = step.y;
    p.weights[0] = {step.w_ih, step.w_hh, step.b_ih, step.b_hh, step.w_hr};
    p.weights[0].scale_ih = step.scale_ih;
    p.weights[0].scale_hh = step.scale_hh;
    p.threads = static_cast<int>(torch::stable::get_num_threads());
    run_on_cpu(p);
}

int64_t watch_op(std::vector<Tensor> tensors) {
    auto watch = std::make_unique<FastrnnWatch>();
    for (Tensor& tensor : tensors) watch->places.emplace_back(std::move(tensor));
    return reinterpret_cast<int64_t>(watch.release());
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_FRAGMENT(fastrnn, m) {
    m.def("watch(Tensor[] tensors) -> int");  // the address of a FastrnnWatch
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) { m.impl("watch", TORCH_BOX(&fastrnn::watch_op)); }

const char* fastrnn_step(const void* steps, int64_t layers, const void* x) {
    thread_local std::string failure;
    try {
        for (int64_t layer = 0; layer < layers; ++layer) {
            FastrnnStep step;
            std::memcpy(&step, static_cast<const char*>(steps) + layer * static_cast<int64_t>(sizeof step),
                        sizeof step);
            fastrnn::run(step, x);
            x = step.y;
        }
        return nullptr;
    } catch (const std::exception& error) {
        failure = error.what();
        return failure.c_str();
    }
}

bool fastrnn_has_moved(const FastrnnWatch* watch) {
    try {
        return std::any_of(watch->places.begin(), watch->places.end(), [](const auto& place) { return place.moved(); });
    } catch (const std::exception&) {  // a tensor without memory
        return true;
    }
}

void fastrnn_delete_watch(FastrnnWatch* watch) { delete watch; }
