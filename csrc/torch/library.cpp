// Every op's schema.
#include <torch/csrc/stable/library.h>

// Shapes and meanings: fastrnn/_ops.py.
STABLE_TORCH_LIBRARY(fastrnn, m) {
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
    m.def("active_isa() -> str");
    m.def("compiled_isas() -> str");
    m.def("supported_isas() -> str");
    m.def("force_isa(str name) -> ()");
    m.def("num_threads() -> int");
    m.def(
        "plan(str cell, int time, int batch, int input, int hidden, bool bidirectional, int threads) "
        "-> (int threads, int batch_parts, int unit_parts, float seconds)");
    m.def("cuda_compiled() -> bool");
    m.def("cuda_capability() -> int");
    m.def(
        "cuda_plan(str cell, str dtype, int[] sizes, bool packed, bool backward, str wanted, str device, "
        "int[] properties) -> str");
    m.def(
        "torch_is_quicker(str cell, str dtype, int[] sizes, bool packed, bool training, str device, int[] properties) "
        "-> bool");
}
