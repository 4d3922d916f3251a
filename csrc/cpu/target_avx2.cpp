#define FASTRNN_VECTOR_BYTES 32
#include "engine-inl.h"

namespace fastrnn {
const Passes passes_avx2 = kPasses;
}
