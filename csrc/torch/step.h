// One time step of one direction for a caller that has addresses: no dispatcher, no tensors. What libfastrnn_ops.so
// offers beside its ops.
#pragma once

#include <cstdint>

extern "C" {

// What stays from step to step, as fastrnn/stream.py packs it; null for what there is not. Every array is contiguous.
struct FastrnnStep {
    int64_t cell, activation, is_float64, weight_format;  // enumerators
    int64_t batch, input, hidden, projection;
    void *h, *c;  // [B, R], [B, H], read and written
    void* y;      // [B, R]
    const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
    const float *scale_ih, *scale_hh;
};

// x: [B, I]. Returns null, or why it failed, which holds until this thread's next call.
__attribute__((visibility("default"))) const char* fastrnn_step(const FastrnnStep* step, const void* x);
}
