// Attention of several heads on one instruction set, against loops in float64.
#pragma once

#include "kernel_table.h"

namespace saten::testing {

void check_attention(const Kernels& isa, size_t cases);

}  // namespace saten::testing
