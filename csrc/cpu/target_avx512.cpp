#define FASTRNN_VECTOR_BYTES 64
#include "engine-inl.h"

namespace fastrnn {
const Passes passes_avx512 = kPasses;
}
