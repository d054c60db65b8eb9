// What this processor and its system offer, read from their registers: the compilers' `__builtin_cpu_supports` needs a
// start-up routine that not every toolchain links into a library, and answers "nothing" without it.
#pragma once

namespace saten {

enum class Feature { avx2, avx512, avx512vnni, avx512bf16, dot_products, int8_matrix_products };

// False also where the operating system does not save what the feature computes with.
bool has(Feature feature);

}  // namespace saten
