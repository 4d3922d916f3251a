// What the engines' passes share: the matrices that a layer's products work on, and the way from a cell's name and a
// type to its instantiation.
#pragma once

#include "sequence.cuh"

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "fastrnn/cuda_kernels.h"

namespace fastrnn {
namespace {

template <class X>
struct TypeName;
template <>
struct TypeName<float> {
    static constexpr DType value = DType::float32;
};
template <>
struct TypeName<double> {
    static constexpr DType value = DType::float64;
};
template <>
struct TypeName<bfloat16> {
    static constexpr DType value = DType::bfloat16;
};
template <>
struct TypeName<float16> {
    static constexpr DType value = DType::float16;
};

// whether the slots of a cell are fed by x, and by h
template <class C>
FASTRNN_INLINE constexpr bool from_x(int slot) {
    return slot >= C::kInputBegin && slot < C::kInputBegin + C::kInputCount;
}
template <class C>
FASTRNN_INLINE constexpr bool from_h(int slot) {
    return C::kResetBefore || (slot >= C::kRecurrentBegin && slot < C::kRecurrentBegin + C::kRecurrentCount);
}
template <class C>
constexpr int kStored = C::kSaved > C::kSlots ? C::kSaved : C::kSlots;  // values that C::forward works on
// one slot of the GRU takes x alone and one h alone: the gradients of its two products differ
template <class C>
constexpr bool kTwoGradients = C::kSlots > C::kGates;

// One direction's weights and matrices for Products.
template <class X>
Matrix matrix(const X* data, int64_t rows, int64_t columns, int64_t stride = 0) {
    return {const_cast<X*>(data), TypeName<X>::value, rows, columns, stride ? stride : columns};
}

// the rows of x as one matrix: as they lie where they are evenly apart, else copied
template <class X>
class InputRows {
   public:
    InputRows(const void* x, Strides strides, const Timeline& timeline, int64_t features)
        : x_(static_cast<const X*>(x)), strides_(strides), features_(features), stride_(strides.of_rows(timeline)) {}
    int64_t copied_rows(int64_t rows) const { return stride_ ? 0 : rows; }

    // rows first .. first + count; `copy` has room for them
    Matrix rows(Queue& queue, const Timeline& timeline, int64_t first, int64_t count, X* copy) const {
        if (stride_) return matrix(x_ + first * stride_, count, features_, stride_);
        const Strides dense{timeline.batch * features_, features_};
        queue.for_each(count * features_, copy_rows<X>, x_, strides_, copy - first * features_, dense, timeline, first,
                       count, features_);
        return matrix(copy, count, features_);
    }

   private:
    const X* x_;
    Strides strides_;
    int64_t features_, stride_;
};

// calls visit.template call<Pass<X, C>>() for the cell
template <template <class, class> class Pass, class X, class Visit>
auto visit_cell(Cell cell, Activation activation, const Visit& visit) {
    const auto with = [&](auto act) {
        using Act = decltype(act);
        switch (cell) {
            case Cell::gru: return visit.template call<Pass<X, GruCell<Act>>>();
            case Cell::gru_reset_before: return visit.template call<Pass<X, GruResetBeforeCell<Act>>>();
            case Cell::rnn: return visit.template call<Pass<X, RnnCell<Act>>>();
            default: return visit.template call<Pass<X, LstmCell<Act>>>();
        }
    };
    switch (activation) {
        case Activation::softsign: return with(SoftsignActivation{});
        case Activation::relu: return with(ReluActivation{});
        case Activation::hardtanh: return with(HardtanhActivation{});
        default: return with(TanhActivation{});
    }
}

template <template <class, class> class Pass, class Visit>
auto visit_pass(DType dtype, Cell cell, Activation activation, const Visit& visit) {
    switch (dtype) {
        case DType::float64: return visit_cell<Pass, double>(cell, activation, visit);
        case DType::bfloat16: return visit_cell<Pass, bfloat16>(cell, activation, visit);
        case DType::float16: return visit_cell<Pass, float16>(cell, activation, visit);
        default: return visit_cell<Pass, float>(cell, activation, visit);
    }
}

// a pass is a class over its parameters whose constructor lays out the workspace; a null workspace measures
template <class Params>
struct Measure {
    const Params& params;
    const CudaPlan& plan;
    template <class P>
    size_t call() const {
        return P(params, plan, nullptr).workspace_bytes();
    }
};
template <class Params>
struct Run {
    const Params& params;
    const CudaPlan& plan;
    Products& products;
    cudaStream_t stream;
    template <class P>
    cudaError_t call() const {
        return P(params, plan, params.workspace).run(products, stream);
    }
};

}  // namespace

// each engine's entry points, one file each
size_t steps_forward_bytes(const ForwardParams& params, const CudaPlan& plan);
size_t steps_backward_bytes(const BackwardParams& params, const CudaPlan& plan);
size_t grid_forward_bytes(const ForwardParams& params, const CudaPlan& plan);
size_t grid_backward_bytes(const BackwardParams& params, const CudaPlan& plan);
cudaError_t steps_forward(const ForwardParams&, const CudaPlan&, Products&, cudaStream_t);
cudaError_t steps_backward(const BackwardParams&, const CudaPlan&, Products&, cudaStream_t);
cudaError_t grid_forward(const ForwardParams&, const CudaPlan&, Products&, cudaStream_t);
cudaError_t grid_backward(const BackwardParams&, const CudaPlan&, Products&, cudaStream_t);

}  // namespace fastrnn
