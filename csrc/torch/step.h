// One time step of the layers of a stack for a caller that has addresses: no dispatcher, no tensors. What
// libfastrnn_ops.so offers beside its ops.
#pragma once

#include <cstdint>

extern "C" {

// What a layer keeps from step to step, as fastrnn/stream.py packs it; null for what there is not. Every array is
// contiguous.
struct FastrnnStep {
    int64_t cell, activation, gate_activation, is_float64, weight_format;  // enumerators
    int64_t batch, input, hidden, projection, heads;
    void *h, *c;  // [B, R], [B, H], read and written
    void* y;      // [B, R]: the next layer's x
    const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
    const float *scale_ih, *scale_hh;
};

// Tensors whose addresses are in a FastrnnStep. The op `watch` makes one.
struct FastrnnWatch;

// steps: [layers] without any alignment. x: [B, I]. Returns null, or why it failed, which holds until this thread's
// next call.
__attribute__((visibility("default"))) const char* fastrnn_step(const void* steps, int64_t layers, const void* x);

// Whether a tensor has another address, size or shape than it had; while no other thread changes one.
__attribute__((visibility("default"))) bool fastrnn_has_moved(const FastrnnWatch* watch);
__attribute__((visibility("default"))) void fastrnn_delete_watch(FastrnnWatch* watch);
}
