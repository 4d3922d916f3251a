// The ops of fastrnn 0.1, which a program that was saved with it names: they say what to do.
#include <torch/csrc/stable/library.h>

#include <stdexcept>

namespace fastrnn {
namespace {

// Boxed, so that one serves every schema; its arguments are left to the process, which this error seldom survives.
void refuse(StableIValue*, uint64_t, uint64_t) {
    throw std::runtime_error(
        "fastrnn: this program was saved with fastrnn 0.1, whose ops this version does not have; export or trace the "
        "model again");
}

}  // namespace
}  // namespace fastrnn

STABLE_TORCH_LIBRARY_FRAGMENT(fastrnn, m) {
    m.def(
        "lstm_forward(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, bool has_biases, "
        "bool batch_first, bool bidirectional, str activation, bool training) "
        "-> (Tensor y, Tensor h_n, Tensor c_n, Tensor reserve)");
    m.def(
        "lstm_backward(Tensor? d_y, Tensor? d_h_n, Tensor? d_c_n, Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, "
        "Tensor? batch_sizes, Tensor y, Tensor reserve, bool has_biases, bool batch_first, bool bidirectional, "
        "str activation, bool needs_x, bool needs_state, bool needs_weights) "
        "-> (Tensor d_x, Tensor d_h0, Tensor d_c0, Tensor[] d_weights)");
    m.def(
        "gru_forward(Tensor x, Tensor? h0, Tensor[] weights, Tensor? batch_sizes, bool has_biases, bool batch_first, "
        "bool bidirectional, bool reset_after, str activation, bool training) -> (Tensor y, Tensor h_n, Tensor reserve)");
    m.def(
        "gru_backward(Tensor? d_y, Tensor? d_h_n, Tensor x, Tensor? h0, Tensor[] weights, Tensor? batch_sizes, Tensor y, "
        "Tensor reserve, bool has_biases, bool batch_first, bool bidirectional, bool reset_after, str activation, "
        "bool needs_x, bool needs_state, bool needs_weights) -> (Tensor d_x, Tensor d_h0, Tensor[] d_weights)");
    m.def(
        "rnn_forward(Tensor x, Tensor? h0, Tensor[] weights, Tensor? batch_sizes, bool has_biases, bool batch_first, "
        "bool bidirectional, str nonlinearity, bool training) -> (Tensor y, Tensor h_n, Tensor reserve)");
    m.def(
        "rnn_backward(Tensor? d_y, Tensor? d_h_n, Tensor x, Tensor? h0, Tensor[] weights, Tensor? batch_sizes, Tensor y, "
        "Tensor reserve, bool has_biases, bool batch_first, bool bidirectional, str nonlinearity, bool needs_x, "
        "bool needs_state, bool needs_weights) -> (Tensor d_x, Tensor d_h0, Tensor[] d_weights)");
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CompositeExplicitAutograd, m) {
    m.impl("lstm_forward", &fastrnn::refuse);
    m.impl("lstm_backward", &fastrnn::refuse);
    m.impl("gru_forward", &fastrnn::refuse);
    m.impl("gru_backward", &fastrnn::refuse);
    m.impl("rnn_forward", &fastrnn::refuse);
    m.impl("rnn_backward", &fastrnn::refuse);
}
