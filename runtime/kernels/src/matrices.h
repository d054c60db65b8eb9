// Constant matrices, checked and repacked once, then trusted by the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel_table.h"

namespace saten {

// A weight that cannot be used: says what was found and what was expected.
struct Refusal : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

enum class Type { f32, f16, s8, u8, u16, s32, s64, other };

// A tensor somebody else owns.
struct Tensor {
  const char* name = "";
  Type type = Type::other;
  std::vector<int64_t> shape;
  const void* data = nullptr;

  size_t size() const;                   // number of elements
  size_t axis(size_t k) const;           // its length
  int64_t integer(size_t k) const;       // element k of u16, s32 or s64
  void expect_axes(size_t count) const;  // throws Refusal
  void expect_type(std::initializer_list<Type> allowed) const;
  void expect_size(size_t count, const char* why) const;
};

// Bytes at an address that is a multiple of a cache line.
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0);
  void* data() const { return bytes_.get(); }

 private:
  struct Free {
    void operator()(void* p) const;
  };
  std::unique_ptr<void, Free> bytes_;
};

// A matrix (inputs, outputs) of which some outputs keep n of every m inputs, and of the last ones if they are fewer.
struct NOfM {
  size_t inputs, outputs, n, m;

  size_t per_output() const { return inputs / m * n + (inputs % m < n ? inputs % m : n); }
  size_t bits() const;  // of the place of one of m inputs
};

// A matrix (inputs, outputs) of blocks of `group` outputs × 1 input.
class BlockMatrix {
 public:
  // indices (groups, kept), strictly ascending; values (groups, size, kept); scale (groups · size) or null.
  // A size that is no kernel's is split into blocks of the largest that divides it.
  static BlockMatrix from_groups(const Kernels& kernels, const Tensor& indices, const Tensor& values, const Tensor* scale);
  // Compressed rows, one for each output: starts (outputs + 1), indices and values (nnz), scale (outputs) or null.
  static BlockMatrix from_rows(const Kernels& kernels, const Tensor& starts, const Tensor& indices, const Tensor& values, const Tensor* scale,
                               size_t inputs, size_t outputs);
  // outputs (lines), strictly ascending: those that keep values; codes: the place of each among its m inputs, ascending,
  // in as few bits as hold one, the lowest first; values (lines, per output); scale (lines) or null.
  static BlockMatrix from_codes(const Kernels& kernels, const NOfM& pattern, const Tensor& outputs, const Tensor& codes,
                                const Tensor& values, const Tensor* scale);

  size_t inputs() const { return inputs_; }  // the largest index + 1, where nothing says more
  size_t outputs() const { return outputs_; }
  size_t group() const { return group_; }
  size_t stored() const { return stored_; }  // values
  size_t bytes() const;                      // of them and their indices

  // y (rows, y_stride) = addend (rows, addend_stride), or nothing, + x times the outputs [first, last), multiples of 32
  // but for the end. x: a tile, or with x_stride 1 one row; see BlockCall.
  void multiply(const float* x, size_t x_stride, size_t rows, const float* addend, size_t addend_stride, float* y,
                size_t y_stride, size_t first, size_t last) const;

 private:
  explicit BlockMatrix(const Kernels& kernels) : kernels_(&kernels) {}
  void pack(const std::vector<uint32_t>& starts, const std::vector<uint32_t>& indices, const Tensor* scale);

  const Kernels* kernels_;
  size_t inputs_ = 0, outputs_ = 0, group_ = 1;
  Value value_ = Value::f32;
  Index index_ = Index::u16;
  size_t stored_ = 0, panels_ = 0;
  std::vector<uint32_t> splits_;  // (strips + 1, panels): the first block of each strip of inputs
  std::vector<float> scale_;
  Buffer indices_, values_;
};

// A matrix of floats, every one stored.
class FloatMatrix {
 public:
  // values (inputs, outputs).
  explicit FloatMatrix(const Tensor& values);

  size_t inputs() const { return inputs_; }
  size_t outputs() const { return outputs_; }

  // y (rows, y_stride) = x times the outputs [first, last), multiples of 16 but for the end, which y has room for 15
  // beyond. x: a tile, or with x_stride 1 one row; see FloatCall.
  void multiply(const Kernels& kernels, const float* x, size_t x_stride, size_t rows, float* y, size_t y_stride,
                size_t first, size_t last) const;

 private:
  size_t inputs_, outputs_;
  Buffer values_;
};

// A matrix of int8 with one scale per output, for activations that are quantized on the way.
class QuantizedMatrix {
 public:
  // values (inputs, outputs) s8, scale (outputs).
  QuantizedMatrix(const Tensor& values, const Tensor& scale);

  size_t inputs() const { return inputs_; }
  size_t outputs() const { return outputs_; }
  size_t row_bytes() const { return quads_ * kQuad; }  // of one row of codes

  // y (rows, y_stride) = x times the outputs [first, last), multiples of 16 but for the end, which y has room for 15
  // beyond. x (rows, row_bytes) codes with x_scale and x_zero for each row.
  void multiply(const Kernels& kernels, const uint8_t* x, const float* x_scale, const int32_t* x_zero, size_t rows,
                float* y, size_t y_stride, size_t first, size_t last) const;

 private:
  size_t inputs_, outputs_, quads_;
  std::vector<float> scale_;
  std::vector<int32_t> sums_;
  Buffer values_;
};

}  // namespace saten
