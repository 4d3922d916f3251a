#define FASTRNN_VECTOR_BYTES 16
#include "engine-inl.h"

namespace fastrnn {
const Passes passes_generic = kPasses;
}
