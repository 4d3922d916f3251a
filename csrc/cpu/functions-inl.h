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
const CellFunctions<T>& cell_functions(Cell cell, Activation activation) {
    static constexpr CellFunctions<T> kFunctions[kCellCount][kActivationCount] = {
#define FASTRNN_CELL(name, Template, ...)                                                          \
    {functions_of<T, Template<TanhActivation>>(), functions_of<T, Template<SoftsignActivation>>(), \
     functions_of<T, Template<ReluActivation>>(), functions_of<T, Template<HardtanhActivation>>()},
#include "fastrnn/cells.def"
    };
    return kFunctions[static_cast<int>(cell)][static_cast<int>(activation)];
}

}  // namespace
}  // namespace fastrnn
