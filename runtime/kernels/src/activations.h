// Activations in the forms that kernels read, and the memory of one call that they lie in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "kernel_table.h"

namespace saten {

constexpr size_t kCacheLine = 64;
constexpr size_t kStepOutputs = 192;  // a multiple of every kernel's panels, and of how many it takes at a time

constexpr size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
constexpr size_t round_up(size_t a, size_t b) { return ceil_div(a, b) * b; }

// Hands out consecutive arrays of one buffer; with a null base it only counts.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}
  template <class T>
  T* take(size_t count) {
    T* array = base_ ? reinterpret_cast<T*>(base_ + bytes) : nullptr;
    bytes += round_up(count * sizeof(T), kCacheLine);
    return array;
  }
  size_t bytes = 0;

 private:
  char* base_;
};

// Where the parts of a step add up, as rows of y itself may evict each other.
struct NearResult {
  static constexpr size_t stride = kStepOutputs + kPanel;
  alignas(kCacheLine) float y[kMostTileRows * stride];

  void copy_to(float* to, size_t to_stride, size_t rows, size_t columns) const {
    for (size_t row = 0; row < rows; ++row) std::copy_n(y + row * stride, columns, to + row * to_stride);
  }
};

// Some rows of activations in the forms that kernels read.
struct Activations {
  // row_quantum: of the tile of floats, 0 for none; code_bytes: of a row of codes, if there are any.
  Activations(Arena& arena, size_t most_rows, size_t columns, size_t row_quantum, std::optional<size_t> code_bytes)
      : columns(columns), row_bytes(code_bytes.value_or(0)), with_tile(row_quantum > 0), with_codes(code_bytes.has_value()) {
    stride = with_tile && most_rows > 1 ? round_up(most_rows, row_quantum) : 1;
    if (stride > 1) room = arena.take<float>(columns * stride);
    if (!with_codes) return;
    codes = arena.take<uint8_t>(most_rows * row_bytes);
    scale = arena.take<float>(most_rows);
    zero = arena.take<int32_t>(most_rows);
  }

  // x (count, x_stride)
  void fill(const Kernels& kernels, const float* x, size_t x_stride, size_t count) {
    rows = count;
    if (with_tile && stride == 1) tile = x;
    if (with_tile && stride > 1) {
      kernels.transpose(x, x_stride, rows, columns, room, stride);
      tile = room;
    }
    for (size_t row = 0; with_codes && row < rows; ++row)
      kernels.quantize(x + row * x_stride, columns, codes + row * row_bytes, scale + row, zero + row);
  }

  size_t columns, row_bytes, stride, rows = 0;
  bool with_tile, with_codes;
  const float* tile = nullptr;
  float* room = nullptr;
  uint8_t* codes = nullptr;
  float* scale = nullptr;
  int32_t* zero = nullptr;
};

}  // namespace saten
