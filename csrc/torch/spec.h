// The form of a layer as one integer, the `spec` of the layer ops. Nothing else knows the places of its bits: Python
// learns them from describe().
#pragma once

#include <string>

#include "checks.h"
#include "fastrnn/kernels.h"

namespace fastrnn {

struct BitField {
    const char* name;
    int first, count;

    constexpr int64_t of(int64_t bits) const { return (bits >> first) & ((int64_t{1} << count) - 1); }
};

namespace spec_fields {
inline constexpr BitField kCell{"cell", 0, 8};              // an enumerator of Cell
inline constexpr BitField kActivation{"activation", 8, 8};  // of Activation; 0 where the cell takes none
inline constexpr BitField kHasBiases{"has_biases", 16, 1};
inline constexpr BitField kBatchFirst{"batch_first", 17, 1};
inline constexpr BitField kBidirectional{"bidirectional", 18, 1};
inline constexpr BitField kSingleStep{"single_step", 19, 1};        // x [B, I]; states lack D
inline constexpr BitField kQuiet{"quiet", 20, 1};                   // forward returns [] for arguments that it refuses
inline constexpr BitField kHeads{"heads", 21, 12};                  // of the recurrent weights, less one
inline constexpr BitField kRecurrentMask{"recurrent_mask", 33, 1};  // the last operand of a direction
inline constexpr BitField kRagged{"ragged", 34, 1};                 // batch_sizes are the rows' lengths, int64 [B]
inline constexpr BitField kResets{"resets", 35, 1};                 // the last of all operands
inline constexpr BitField kCellStates{"cell_states", 36, 1};        // an output behind the final states
inline constexpr BitField kGateActivation{"gate_activation", 37, 8};  // of Activation, and one more; 0: sigmoid
inline constexpr BitField kAll[] = {kCell,       kActivation, kHasBiases,     kBatchFirst,    kBidirectional,
                                    kSingleStep, kQuiet,      kHeads,         kRecurrentMask, kRagged,
                                    kResets,     kCellStates, kGateActivation};
inline constexpr int kBits = 45;
}  // namespace spec_fields

struct Spec {
    Cell cell;
    Functions functions;
    bool has_biases, batch_first, bidirectional, single_step, quiet;
    int64_t heads;
    bool recurrent_mask, ragged, resets, cell_states;

    explicit Spec(int64_t bits)
        : cell(static_cast<Cell>(spec_fields::kCell.of(bits))),
          functions{static_cast<Activation>(spec_fields::kActivation.of(bits)), Activation::sigmoid},
          has_biases(spec_fields::kHasBiases.of(bits)),
          batch_first(spec_fields::kBatchFirst.of(bits)),
          bidirectional(spec_fields::kBidirectional.of(bits)),
          single_step(spec_fields::kSingleStep.of(bits)),
          quiet(spec_fields::kQuiet.of(bits)),
          heads(spec_fields::kHeads.of(bits) + 1),
          recurrent_mask(spec_fields::kRecurrentMask.of(bits)),
          ragged(spec_fields::kRagged.of(bits)),
          resets(spec_fields::kResets.of(bits)),
          cell_states(spec_fields::kCellStates.of(bits)) {
        const int64_t gate = spec_fields::kGateActivation.of(bits);
        if (gate) functions.gate = static_cast<Activation>(gate - 1);
        if (bits < 0 || bits >> spec_fields::kBits || spec_fields::kCell.of(bits) >= kCellCount ||
            spec_fields::kActivation.of(bits) >= kActivationCount || gate > kActivationCount ||
            (!info().has_activation && (functions.candidate != Activation::tanh || gate))) {
            throw std::runtime_error("fastrnn: spec " + std::to_string(bits) +
                                     " is of another version of fastrnn, or was not made by fastrnn");
        }
    }

    const CellInfo& info() const { return cell_info(cell); }
    // whether a step is the cell's own, with functions of torch.nn's and a few, with one block of weights that meets h
    // as it is, and rows go on to their end
    bool plain() const {
        return heads == 1 && !recurrent_mask && !ragged && !resets && !cell_states &&
               functions.gate == Activation::sigmoid && functions.candidate <= Activation::hardtanh;
    }
};

// Which gradients layer_backward is to compute, its `needs`.
namespace needs_fields {
inline constexpr BitField kX{"x", 0, 1}, kStates{"states", 1, 1}, kWeights{"weights", 2, 1},
    kOperands{"operands", 3, 1};
inline constexpr BitField kAll[] = {kX, kStates, kWeights, kOperands};
inline constexpr int kBits = 4;
}  // namespace needs_fields

struct Needs {
    bool x, states, weights, operands;

    explicit Needs(int64_t bits)
        : x(needs_fields::kX.of(bits)),
          states(needs_fields::kStates.of(bits)),
          weights(needs_fields::kWeights.of(bits)),
          operands(needs_fields::kOperands.of(bits)) {
        check(bits >= 0 && !(bits >> needs_fields::kBits), "fastrnn: unknown bits in needs ", bits);
    }
};

inline Cell find_cell(const std::string& name) {
    std::string known;
    for (int cell = 0; cell < kCellCount; ++cell) {
        if (name == kCells[cell].name) return static_cast<Cell>(cell);
        known += (cell ? ", " : "") + std::string(kCells[cell].name);
    }
    fail("fastrnn: unknown cell '", name, "'; one of ", known);
}

}  // namespace fastrnn
