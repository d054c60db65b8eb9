#include <algorithm>
#include <functional>

#include "activations.h"
#include "layers.h"

namespace saten {
namespace {

// y (count) = or += what is stored from `from` on, in the given row.
void copy_stored(const Stored& stored, size_t row, size_t from, size_t count, float* y) {
  const float scale = stored.codes ? stored.scale[row] : 1;
  for (size_t k = 0; k < count; ++k) y[k] = stored.codes ? stored.codes[from + k] * scale : stored.floats[from + k];
}

void add_stored(const Stored& stored, size_t row, size_t from, size_t count, float* y) {
  const float scale = stored.codes ? stored.scale[row] : 1;
  for (size_t k = 0; k < count; ++k) y[k] += stored.codes ? stored.codes[from + k] * scale : stored.floats[from + k];
}

}  // namespace

Embedding::Embedding(size_t rows, size_t width, std::optional<Factor> b, std::optional<Tensor> slots, size_t stored,
                     std::optional<Tensor> columns)
    : rows_(rows), width_(width), b_(std::move(b)) {
  if (b_ && b_->outputs() != width_)
    throw Refusal("b has " + std::to_string(b_->outputs()) + " outputs, expected " + std::to_string(width_));
  if (slots) take_slots(*slots, stored);
  if (columns) take_columns(*columns);
}

void Embedding::take_slots(const Tensor& slots, size_t stored) {
  slots.expect_type({Type::u16, Type::s32, Type::s64});
  slots.expect_size(rows_, "one for each row of the table");
  for (size_t row = 0; row < rows_; ++row) {
    const int64_t slot = slots.integer(row);
    if (slot < 0 || static_cast<uint64_t>(slot) >= stored)
      throw Refusal("slots[" + std::to_string(row) + "] is " + std::to_string(slot) + ", expected less than " +
                    std::to_string(stored));
    slots_.push_back(static_cast<uint32_t>(slot));
  }
}

void Embedding::take_columns(const Tensor& columns) {
  columns.expect_axes(2);
  columns.expect_type({Type::u16, Type::s32, Type::s64});
  if (columns.axis(0) != rows_) throw Refusal("columns has not one row for each row of the table");
  kept_ = columns.axis(1);
  for (size_t k = 0; k < columns.size(); ++k) {
    const int64_t column = columns.integer(k);
    if (column < 0 || static_cast<uint64_t>(column) >= width_ || (k % kept_ && column <= columns.integer(k - 1)))
      throw Refusal("columns[" + std::to_string(k) + "] is " + std::to_string(column) +
                    ", expected ascending columns below " + std::to_string(width_));
    columns_.push_back(static_cast<uint32_t>(column));
  }
}

void Embedding::expect_ids(const int64_t* ids, size_t count) const {
  for (size_t k = 0; k < count; ++k)
    if (ids[k] < -static_cast<int64_t>(rows_) || ids[k] >= static_cast<int64_t>(rows_))
      throw Refusal("id " + std::to_string(ids[k]) + " at position " + std::to_string(k) + " is outside a table of " +
                    std::to_string(rows_) + " rows");
}

void Embedding::add_residual(const Table& table, size_t id, float* y) const {
  if (!slots_.empty()) add_stored(table.rows, slots_[id], slots_[id] * width_, width_, y);
  const Stored& entries = table.entries;
  const float scale = entries.codes ? entries.scale[id] : 1;
  for (size_t k = id * kept_; k < (id + 1) * kept_; ++k)
    y[columns_[k]] += entries.codes ? entries.codes[k] * scale : entries.floats[k];
}

void Embedding::run(const Kernels& kernels, const Table& table, const int64_t* ids, size_t count, float* y,
                    const Scratch& scratch, const ParallelFor& parallel) const {
  if (count == 0 || width_ == 0) return;
  expect_ids(ids, count);
  const size_t rank = b_ ? b_->inputs() : 0;
  const size_t tile_rows = std::min(count, kernels.float_rows);
  const size_t tiles = ceil_div(count, tile_rows);
  struct Tile {
    float* picked;  // A[id]
    Activations inner;
  };
  const auto tile_at = [&](char* base, size_t& bytes) {
    Arena arena(base);
    float* picked = arena.take<float>(tile_rows * rank);
    Activations inner(arena, tile_rows, rank, b_ && !b_->quantized() ? kernels.turn : 0, b_ ? b_->row_bytes() : std::nullopt);
    bytes = arena.bytes;
    return Tile{picked, inner};
  };
  size_t tile_bytes = 0;
  tile_at(nullptr, tile_bytes);
  char* const room = static_cast<char*>(scratch(tiles * tile_bytes));

  const auto multiply = [&](Tile& tile, const int64_t* first, size_t rows, float* to) {
    for (size_t row = 0; row < rows; ++row) {
      const size_t from = row_of(first[row]);
      copy_stored(table.a, from, from * rank, rank, tile.picked + row * rank);
    }
    tile.inner.fill(kernels, tile.picked, rank, rows);
    for (size_t from = 0; from < width_; from += kStepOutputs) {
      const size_t end = std::min(from + kStepOutputs, width_);
      NearResult near;
      b_->multiply(kernels, tile.inner, near.y, NearResult::stride, from, end);
      near.copy_to(to + from, width_, rows, end - from);
    }
  };
  const auto step = [&](size_t t) {
    size_t bytes;
    Tile tile = tile_at(room + t * tile_bytes, bytes);
    const size_t first = t * tile_rows, rows = std::min(tile_rows, count - first);
    float* const to = y + first * width_;
    if (b_)
      multiply(tile, ids + first, rows, to);
    else
      std::fill_n(to, rows * width_, 0.0f);
    for (size_t row = 0; row < rows; ++row) add_residual(table, row_of(ids[first + row]), to + row * width_);
  };
  parallel(tiles, std::cref(step));
}

}  // namespace saten
