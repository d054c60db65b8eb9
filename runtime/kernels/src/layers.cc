#include "layers.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <new>
#include <thread>

namespace saten {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kStepOutputs = 192;   // a multiple of every kernel's panels, and of how many it takes at a time
constexpr size_t kNearBytes = 1 << 18;  // half of the second-level cache of a small core
constexpr size_t kTasks = 16;          // enough for the threads of a small board to stay busy to the end
constexpr size_t kLeastMacs = 1 << 17;  // of a task: waking a thread takes as long as some 10^5 of them

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
size_t round_up(size_t a, size_t b) { return ceil_div(a, b) * b; }

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

}  // namespace

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

void Factor::multiply(const Kernels& kernels, const Activations& x, float* y, size_t y_stride, size_t first,
                      size_t last) const {
  if (codes_)
    codes_->multiply(kernels, x.codes, x.scale, x.zero, x.rows, y, y_stride, first, last);
  else
    floats_->multiply(kernels, x.tile, x.stride, x.rows, y, y_stride, first, last);
}

Linear::Linear(std::optional<LowRank> train, std::optional<BlockMatrix> residual, Ending ending)
    : train_(std::move(train)), residual_(std::move(residual)), ending_(std::move(ending)) {
  if (!train_ && !residual_) throw Refusal("a layer needs factors or a residual");
  inputs_ = train_ ? train_->a.inputs() : residual_->inputs();
  outputs_ = train_ ? train_->b.outputs() : residual_->outputs();
  if (train_ && train_->a.outputs() != train_->b.inputs()) throw Refusal("a and b differ in rank");
  if (!ending_.bias.empty() && ending_.bias.size() != outputs_)
    throw Refusal("bias has " + std::to_string(ending_.bias.size()) + " elements, expected " + std::to_string(outputs_));
  if (train_ && residual_ && (residual_->inputs() > inputs_ || residual_->outputs() != outputs_))
    throw Refusal("the residual does not fit the factors, which are " + std::to_string(inputs_) + " × " +
                  std::to_string(outputs_));
}

void Linear::expect_inputs(size_t columns) const {
  // Blocks alone do not say how many inputs there are, only which is the last they read.
  if (train_ ? columns != inputs_ : columns < inputs_)
    throw Refusal("x has " + std::to_string(columns) + " columns, expected " + std::to_string(inputs_));
}

void Linear::run(const Kernels& kernels, const float* x, size_t rows, size_t columns, float* y,
                 const Scratch& scratch, const ParallelFor& parallel) const {
  if (rows == 0 || outputs_ == 0) return;
  const size_t rank = train_ ? train_->a.outputs() : 0, rank_stride = round_up(rank, kPanel);
  // Of the tiles that a factor multiplies; codes take none, residuals the same as floats.
  const auto turn_of = [&](const Factor& factor) { return factor.quantized() ? 0 : kernels.turn; };
  const size_t of_outer = train_ ? turn_of(train_->a) : kernels.turn, of_inner = train_ ? turn_of(train_->b) : 0;
  const size_t slot = group_slot(residual_ ? residual_->group() : 1);
  const size_t tile_rows = std::min(rows, residual_ ? kernels.tile_rows[slot] : kernels.float_rows);
  const size_t tiles = ceil_div(rows, tile_rows);
  const size_t row_quantum = std::max(residual_ ? kernels.row_quantum[slot] : 0, of_outer);

  // Whichever task comes first fills a tile, and another that needs it meanwhile waits: a round of its own for the tiles
  // would cost the threads one more meeting.
  enum Progress { kEmpty, kBegun, kFilled };
  struct Tile {
    Activations x, inner;
    float* products;  // x A
    std::atomic<Progress> progress{kEmpty};
  };
  const auto tile_at = [&](char* base, size_t& bytes) {
    Arena arena(base);
    Tile* const tile = arena.take<Tile>(1);
    Activations outer(arena, tile_rows, columns, row_quantum, train_ ? train_->a.row_bytes() : std::nullopt);
    float* products = arena.take<float>(tile_rows * rank_stride);
    Activations inner(arena, tile_rows, rank, of_inner, train_ ? train_->b.row_bytes() : std::nullopt);
    bytes = arena.bytes;
    return base ? new (tile) Tile{outer, inner, products} : nullptr;
  };
  size_t tile_bytes = 0;
  tile_at(nullptr, tile_bytes);
  char* const room = static_cast<char*>(scratch(tiles * tile_bytes));
  for (size_t t = 0; t < tiles; ++t) tile_at(room + t * tile_bytes, tile_bytes);

  const auto filled = [&](size_t t) -> const Tile& {
    Tile& tile = *reinterpret_cast<Tile*>(room + t * tile_bytes);
    Progress before = kEmpty;
    if (tile.progress.compare_exchange_strong(before, kBegun, std::memory_order_acquire)) {
      tile.x.fill(kernels, x + t * tile_rows * columns, columns, std::min(tile_rows, rows - t * tile_rows));
      if (train_) {
        train_->a.multiply(kernels, tile.x, tile.products, rank_stride, 0, rank);
        tile.inner.fill(kernels, tile.products, rank_stride, tile.x.rows);
      }
      tile.progress.store(kFilled, std::memory_order_release);
    }
    while (tile.progress.load(std::memory_order_acquire) != kFilled) std::this_thread::yield();
    return tile;
  };

  // A task is some tiles times some outputs, whose weights stay in the second-level cache while the tiles pass by; each
  // tile stays in the nearest one meanwhile. Tasks of the same tiles follow each other, as a thread takes consecutive ones.
  const size_t stored = residual_ ? residual_->stored() : 0, bytes = residual_ ? residual_->bytes() : 0;
  const size_t macs = rows * (stored + rank * outputs_), weights = bytes + (train_ ? train_->b.bytes() : 0);
  const size_t steps = ceil_div(outputs_, kStepOutputs);
  const size_t wanted = std::clamp<size_t>(macs / kLeastMacs, 1, kTasks);
  const size_t near_chunks = tiles == 1 ? 1 : std::clamp<size_t>(ceil_div(weights, kNearBytes), 1, steps);
  const size_t together = ceil_div(tiles, std::min(tiles, ceil_div(wanted, near_chunks)));
  const size_t batches = ceil_div(tiles, together);
  const size_t chunk = kStepOutputs * ceil_div(steps, std::min(steps, std::max(near_chunks, ceil_div(wanted, batches))));
  const bool direct = residual_ && kernels.direct[slot];
  const size_t chunks = ceil_div(outputs_, chunk);
  const auto step = [&](size_t task) {
    const size_t batch = task / chunks, first = task % chunks * chunk, last = std::min(first + chunk, outputs_);
    const size_t first_tile = batch * together, last_tile = std::min(first_tile + together, tiles);
    for (size_t t = first_tile; t < last_tile; ++t) {
      const Tile& tile = filled(t);
      for (size_t from = first; from < last; from += kStepOutputs) {
        const size_t end = std::min(from + kStepOutputs, last);
        float* const to = y + t * tile_rows * outputs_ + from;
        NearResult near;
        float* const result = direct ? to : near.y;
        const size_t stride = direct ? outputs_ : NearResult::stride;
        if (train_) train_->b.multiply(kernels, tile.inner, near.y, NearResult::stride, from, end);
        if (residual_)
          residual_->multiply(tile.x.tile, tile.x.stride, tile.x.rows, train_ ? near.y : nullptr, NearResult::stride,
                              result, stride, from, end);
        if (!ending_.bias.empty())
          kernels.finish(result, stride, tile.x.rows, end - from, ending_.bias.data() + from, ending_.activation);
        if (!direct) near.copy_to(to, outputs_, tile.x.rows, end - from);
      }
    }
  };
  parallel(batches * chunks, std::cref(step));  // by reference, as a copy would be put on the heap
}

Embedding::Embedding(size_t rows, size_t width, std::optional<Factor> b, std::optional<Tensor> slots, size_t stored,
                     std::optional<Tensor> columns)
    : rows_(rows), width_(width), b_(std::move(b)) {
  if (b_ && b_->outputs() != width_) throw Refusal("b has " + std::to_string(b_->outputs()) + " outputs, expected " + std::to_string(width_));
  if (slots) {
    slots->expect_type({Type::u16, Type::s32, Type::s64});
    slots->expect_size(rows_, "one for each row of the table");
    for (size_t row = 0; row < rows_; ++row) {
      const int64_t slot = slots->integer(row);
      if (slot < 0 || static_cast<uint64_t>(slot) >= stored)
        throw Refusal("slots[" + std::to_string(row) + "] is " + std::to_string(slot) + ", expected less than " +
                      std::to_string(stored));
      slots_.push_back(static_cast<uint32_t>(slot));
    }
  }
  if (!columns) return;
  columns->expect_axes(2);
  columns->expect_type({Type::u16, Type::s32, Type::s64});
  if (columns->axis(0) != rows_) throw Refusal("columns has not one row for each row of the table");
  kept_ = columns->axis(1);
  for (size_t k = 0; k < columns->size(); ++k) {
    const int64_t column = columns->integer(k);
    if (column < 0 || static_cast<uint64_t>(column) >= width_ || (k % kept_ && column <= columns->integer(k - 1)))
      throw Refusal("columns[" + std::to_string(k) + "] is " + std::to_string(column) +
                    ", expected ascending columns below " + std::to_string(width_));
    columns_.push_back(static_cast<uint32_t>(column));
  }
}

void Embedding::look_up(const Table& table, size_t id, float* y) const {
  if (!slots_.empty()) {
    const size_t from = slots_[id] * width_;
    const float scale = table.row_codes ? table.row_scale[slots_[id]] : 1;
    for (size_t k = 0; k < width_; ++k)
      y[k] += table.row_codes ? table.row_codes[from + k] * scale : table.rows[from + k];
  }
  const float scale = table.entry_codes ? table.entry_scale[id] : 1;
  for (size_t k = id * kept_; k < (id + 1) * kept_; ++k)
    y[columns_[k]] += table.entry_codes ? table.entry_codes[k] * scale : table.entries[k];
}

void Embedding::run(const Kernels& kernels, const Table& table, const int64_t* ids, size_t count, float* y,
                    const Scratch& scratch, const ParallelFor& parallel) const {
  if (count == 0 || width_ == 0) return;
  for (size_t k = 0; k < count; ++k)
    if (ids[k] < -static_cast<int64_t>(rows_) || ids[k] >= static_cast<int64_t>(rows_))
      throw Refusal("id " + std::to_string(ids[k]) + " at position " + std::to_string(k) + " is outside a table of " +
                    std::to_string(rows_) + " rows");
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

  const auto step = [&](size_t t) {
    size_t bytes;
    Tile tile = tile_at(room + t * tile_bytes, bytes);
    const size_t first = t * tile_rows, rows = std::min(tile_rows, count - first);
    float* const to = y + first * width_;
    const auto id_at = [&](size_t row) {
      const int64_t id = ids[first + row];
      return static_cast<size_t>(id < 0 ? id + static_cast<int64_t>(rows_) : id);
    };
    for (size_t row = 0; row < rows; ++row) {
      const size_t from = id_at(row) * rank;
      const float scale = table.a_codes ? table.a_scale[id_at(row)] : 1;
      for (size_t k = 0; k < rank; ++k)
        tile.picked[row * rank + k] = table.a_codes ? table.a_codes[from + k] * scale : table.a[from + k];
    }
    if (b_) {
      tile.inner.fill(kernels, tile.picked, rank, rows);
      for (size_t from = 0; from < width_; from += kStepOutputs) {
        const size_t end = std::min(from + kStepOutputs, width_);
        NearResult near;
        b_->multiply(kernels, tile.inner, near.y, NearResult::stride, from, end);
        near.copy_to(to + from, width_, rows, end - from);
      }
    } else {
      std::fill_n(to, rows * width_, 0.0f);
    }
    for (size_t row = 0; row < rows; ++row) look_up(table, id_at(row), to + row * width_);
  };
  parallel(tiles, std::cref(step));
}

}  // namespace saten
