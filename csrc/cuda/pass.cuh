// What the engines' passes share: the matrices that a layer's products work on, and the way from a cell's name and a
// type to its instantiation.
#pragma once

#include <type_traits>

#include "sequence.cuh"

#include "../cells/all.h"
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

// A cell's traits as the kernels read them.
template <class C>
constexpr int kGates = C::traits().gates;
template <class C>
constexpr int kSlots = C::traits().slots;
template <class C>
constexpr int kSaved = C::traits().saved;
template <class C>
constexpr int kStored = C::traits().stored();
template <class C>
constexpr int kSavedC = C::traits().c_saved;
template <class C>
constexpr bool kHasC = C::traits().c_saved >= 0;
template <class C>
constexpr bool kReadsH = C::traits().reads_h;
template <class C>
constexpr int kLastStage = C::traits().stages - 1;
template <class C>
FASTRNN_INLINE constexpr int gate_of(int slot) {
    constexpr CellTraits traits = C::traits();
    return traits.gate_of_slot[slot];
}
template <class C>
FASTRNN_INLINE constexpr bool from_x(int slot) {
    constexpr CellTraits traits = C::traits();
    return traits.input.has(slot);
}
// whether a stage up to `stage` has fed the slot by its product
template <class C>
FASTRNN_INLINE constexpr bool from_h(int slot, int stage = kLastStage<C>) {
    constexpr CellTraits traits = C::traits();
    for (int s = 0; s <= stage; ++s) {
        if (traits.recurrent[s].has(slot)) return true;
    }
    return false;
}
template <class C>
FASTRNN_INLINE constexpr int stage_of(int slot) {
    constexpr CellTraits traits = C::traits();
    int stage = 0;
    while (stage < kLastStage<C> && !traits.recurrent[stage].has(slot)) ++stage;
    return stage;
}
// whether a slot takes x alone or h alone: the gradients of the two products differ
template <class C>
constexpr bool has_two_gradients() {
    for (int slot = 0; slot < kSlots<C>; ++slot) {
        if (from_x<C>(slot) != from_h<C>(slot)) return true;
    }
    return false;
}
template <class C>
constexpr bool kTwoGradients = has_two_gradients<C>();

// The gates, in torch's order, whose rows of w_hh a stage's product takes.
template <class C, int Stage>
FASTRNN_INLINE constexpr SlotRange find_stage_gates() {
    constexpr CellTraits traits = C::traits();
    constexpr SlotRange slots = traits.recurrent[Stage];
    int first = traits.gates, last = -1;
    for (int slot = slots.begin; slot < slots.end(); ++slot) {
        const int gate = traits.gate_of_slot[slot];
        first = gate < first ? gate : first;
        last = gate > last ? gate : last;
    }
    return {first, last - first + 1};
}
template <class C, int Stage>
FASTRNN_INLINE constexpr SlotRange stage_gates() {
    constexpr SlotRange found = find_stage_gates<C, Stage>();
    static_assert(found.count == C::traits().recurrent[Stage].count, "a stage's rows of w_hh do not lie together");
    return found;
}

// calls visit(stage) with each stage of C, as an integral constant: in order, and from the last to the first
template <class C, int Stage = 0, class Visit>
void for_each_stage(const Visit& visit) {
    visit(std::integral_constant<int, Stage>{});
    if constexpr (Stage < kLastStage<C>) for_each_stage<C, Stage + 1>(visit);
}
template <class C, int Stage = kLastStage<C>, class Visit>
void for_each_stage_back(const Visit& visit) {
    visit(std::integral_constant<int, Stage>{});
    if constexpr (Stage > 0) for_each_stage_back<C, Stage - 1>(visit);
}

// the arithmetic of a step from its first stage: only what the products take goes from launch to launch
template <class C, int Stage, class V>
FASTRNN_INLINE void forward_until(ForwardUnit<V>& unit) {
    if constexpr (Stage > 0) forward_until<C, Stage - 1>(unit);
    C::template forward<Stage>(unit);
}

// One direction's weights and matrices for Products.
template <class X>
Matrix matrix(const X* data, int64_t rows, int64_t columns, int64_t stride = 0) {
    return {const_cast<X*>(data), TypeName<X>::value, rows, columns, stride ? stride : columns};
}

// the rows of x as one matrix: as they lie where they are evenly apart, else copied
template <class X>
class InputRows {
   public:
    InputRows(const void* x, Strides strides, const Shape& shape)
        : x_(static_cast<const X*>(x)),
          strides_(strides),
          features_(shape.input),
          stride_(row_stride(strides, shape)),
          steps_{shape.time, shape.batch, nullptr, nullptr, false} {}
    int64_t copied_rows(int64_t rows) const { return stride_ ? 0 : rows; }

    // rows first .. first + count; `copy` has room for them
    Matrix rows(Queue& queue, int64_t first, int64_t count, X* copy) const {
        if (stride_) return matrix(x_ + first * stride_, count, features_, stride_);
        queue.for_each(count * features_, copy_rows<X>, x_, strides_, copy - first * features_,
                       Strides{0, features_, true}, steps_, first, count, features_);
        return matrix(copy, count, features_);
    }

   private:
    const X* x_;
    Strides strides_;
    int64_t features_, stride_;
    Steps steps_;  // of rows that are copied, which are not packed
};

// a cell that the engines have the arithmetic for; the others are refused
template <class C>
constexpr bool kRuns = C::traits().operands == 0 && C::traits().recurrent[0].count > 0 && C::traits().memories == 1;

template <template <class, class> class Pass, class X, class C, class Visit>
auto visit_known(const Visit& visit) {
    if constexpr (kRuns<C>) {
        return visit.template call<Pass<X, C>>();
    } else {
        return visit.refuse();
    }
}

// calls visit.template call<Pass<X, C>>() for the cell
template <template <class, class> class Pass, class X, class Act, class Visit>
auto visit_cell(Cell cell, const Visit& visit) {
    switch (cell) {
#define FASTRNN_CELL(name, Template, ...) \
    case Cell::name: return visit_known<Pass, X, Template<Act>>(visit);
#include "fastrnn/cells.def"
        default: return visit.refuse();
    }
}

template <template <class, class> class Pass, class X, class Visit>
auto visit_functions(Cell cell, Functions functions, const Visit& visit) {
    if (functions.gate != Activation::sigmoid) return visit.refuse();
    switch (functions.candidate) {
        case Activation::tanh: return visit_cell<Pass, X, FixedFunctions<TanhActivation>>(cell, visit);
        case Activation::softsign: return visit_cell<Pass, X, FixedFunctions<SoftsignActivation>>(cell, visit);
        case Activation::relu: return visit_cell<Pass, X, FixedFunctions<ReluActivation>>(cell, visit);
        case Activation::hardtanh: return visit_cell<Pass, X, FixedFunctions<HardtanhActivation>>(cell, visit);
        default: return visit.refuse();
    }
}

template <template <class, class> class Pass, class Visit>
auto visit_pass(DType dtype, Cell cell, Functions functions, const Visit& visit) {
    switch (dtype) {
        case DType::float64: return visit_functions<Pass, double>(cell, functions, visit);
        case DType::bfloat16: return visit_functions<Pass, bfloat16>(cell, functions, visit);
        case DType::float16: return visit_functions<Pass, float16>(cell, functions, visit);
        default: return visit_functions<Pass, float>(cell, functions, visit);
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
    size_t refuse() const { return 0; }
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
    cudaError_t refuse() const { return cudaErrorNotSupported; }
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
