#include <algorithm>
#include <atomic>
#include <functional>
#include <new>
#include <thread>

#include "activations.h"
#include "layers.h"

namespace saten {
namespace {

constexpr size_t kMostColumns = 48;       // queries at a time: three panels, as many as AVX-512 keeps in registers
constexpr size_t kScoreBytes = 1 << 15;   // of their scores, which the nearest cache should hold

std::string words_of(const std::vector<int64_t>& shape) {
  std::string words;
  for (int64_t axis : shape) words += (words.empty() ? "" : ", ") + std::to_string(axis);
  return "(" + words + ")";
}

// Of one head.
size_t expect_heads(const Tensor& tensor, size_t heads) {
  tensor.expect_type({Type::f32});
  tensor.expect_axes(3);
  if (tensor.axis(2) % heads == 0) return tensor.axis(2) / heads;
  throw Refusal(std::string(tensor.name) + " has " + std::to_string(tensor.axis(2)) + " columns, expected " +
                std::to_string(heads) + " heads of one size");
}

}  // namespace

Attended::Attended(const Attention& attention, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor* masks)
    : heads(attention.heads()) {
  size = expect_heads(q, heads);
  value_size = expect_heads(v, heads);
  batch = q.axis(0), queries = q.axis(1), keys = k.axis(1);
  if (expect_heads(k, heads) != size || k.axis(0) != batch || v.axis(0) != batch || v.axis(1) != keys)
    throw Refusal("queries " + words_of(q.shape) + ", keys " + words_of(k.shape) + " and values " + words_of(v.shape) +
                  " do not fit each other");
  query = static_cast<const float*>(q.data), key = static_cast<const float*>(k.data);
  value = static_cast<const float*>(v.data);
  if (masks) take_mask(*masks);
}

void Attended::take_mask(const Tensor& tensor) {
  tensor.expect_type({Type::f32});
  const size_t whole[] = {batch, heads, queries, keys}, axes = tensor.shape.size();
  bool fits = axes <= 4;
  size_t stride = 1;
  for (size_t axis = axes; fits && axis-- > 0;) {
    const size_t to = 4 - axes + axis, length = tensor.axis(axis);
    fits = length == 1 || length == whole[to];
    mask_strides[to] = length == 1 ? 0 : stride;
    stride *= length;
  }
  if (!fits) {
    const std::vector<int64_t> wanted(std::begin(whole), std::end(whole));
    throw Refusal("mask " + words_of(tensor.shape) + " cannot be spread to " + words_of(wanted));
  }
  mask = static_cast<const float*>(tensor.data);
}

std::vector<int64_t> Attended::shape() const {
  return {static_cast<int64_t>(batch), static_cast<int64_t>(queries), static_cast<int64_t>(heads * value_size)};
}

Attention::Attention(int64_t heads, float scale, bool narrow)
    : heads_(static_cast<size_t>(heads)), scale_(scale), narrow_(narrow) {
  if (heads < 1) throw Refusal("heads is " + std::to_string(heads) + ", expected at least 1");
}

// One call. A task is one head of one text: its keys and values are laid out as the products read them, and then some
// queries at a time pass by, whose scores stay in the nearest cache.
class Attention::Call {
 public:
  Call(const Kernels& kernels, const Attended& given, const Attention& attention, float* y)
      : kernels_(kernels), pairs_(attention.narrow_ ? kernels.pairs : nullptr), given_(given), scale_(attention.scale_), y_(y) {
    const size_t fitting = kScoreBytes / (given.keys * sizeof(float)) / kPanel * kPanel;
    columns_ = std::min(std::clamp(fitting, kPanel, kMostColumns), round_up(given.queries, kPanel));
    key_stride_ = round_up(given.keys, kernels.turn);
    value_panels_ = ceil_div(given.value_size, kPanel);
    words_ = pairs_ ? ceil_div(given.size, 2) : given.size;
    key_words_ = pairs_ ? ceil_div(given.keys, 2) : given.keys;
    place(nullptr, desk_bytes_);
  }

  void run(const Scratch& scratch, const ParallelFor& parallel) {
    static const size_t processors = std::max(1u, std::thread::hardware_concurrency());
    const size_t tasks = given_.batch * given_.heads;
    desks_ = std::min(tasks, processors);
    room_ = static_cast<char*>(scratch(desks_ * desk_bytes_));
    size_t bytes;
    for (size_t desk = 0; desk < desks_; ++desk) place(room_ + desk * desk_bytes_, bytes);
    const auto one = [this](size_t number) { task(number); };
    parallel(tasks, std::cref(one));
  }

 private:
  // Where one thread works. It takes the first that is free, which is most likely still in its cache.
  struct Desk {
    float* narrow;   // (rows, words) on the way to keys or queries, or null where these take floats
    float* keys;     // (words, key_stride)
    float* values;   // (value panels, key_words, kPanel)
    float* queries;  // (panels, words, kPanel)
    float* scores;   // (keys, columns)
    float* mask;     // (keys, columns), or null where all queries share one
    float* sums;     // (columns)
    float* result;   // (columns, value panels, kPanel)
    std::atomic<bool> taken{false};
  };
  // One head of one text.
  struct Head {
    size_t text, number;
  };

  Desk* place(char* base, size_t& bytes) const;
  Desk& take_desk() const;
  void task(size_t number) const;
  void lay_out(const Desk& desk, const Head& head) const;
  void lay_out_values(const Desk& desk, const float* values) const;
  const float* narrowed(const Desk& desk, const float* rows, size_t count, size_t& stride) const;
  void multiply(const FloatCall& call) const { (pairs_ ? pairs_->product : kernels_.floats)(call); }
  void attend(const Desk& desk, const Head& head, size_t first, size_t rows) const;
  void weigh(const Desk& desk, const Head& head, size_t first, size_t rows, size_t columns) const;

  bool mask_of_each() const { return given_.mask && given_.mask_strides[2] != 0; }

  const Kernels& kernels_;
  const Pairs* const pairs_;  // or null where products take floats
  const Attended& given_;
  const float scale_;
  float* const y_;
  size_t columns_, key_stride_, value_panels_;
  size_t words_, key_words_;  // inputs of the two products, or pairs of them
  size_t desk_bytes_, desks_ = 0;
  char* room_ = nullptr;  // (desks, desk_bytes)
};

// A desk at `base`, or null; either way how many bytes it takes.
Attention::Call::Desk* Attention::Call::place(char* base, size_t& bytes) const {
  Arena arena(base);
  Desk* const desk = arena.take<Desk>(1);
  float* const narrow = arena.take<float>(pairs_ ? words_ * std::max(given_.keys, columns_) : 0);
  float* const keys = arena.take<float>(words_ * key_stride_);
  float* const values = arena.take<float>(value_panels_ * key_words_ * kPanel);
  float* const queries = arena.take<float>(words_ * columns_);
  float* const scores = arena.take<float>(given_.keys * columns_);
  float* const mask = arena.take<float>(mask_of_each() ? given_.keys * columns_ : 0);
  float* const sums = arena.take<float>(columns_);
  float* const result = arena.take<float>(columns_ * value_panels_ * kPanel);
  bytes = arena.bytes;
  return base ? new (desk) Desk{narrow, keys, values, queries, scores, mask, sums, result} : nullptr;
}

// Waits only where there are more threads than processors.
Attention::Call::Desk& Attention::Call::take_desk() const {
  for (size_t k = 0;; k = (k + 1) % desks_) {
    Desk& desk = *reinterpret_cast<Desk*>(room_ + k * desk_bytes_);
    if (!desk.taken.exchange(true, std::memory_order_acquire)) return desk;
    if (k + 1 == desks_) std::this_thread::yield();
  }
}

void Attention::Call::task(size_t number) const {
  Desk& desk = take_desk();
  const Head head{number / given_.heads, number % given_.heads};
  lay_out(desk, head);
  for (size_t first = 0; first < given_.queries; first += columns_)
    attend(desk, head, first, std::min(columns_, given_.queries - first));
  desk.taken.store(false, std::memory_order_release);
}

// Rows (count, stride) of one head as pairs, or as they are.
const float* Attention::Call::narrowed(const Desk& desk, const float* rows, size_t count, size_t& stride) const {
  if (!pairs_) return rows;
  for (size_t row = 0; row < count; ++row) pairs_->neighbours(rows + row * stride, given_.size, desk.narrow + row * words_);
  stride = words_;
  return desk.narrow;
}

// Its keys turned, its values in panels.
void Attention::Call::lay_out(const Desk& desk, const Head& head) const {
  const size_t keys = given_.keys, width = given_.heads * given_.size, value_width = given_.heads * given_.value_size;
  size_t stride = width;
  const float* const from = narrowed(desk, given_.key + head.text * keys * width + head.number * given_.size, keys, stride);
  kernels_.transpose(from, stride, keys, words_, desk.keys, key_stride_);
  lay_out_values(desk, given_.value + head.text * keys * value_width + head.number * given_.value_size);
}

void Attention::Call::lay_out_values(const Desk& desk, const float* values) const {
  const size_t value_width = given_.heads * given_.value_size;
  for (size_t panel = 0; panel < value_panels_; ++panel) {
    const size_t there = std::min(kPanel, given_.value_size - panel * kPanel);
    float* to = desk.values + panel * key_words_ * kPanel;
    const auto copy = [&](size_t key, float* row) {
      std::fill(std::copy_n(values + key * value_width + panel * kPanel, there, row), row + kPanel, 0.0f);
    };
    for (size_t k = 0; k < key_words_; ++k, to += kPanel) {
      if (!pairs_) {
        copy(k, to);
        continue;
      }
      float even[kPanel], odd[kPanel] = {};
      copy(2 * k, even);
      if (2 * k + 1 < given_.keys) copy(2 * k + 1, odd);
      pairs_->rows(even, odd, to);
    }
  }
}

// Scores of `rows` queries, their weights, and the sum of values that these weigh, to y.
void Attention::Call::attend(const Desk& desk, const Head& head, size_t first, size_t rows) const {
  const size_t panels = ceil_div(rows, kPanel), width = given_.heads * given_.size;
  size_t from_stride = width;
  const float* const from = narrowed(
      desk, given_.query + (head.text * given_.queries + first) * width + head.number * given_.size, rows, from_stride);
  for (size_t panel = 0; panel < panels; ++panel)
    kernels_.transpose(from + panel * kPanel * from_stride, from_stride, std::min(kPanel, rows - panel * kPanel), words_,
                       desk.queries + panel * words_ * kPanel, kPanel);
  multiply({desk.keys, key_stride_, given_.keys, words_, desk.scores, columns_, 0, panels, desk.queries});
  weigh(desk, head, first, rows, panels * kPanel);
  const size_t stride = value_panels_ * kPanel, y_width = given_.heads * given_.value_size;
  multiply({desk.scores, columns_, rows, key_words_, desk.result, stride, 0, value_panels_, desk.values});
  float* y = y_ + (head.text * given_.queries + first) * y_width + head.number * given_.value_size;
  for (size_t row = 0; row < rows; ++row, y += y_width) {
    const float share = 1 / desk.sums[row];
    for (size_t k = 0; k < given_.value_size; ++k) y[k] = desk.result[row * stride + k] * share;
  }
}

void Attention::Call::weigh(const Desk& desk, const Head& head, size_t first, size_t rows, size_t columns) const {
  const size_t keys = given_.keys, *const strides = given_.mask_strides;
  const float* mask = given_.mask;
  if (mask) mask += head.text * strides[0] + head.number * strides[1] + first * strides[2];
  size_t mask_stride = strides[3];
  if (mask_of_each()) {
    if (strides[3] == 1) kernels_.transpose(mask, strides[2], rows, keys, desk.mask, columns_);
    for (size_t k = 0; strides[3] == 0 && k < keys; ++k)
      for (size_t row = 0; row < columns; ++row) desk.mask[k * columns_ + row] = row < rows ? mask[row * strides[2]] : 0;
    mask = desk.mask, mask_stride = columns_;
  }
  (pairs_ ? pairs_->softmax : kernels_.softmax)(
      {desk.scores, columns_, keys, columns, scale_, mask, mask_stride, mask_of_each(), desk.sums});
}

void Attention::run(const Kernels& kernels, const Attended& attended, float* y, const Scratch& scratch,
                    const ParallelFor& parallel) const {
  const size_t columns = attended.heads * attended.value_size;
  if (attended.batch * attended.queries * columns == 0) return;
  if (attended.keys == 0) {
    std::fill_n(y, attended.batch * attended.queries * columns, 0.0f);
    return;
  }
  Call(kernels, attended, *this, y).run(scratch, parallel);
}

}  // namespace saten
