// fastrnn/stream.py checks what it passes.
#include "step.h"

#include <torch/csrc/stable/ops.h>

#include <exception>
#include <string>

#include "fastrnn/kernels.h"
#include "workspace.h"

namespace fastrnn {
namespace {

void run(const FastrnnStep& step, const void* x) {
    ForwardParams p{};
    p.cell = static_cast<Cell>(step.cell);
    p.activation = static_cast<Activation>(step.activation);
    p.dtype = step.is_float64 ? DType::float64 : DType::float32;
    p.format = static_cast<WeightFormat>(step.weight_format);
    p.shape.time = 1;
    p.shape.batch = p.shape.rows = step.batch;
    p.shape.input = step.input;
    p.shape.hidden = step.hidden;
    p.shape.projection = step.projection;
    p.shape.directions = 1;
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
    const Kernels& kernels = active_kernels();
    const Workspace workspace(forward_workspace_bytes(p, kernels));
    p.workspace = workspace.data();
    forward(p, kernels);
}

}  // namespace
}  // namespace fastrnn

const char* fastrnn_step(const FastrnnStep* step, const void* x) {
    thread_local std::string failure;
    try {
        fastrnn::run(*step, x);
        return nullptr;
    } catch (const std::exception& error) {
        failure = error.what();
        return failure.c_str();
    }
}
