// What one `saten` node computes: a low-rank product plus a residual, in one pass over x.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>

#include "matrices.h"

namespace saten {

// Runs task(0) … task(count - 1), on as many threads as it likes, and returns when all are done.
using ParallelFor = std::function<void(size_t count, const std::function<void(size_t)>& task)>;
// That many bytes, aligned to a cache line, valid until the layer returns.
using Scratch = std::function<void*(size_t bytes)>;

// One factor of a low-rank product: floats, or int8 whose activations are quantized row by row.
class Factor {
 public:
  explicit Factor(const Tensor& values) : floats_(FloatMatrix(values)) {}
  Factor(const Tensor& values, const Tensor& scale) : codes_(QuantizedMatrix(values, scale)) {}

  bool quantized() const { return codes_.has_value(); }
  size_t inputs() const { return codes_ ? codes_->inputs() : floats_->inputs(); }
  size_t outputs() const { return codes_ ? codes_->outputs() : floats_->outputs(); }
  std::optional<size_t> row_bytes() const {  // of the codes it multiplies
    return codes_ ? std::optional<size_t>(codes_->row_bytes()) : std::nullopt;
  }

  size_t bytes() const { return inputs() * outputs() * (codes_ ? sizeof(int8_t) : sizeof(float)); }

  // y (rows, y_stride) = x times the outputs [first, last), multiples of 16 but for the end, which y has room for 15
  // beyond.
  void multiply(const Kernels& kernels, const struct Activations& x, float* y, size_t y_stride, size_t first,
                size_t last) const;

 private:
  std::optional<FloatMatrix> floats_;
  std::optional<QuantizedMatrix> codes_;
};

struct LowRank {
  Factor a, b;
};

// What follows a product: a bias (outputs) and an activation, or nothing where there is no bias.
struct Epilogue {
  std::vector<float> bias;
  Activation activation = Activation::none;
};

// y = epilogue(x (A B + S)); either part may be missing.
class Linear {
 public:
  // Throws Refusal: parts of different sizes, or neither.
  Linear(std::optional<LowRank> train, std::optional<BlockMatrix> residual, Epilogue epilogue = {});

  size_t outputs() const { return outputs_; }
  // Throws Refusal: x has not as many columns as the weights have inputs.
  void expect_inputs(size_t columns) const;

  // x (rows, columns) → y (rows, outputs).
  void run(const Kernels& kernels, const float* x, size_t rows, size_t columns, float* y, const Scratch& scratch,
           const ParallelFor& parallel) const;

 private:
  class Call;

  std::optional<LowRank> train_;
  std::optional<BlockMatrix> residual_;
  Epilogue epilogue_;
  size_t inputs_, outputs_;
};

// Numbers that somebody else owns: floats, or codes with a scale for each row; neither where a part is missing.
struct Stored {
  const float* floats = nullptr;
  const int8_t* codes = nullptr;
  const float* scale = nullptr;
};

// The rows of a table (rows, width) as y = A[id] B + S[id]; each member may be missing.
struct Table {
  Stored a;        // (rows, rank)
  Stored rows;     // (stored rows, width), the row of an id at its slot
  Stored entries;  // (rows, kept), each at its column
};

class Embedding {
 public:
  // rows, width: of the table; b: of the train or none; slots (rows) into `stored` rows, or columns (rows, kept).
  // Throws Refusal: a slot or column out of range, columns that do not ascend, sizes that do not meet.
  Embedding(size_t rows, size_t width, std::optional<Factor> b, std::optional<Tensor> slots, size_t stored,
            std::optional<Tensor> columns);

  size_t width() const { return width_; }

  // ids (count), negative ones from the end → y (count, width). Throws Refusal: an id outside the table.
  void run(const Kernels& kernels, const Table& table, const int64_t* ids, size_t count, float* y,
           const Scratch& scratch, const ParallelFor& parallel) const;

 private:
  void take_slots(const Tensor& slots, size_t stored);
  void take_columns(const Tensor& columns);
  size_t row_of(int64_t id) const { return static_cast<size_t>(id < 0 ? id + static_cast<int64_t>(rows_) : id); }
  void expect_ids(const int64_t* ids, size_t count) const;
  void add_residual(const Table& table, size_t id, float* y) const;

  size_t rows_, width_, kept_ = 0;
  std::optional<Factor> b_;
  std::vector<uint32_t> slots_, columns_;
};

// What an attention of several heads reads; the sizes are those of one head.
class Attended {
 public:
  // queries (batch, queries, heads · size), keys (batch, keys, heads · size), values (batch, keys, heads · value size);
  // mask: null, or what is spread to (batch, heads, queries, keys) as operators do. All float.
  // Throws Refusal: sizes that do not meet.
  Attended(const class Attention& attention, const Tensor& queries, const Tensor& keys, const Tensor& values,
           const Tensor* mask);

  std::vector<int64_t> shape() const;  // of y: (batch, queries, heads · value size)

  size_t batch, heads, queries, keys, size, value_size;
  const float *query, *key, *value, *mask = nullptr;
  size_t mask_strides[4] = {};  // of (batch, heads, queries, keys); 0 where it is spread

 private:
  void take_mask(const Tensor& tensor);
};

// y = softmax(scale · q kᵀ + mask) v for each head.
class Attention {
 public:
  // narrow: the products may round what they take to bfloat16, where the instruction set has such.
  // Throws Refusal: heads is not positive.
  Attention(int64_t heads, float scale, bool narrow = false);

  size_t heads() const { return heads_; }

  // y: of the shape that `attended` says.
  void run(const Kernels& kernels, const Attended& attended, float* y, const Scratch& scratch,
           const ParallelFor& parallel) const;

 private:
  class Call;

  size_t heads_;
  float scale_;
  bool narrow_;
};

}  // namespace saten
