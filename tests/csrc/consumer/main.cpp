#include <fastrnn/kernels.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

// h = tanh(w x), one step, one unit
int main() {
    const float w_ih = 0.5f, w_hh = 0.0f, x = 1.5f;
    float y = 0, h_n = 0;
    fastrnn::ForwardParams params{};
    params.dtype = fastrnn::DType::float32;
    params.cell = fastrnn::Cell::rnn;
    params.functions = {fastrnn::Activation::tanh};
    params.shape = {1, 1, 1, 1, 1, 0, 1, nullptr};
    params.weights[0] = {&w_ih, &w_hh, nullptr, nullptr, nullptr};
    params.x = &x;
    params.x_stride_time = params.x_stride_batch = params.y_stride_time = params.y_stride_batch = 1;
    params.y = &y;
    params.h_n = &h_n;
    params.threads = 1;
    const size_t bytes = (fastrnn::forward_workspace_bytes(params) + 63) / 64 * 64;
    params.workspace = std::aligned_alloc(64, bytes);
    fastrnn::forward(params);
    std::free(params.workspace);
    std::printf("%s: tanh(0.75) = %.6f\n", fastrnn::active_isa(), static_cast<double>(y));
    return std::fabs(y - std::tanh(0.75f)) < 1e-6f && y == h_n ? EXIT_SUCCESS : EXIT_FAILURE;
}
