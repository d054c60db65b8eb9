#include <algorithm>
#include <atomic>
#include <functional>
#include <new>
#include <thread>

#include "activations.h"
#include "layers.h"

namespace saten {
namespace {

constexpr size_t kNearBytes = 1 << 18;  // half of the second-level cache of a small core
constexpr size_t kTasks = 16;           // enough for the threads of a small board to stay busy to the end
constexpr size_t kLeastMacs = 1 << 17;  // of a task: waking a thread takes as long as some 10^5 of them

}  // namespace

void Factor::multiply(const Kernels& kernels, const Activations& x, float* y, size_t y_stride, size_t first,
                      size_t last) const {
  if (codes_)
    codes_->multiply(kernels, x.codes, x.scale, x.zero, x.rows, y, y_stride, first, last);
  else
    floats_->multiply(kernels, x.tile, x.stride, x.rows, y, y_stride, first, last);
}

Linear::Linear(std::optional<LowRank> train, std::optional<BlockMatrix> residual, Epilogue epilogue)
    : train_(std::move(train)), residual_(std::move(residual)), epilogue_(std::move(epilogue)) {
  if (!train_ && !residual_) throw Refusal("a layer needs factors or a residual");
  inputs_ = train_ ? train_->a.inputs() : residual_->inputs();
  outputs_ = train_ ? train_->b.outputs() : residual_->outputs();
  if (train_ && train_->a.outputs() != train_->b.inputs()) throw Refusal("a and b differ in rank");
  if (!epilogue_.bias.empty() && epilogue_.bias.size() != outputs_)
    throw Refusal("bias has " + std::to_string(epilogue_.bias.size()) + " elements, expected " + std::to_string(outputs_));
  if (train_ && residual_ && (residual_->inputs() > inputs_ || residual_->outputs() != outputs_))
    throw Refusal("the residual does not fit the factors, which are " + std::to_string(inputs_) + " × " +
                  std::to_string(outputs_));
}

void Linear::expect_inputs(size_t columns) const {
  // Blocks alone do not say how many inputs there are, only which is the last they read.
  if (train_ ? columns != inputs_ : columns < inputs_)
    throw Refusal("x has " + std::to_string(columns) + " columns, expected " + std::to_string(inputs_));
}

// One call: its rows lie in tiles, its tasks are some tiles times some outputs.
class Linear::Call {
 public:
  Call(const Linear& layer, const Kernels& kernels, const float* x, size_t rows, size_t columns, float* y)
      : layer_(layer), kernels_(kernels), x_(x), y_(y), rows_(rows), columns_(columns) {
    measure_tiles();
    share_out();
  }

  void run(const Scratch& scratch, const ParallelFor& parallel) {
    place_tiles(scratch);
    const auto one = [this](size_t number) { task(number); };
    parallel(batches_ * chunks_, std::cref(one));  // by reference, as a copy would be put on the heap
  }

 private:
  // Whichever task comes first fills a tile, and another that needs it meanwhile waits: a round of its own for the tiles
  // would cost the threads one more meeting.
  enum Progress { kEmpty, kBegun, kFilled };
  struct Tile {
    Activations x, inner;
    float* products;  // x A
    std::atomic<Progress> progress{kEmpty};
  };

  void measure_tiles();
  void share_out();
  size_t turn_of(const Factor& factor) const;
  Tile* make_tile(char* base, size_t& bytes) const;
  void place_tiles(const Scratch& scratch);
  void fill(Tile& tile, size_t number) const;
  const Tile& filled(size_t number) const;
  void task(size_t number) const;
  void step(const Tile& tile, float* y, size_t first, size_t last) const;

  const Linear& layer_;
  const Kernels& kernels_;
  const float* const x_;
  float* const y_;
  const size_t rows_, columns_;

  size_t rank_, rank_stride_;
  size_t of_outer_, of_inner_;              // what the strides of the factors' tiles are multiples of
  size_t tile_rows_, row_quantum_, tiles_;
  size_t tile_bytes_ = 0;
  char* room_ = nullptr;                    // (tiles, tile_bytes)
  bool direct_;                             // whether results go to y at once
  size_t together_, batches_;               // tiles of a task, and how many such there are
  size_t chunk_, chunks_;                   // outputs of a task, and how many such there are
};

// Codes take no tile, residuals the same as floats.
size_t Linear::Call::turn_of(const Factor& factor) const { return factor.quantized() ? 0 : kernels_.turn; }

void Linear::Call::measure_tiles() {
  const auto& train = layer_.train_;
  const auto& residual = layer_.residual_;
  const size_t slot = group_slot(residual ? residual->group() : 1);
  rank_ = train ? train->a.outputs() : 0;
  rank_stride_ = round_up(rank_, kPanel);
  of_outer_ = train ? turn_of(train->a) : kernels_.turn;
  of_inner_ = train ? turn_of(train->b) : 0;
  tile_rows_ = std::min(rows_, residual ? kernels_.tile_rows[slot] : kernels_.float_rows);
  tiles_ = ceil_div(rows_, tile_rows_);
  row_quantum_ = std::max(residual ? kernels_.row_quantum[slot] : 0, of_outer_);
  direct_ = residual && kernels_.direct[slot];
}

// The weights of a task stay in the second-level cache while its tiles pass by; each tile stays in the nearest one
// meanwhile.
void Linear::Call::share_out() {
  const auto& train = layer_.train_;
  const auto& residual = layer_.residual_;
  const size_t outputs = layer_.outputs_, steps = ceil_div(outputs, kStepOutputs);
  const size_t macs = rows_ * ((residual ? residual->stored() : 0) + rank_ * outputs);
  const size_t weights = (residual ? residual->bytes() : 0) + (train ? train->b.bytes() : 0);
  const size_t wanted = std::clamp<size_t>(macs / kLeastMacs, 1, kTasks);
  const size_t near_chunks = tiles_ == 1 ? 1 : std::clamp<size_t>(ceil_div(weights, kNearBytes), 1, steps);
  together_ = ceil_div(tiles_, std::min(tiles_, ceil_div(wanted, near_chunks)));
  batches_ = ceil_div(tiles_, together_);
  chunk_ = kStepOutputs * ceil_div(steps, std::min(steps, std::max(near_chunks, ceil_div(wanted, batches_))));
  chunks_ = ceil_div(outputs, chunk_);
}

// A tile at `base`, or null; either way how many bytes it takes.
Linear::Call::Tile* Linear::Call::make_tile(char* base, size_t& bytes) const {
  const auto& train = layer_.train_;
  Arena arena(base);
  Tile* const tile = arena.take<Tile>(1);
  Activations outer(arena, tile_rows_, columns_, row_quantum_, train ? train->a.row_bytes() : std::nullopt);
  float* products = arena.take<float>(tile_rows_ * rank_stride_);
  Activations inner(arena, tile_rows_, rank_, of_inner_, train ? train->b.row_bytes() : std::nullopt);
  bytes = arena.bytes;
  return base ? new (tile) Tile{outer, inner, products} : nullptr;
}

void Linear::Call::place_tiles(const Scratch& scratch) {
  make_tile(nullptr, tile_bytes_);
  room_ = static_cast<char*>(scratch(tiles_ * tile_bytes_));
  for (size_t t = 0; t < tiles_; ++t) make_tile(room_ + t * tile_bytes_, tile_bytes_);
}

void Linear::Call::fill(Tile& tile, size_t number) const {
  const size_t first = number * tile_rows_;
  tile.x.fill(kernels_, x_ + first * columns_, columns_, std::min(tile_rows_, rows_ - first));
  if (!layer_.train_) return;
  layer_.train_->a.multiply(kernels_, tile.x, tile.products, rank_stride_, 0, rank_);
  tile.inner.fill(kernels_, tile.products, rank_stride_, tile.x.rows);
}

const Linear::Call::Tile& Linear::Call::filled(size_t number) const {
  Tile& tile = *reinterpret_cast<Tile*>(room_ + number * tile_bytes_);
  Progress before = kEmpty;
  if (tile.progress.compare_exchange_strong(before, kBegun, std::memory_order_acquire)) {
    fill(tile, number);
    tile.progress.store(kFilled, std::memory_order_release);
  }
  while (tile.progress.load(std::memory_order_acquire) != kFilled) std::this_thread::yield();
  return tile;
}

// Tasks of the same tiles follow each other, as a thread takes consecutive ones.
void Linear::Call::task(size_t number) const {
  const size_t outputs = layer_.outputs_, first_tile = number / chunks_ * together_, first = number % chunks_ * chunk_;
  const size_t last_tile = std::min(first_tile + together_, tiles_), last = std::min(first + chunk_, outputs);
  for (size_t t = first_tile; t < last_tile; ++t) {
    const Tile& tile = filled(t);
    float* const y = y_ + t * tile_rows_ * outputs;
    for (size_t from = first; from < last; from += kStepOutputs)
      step(tile, y + from, from, std::min(from + kStepOutputs, last));
  }
}

// y (rows of the tile, outputs of the layer) = the outputs [first, last).
void Linear::Call::step(const Tile& tile, float* y, size_t first, size_t last) const {
  const auto& train = layer_.train_;
  const auto& residual = layer_.residual_;
  const Epilogue& epilogue = layer_.epilogue_;
  NearResult near;
  float* const result = direct_ ? y : near.y;
  const size_t stride = direct_ ? layer_.outputs_ : NearResult::stride, rows = tile.x.rows;
  if (train) train->b.multiply(kernels_, tile.inner, near.y, NearResult::stride, first, last);
  if (residual)
    residual->multiply(tile.x.tile, tile.x.stride, rows, train ? near.y : nullptr, NearResult::stride, result, stride,
                       first, last);
  if (!epilogue.bias.empty())
    kernels_.finish(result, stride, rows, last - first, epilogue.bias.data() + first, epilogue.activation);
  if (!direct_) near.copy_to(y, layer_.outputs_, rows, last - first);
}

void Linear::run(const Kernels& kernels, const float* x, size_t rows, size_t columns, float* y,
                 const Scratch& scratch, const ParallelFor& parallel) const {
  if (rows == 0 || outputs_ == 0) return;
  Call(*this, kernels, x, rows, columns, y).run(scratch, parallel);
}

}  // namespace saten
