// The families of checks, each on one instruction set: against loops in float64, and kernels against the scalar ones.
#pragma once

#include "kernel_table.h"

namespace saten::testing {

void check_kernels(const Kernels& isa, size_t cases);    // one kernel, called as the layers call it
void check_layers(const Kernels& isa, size_t cases);     // linear layers and embeddings, on several threads
void check_attention(const Kernels& isa, size_t cases);  // of several heads, on several threads

// The net under the net: a kernel that computes something else must be seen.
void check_that_errors_are_seen();

}  // namespace saten::testing
