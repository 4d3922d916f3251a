// Every cell, each held against what the engines and kernels.h assume of it.
#pragma once

#include "cell.h"
#include "gru.h"
#include "indrnn.h"
#include "lstm.h"
#include "lstm_options.h"
#include "minimal.h"
#include "norm.h"
#include "rnn.h"
#include "slstm.h"
#include "zoneout.h"
#if defined(FASTRNN_TEST_CELL_HEADER)
#include FASTRNN_TEST_CELL_HEADER
#endif

namespace fastrnn {
namespace {

#define FASTRNN_CELL(name, Template, ...) \
    static_assert(check_cell<Template<ChosenFunctions>>(Cell::name), #name " does not fit cells.def, or is no cell");
#include "fastrnn/cells.def"

}  // namespace
}  // namespace fastrnn
