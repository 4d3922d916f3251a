// What a way of storing weights means to the engine: which forms of a product it has, and where each pays.
#pragma once

#include "bfloat16-inl.h"

namespace fastrnn {
namespace {

constexpr int64_t kUnpackedBatch = 2;  // rows a step up to which weights that many steps read are not packed

template <class T>
struct Storage {
    const ProductForm<T>* packed;      // null: the weights come packed
    const ProductForm<T>* as_it_lies;  // for few rows
    const ProductForm<T>* in_lanes;    // for more of them, in few steps; null: there is none
    Arithmetic arithmetic;
    bool widens;  // many steps of few rows do not pay for packing, for packed weights take more bytes
    int64_t unpacked_batch = kUnpackedBatch;
};

// A Bfloat16Unit's: about half of what it does from the nearest caches, and what a cell's arithmetic costs beside it.
constexpr Arithmetic kUnitArithmetic{2, 1.0 / 1200e9, kBfloat16Rows, 0.6e-9};
constexpr int64_t kUnitUnpackedBatch = 3;  // it takes as long for one row as for 16

template <class T>
Storage<T> storage_of(WeightFormat format) {
    static constexpr ProductForm<T> kPanels = Panels<T, T>::form();
    static constexpr ProductForm<T> kPlain{not_packed<T>, nullptr, nullptr, nullptr, AsItLies<T, T>::multiply};
    static constexpr ProductForm<T> kLanes = Lanes<T>::form();
    if constexpr (sizeof(T) == sizeof(float)) {
        static constexpr ProductForm<T> kWidened = Panels<T, Bfloat16>::form();
        static constexpr ProductForm<T> kBfloat16{not_packed<T>, nullptr, split_size, prepare_each<T, split_row>,
                                                  AsItLies<T, Bfloat16>::multiply};
        static constexpr ProductForm<T> kInt8{not_packed<T>, nullptr, Int8Product::prepared_size,
                                              prepare_each<T, round_row>, Int8Product::multiply};
        if (format == WeightFormat::bfloat16) {
            return {&kWidened, &kBfloat16, nullptr, arithmetic_of<T>(sizeof(Bfloat16)), true};
        }
        if (format == WeightFormat::int8) return {nullptr, &kInt8, nullptr, arithmetic_of<T>(sizeof(int8_t)), true};
    }
    return {&kPanels, &kPlain, &kLanes, arithmetic_of<T>(sizeof(T)), false};
}

// of weights in bfloat16 that meet x as it is stored, or what is made from it; `unit` may be null
template <class T>
Storage<T> storage_of_bfloat16(bool meets_x, [[maybe_unused]] const Bfloat16Unit* unit) {
    Storage<T> storage = storage_of<T>(WeightFormat::bfloat16);
    if constexpr (sizeof(T) == sizeof(float)) {
        static constexpr ProductForm<T> kLying{not_packed<T>, nullptr, split_size, prepare_each<T, split_stored_row>,
                                               AsItLies<T, Bfloat16>::multiply};
        static constexpr ProductForm<T> kPanels{Panels<T, Bfloat16>::packed_size, Panels<T, Bfloat16>::pack,
                                                widened_size, prepare_each<T, widen_row>,
                                                Panels<T, Bfloat16>::multiply};
        if (meets_x) {
            storage.as_it_lies = &kLying;
            storage.packed = &kPanels;
        }
        if constexpr (Vec<T>::kLanes == kBfloat16Units) {
            using Unit = UnitProduct;
            static constexpr ProductForm<T> kStored{Unit::packed_size, Unit::pack, Unit::prepared_size, Unit::copy,
                                                    Unit::multiply};
            static constexpr ProductForm<T> kRounded{Unit::packed_size, Unit::pack, Unit::prepared_size, Unit::prepare,
                                                     Unit::multiply};
            if (unit) {
                storage.packed = meets_x ? &kStored : &kRounded;
                storage.arithmetic = kUnitArithmetic;
                storage.unpacked_batch = kUnitUnpackedBatch;
            }
        }
    }
    return storage;
}

}  // namespace
}  // namespace fastrnn
