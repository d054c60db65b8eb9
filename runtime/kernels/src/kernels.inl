// Everything an instruction set offers, expanded from its `Simd`.
#pragma once

#include "blocks.inl"
#include "dense.inl"
#include "rows.inl"
#include "softmax.inl"

namespace saten {
namespace {

// A constant: what would fill it in while the library is loaded is compiled for the set, and a processor may lack that.
template <class S>
constexpr Kernels make_kernels(const char* isa, bool (*supported)(), void (*quantized)(const QuantizedCall&)) {
  Kernels made{};
  made.isa = isa;
  made.supported = supported;
#define SATEN_FILL(value, V, G, index, I) \
  made.blocks[int(Value::value)][group_slot(G)][int(Index::index)] = &blocks<S, G, V, I>;
  SATEN_BLOCK_KERNELS(SATEN_FILL)
#undef SATEN_FILL
#define SATEN_ROWS(G)                                      \
  made.tile_rows[group_slot(G)] = Shape<S, G>::kTileRows;  \
  made.row_quantum[group_slot(G)] = Shape<S, G>::kQuantum; \
  made.direct[group_slot(G)] = Shape<S, G>::kDirect;
  SATEN_ROWS(1) SATEN_ROWS(4) SATEN_ROWS(8) SATEN_ROWS(16) SATEN_ROWS(32)
#undef SATEN_ROWS
  made.turn = S::kTurn;
  made.float_rows = DenseShape<S>::kMost > S::kTurn ? DenseShape<S>::kMost : S::kTurn;
  made.transpose = &transpose_tile<S>;
  made.quantize = &quantize_row<S>;
  made.floats = &dense<S>;
  made.quantized = quantized;
  made.softmax = &softmax<S>;
  made.finish = &finish<S>;
  return made;
}

}  // namespace
}  // namespace saten
