// Every cell as the engines see it: its traits, and the functions that do its arithmetic.
#pragma once

#include "norm-inl.h"
#include "tile-inl.h"

namespace fastrnn {
namespace {

// A cell as the engines see it.
template <class T>
struct CellFunctions {
    CellTraits traits;
    ForwardFunction<T> forward[kMaxCellStages];
    BackwardFunction<T> backward[kMaxCellStages];
    SumFunction<T> sums;  // of a cell of whole rows; null: the engine makes them of d_values
};

template <class T, class C>
constexpr CellFunctions<T> functions_of() {
    if constexpr (C::traits().whole_rows) {
        return {C::traits(), {forward_rows<T, C>}, {backward_rows<T, C>}, sum_row_gradients<T, C>};
    } else {
        constexpr int kSecond = C::traits().stages - 1;  // of two stages; of one the same again
        return {C::traits(),
                {forward_tile<T, C, 0>, forward_tile<T, C, kSecond>},
                {backward_tile<T, C, 0>, backward_tile<T, C, kSecond>},
                nullptr};
    }
}

template <class T>
const CellFunctions<T>& cell_functions(Cell cell, Functions functions) {
    static constexpr CellFunctions<T> kUsual[kCellCount] = {
#define FASTRNN_CELL(name, Template, ...) functions_of<T, Template<FixedFunctions<TanhActivation>>>(),
#include "fastrnn/cells.def"
    };
    static constexpr CellFunctions<T> kOthers[kCellCount] = {
#define FASTRNN_CELL(name, Template, ...) functions_of<T, Template<ChosenFunctions>>(),
#include "fastrnn/cells.def"
    };
    const bool usual = functions.candidate == Activation::tanh && functions.gate == Activation::sigmoid;
    return (usual ? kUsual : kOthers)[static_cast<int>(cell)];
}

// what the cell is in a call, whose operands say what it does without
inline CellTraits traits_in_call(CellTraits traits, const Weights& weights) {
    if (traits.zone_h >= 0 && weights.operands[traits.zone_h].data) traits.reads_h = true;
    if (traits.learned && !weights.operands[0].data) traits.learned = 0;
    return traits;
}

}  // namespace
}  // namespace fastrnn
