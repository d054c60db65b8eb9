#include "matrices.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <numeric>

namespace saten {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kNearestBytes = 1 << 15;  // the first-level cache of most processors
constexpr size_t kSinglesBytes = 1 << 16;  // the same for single entries, see pack

size_t value_bytes(Value value) { return value == Value::f32 ? 4 : value == Value::f16 ? 2 : 1; }

Value value_of(const Tensor& tensor) {
  tensor.expect_type({Type::f32, Type::f16, Type::s8});
  return tensor.type == Type::f32 ? Value::f32 : tensor.type == Type::f16 ? Value::f16 : Value::s8;
}

size_t largest_group(size_t size) {
  size_t best = 1;
  for (size_t group : kGroups)
    if (size % group == 0) best = group;
  return best;
}

std::string at(const Tensor& tensor, size_t k) { return std::string(tensor.name) + "[" + std::to_string(k) + "]"; }

// Index `k`, which must be greater than `before` and less than `end`.
uint32_t checked_index(const Tensor& tensor, size_t k, int64_t before, uint64_t end) {
  const int64_t index = tensor.integer(k);
  if (index < 0 || static_cast<uint64_t>(index) >= end)
    throw Refusal(at(tensor, k) + " is " + std::to_string(index) + ", expected less than " + std::to_string(end));
  if (index <= before)
    throw Refusal(at(tensor, k) + " is " + std::to_string(index) + " after " + std::to_string(before) +
                  ", expected ascending indices without repetition");
  return static_cast<uint32_t>(index);
}

// Number `k` of a stream of codes of `bits` each, at most 8.
size_t code_at(const Tensor& codes, size_t bits, size_t k) {
  if (bits == 0) return 0;
  const uint8_t* const octets = static_cast<const uint8_t*>(codes.data);
  const size_t at = k * bits / 8, shift = k * bits % 8;
  const size_t above = at + 1 < codes.size() ? octets[at + 1] : 0;
  return (octets[at] | above << 8) >> shift & ((size_t{1} << bits) - 1);
}

// The inputs of all values, line by line; whether they ascend is left to whoever takes them.
std::vector<int32_t> inputs_of(const NOfM& pattern, const Tensor& codes, size_t lines) {
  const size_t per_output = pattern.per_output(), bits = pattern.bits();
  std::vector<int32_t> inputs(lines * per_output);
  for (size_t k = 0; k < inputs.size(); ++k) {
    const size_t place = code_at(codes, bits, k);
    if (place >= pattern.m)
      throw Refusal("code " + std::to_string(k) + " is " + std::to_string(place) + ", expected less than " + std::to_string(pattern.m));
    inputs[k] = static_cast<int32_t>(k % per_output / pattern.n * pattern.m + place);
  }
  return inputs;
}

}  // namespace

size_t NOfM::bits() const {
  size_t bits = 0;
  while (size_t{1} << bits < m) ++bits;
  return bits;
}

size_t Tensor::size() const {
  size_t count = 1;
  for (int64_t length : shape) count *= static_cast<size_t>(length);
  return count;
}

size_t Tensor::axis(size_t k) const { return static_cast<size_t>(shape[k]); }

int64_t Tensor::integer(size_t k) const {
  if (type == Type::u16) return static_cast<const uint16_t*>(data)[k];
  if (type == Type::s32) return static_cast<const int32_t*>(data)[k];
  return static_cast<const int64_t*>(data)[k];
}

void Tensor::expect_axes(size_t count) const {
  if (shape.size() != count)
    throw Refusal(std::string(name) + " has " + std::to_string(shape.size()) + " axes, expected " +
                  std::to_string(count));
}

void Tensor::expect_type(std::initializer_list<Type> allowed) const {
  if (std::find(allowed.begin(), allowed.end(), type) == allowed.end())
    throw Refusal(std::string(name) + " has an element type that no kernel takes");
}

void Tensor::expect_size(size_t count, const char* why) const {
  if (size() != count)
    throw Refusal(std::string(name) + " has " + std::to_string(size()) + " elements, expected " +
                  std::to_string(count) + ", " + why);
}

Buffer::Buffer(size_t bytes) {
  if (bytes == 0) return;
  bytes_.reset(std::aligned_alloc(kCacheLine, (bytes + kCacheLine - 1) / kCacheLine * kCacheLine));
  if (!bytes_) throw std::bad_alloc();
}

void Buffer::Free::operator()(void* p) const { std::free(p); }

BlockMatrix BlockMatrix::from_groups(const Kernels& kernels, const Tensor& indices, const Tensor& values, const Tensor* scale) {
  indices.expect_axes(2);
  indices.expect_type({Type::u16, Type::s32, Type::s64});
  values.expect_axes(3);
  const size_t groups = values.axis(0), size = values.axis(1), kept = values.axis(2);
  indices.expect_size(groups * kept, "one for each block");
  if (indices.axis(0) != groups) throw Refusal("indices and values are in a different number of groups");

  BlockMatrix made(kernels);
  made.value_ = value_of(values);
  made.outputs_ = groups * size;
  made.group_ = largest_group(size);
  const size_t parts = size / made.group_, panels = groups * parts, bytes = value_bytes(made.value_);
  if (panels * kept > std::numeric_limits<uint32_t>::max()) throw Refusal("values has more than 2^32 blocks");
  std::vector<uint32_t> packed(panels * kept);
  made.values_ = Buffer(values.size() * bytes);
  std::vector<uint32_t> begins(panels + 1);
  for (size_t group = 0; group < groups; ++group) {
    int64_t before = -1;
    for (size_t k = 0; k < kept; ++k) {
      const uint32_t index = checked_index(indices, group * kept + k, before, std::numeric_limits<int32_t>::max());
      before = index;
      made.inputs_ = std::max<size_t>(made.inputs_, index + size_t{1});
      for (size_t part = 0; part < parts; ++part) packed[(group * parts + part) * kept + k] = index;
    }
    for (size_t part = 0; part < parts; ++part) {
      const size_t panel = group * parts + part;
      begins[panel + 1] = static_cast<uint32_t>((panel + 1) * kept);
      const char* from = static_cast<const char*>(values.data) + panel * made.group_ * kept * bytes;  // (group_, kept)
      char* to = static_cast<char*>(made.values_.data()) + panel * made.group_ * kept * bytes;        // (kept, group_)
      for (size_t k = 0; k < kept; ++k)
        for (size_t output = 0; output < made.group_; ++output)
          std::memcpy(to + (k * made.group_ + output) * bytes, from + (output * kept + k) * bytes, bytes);
    }
  }
  made.pack(begins, packed, scale);
  return made;
}

BlockMatrix BlockMatrix::from_rows(const Kernels& kernels, const Tensor& starts, const Tensor& indices, const Tensor& values,
                                   const Tensor* scale, size_t inputs, size_t outputs) {
  starts.expect_type({Type::s32, Type::s64});
  starts.expect_size(outputs + 1, "one more than outputs");
  indices.expect_type({Type::u16, Type::s32, Type::s64});
  indices.expect_size(values.size(), "one for each value");
  if (values.size() > std::numeric_limits<uint32_t>::max()) throw Refusal("values has more than 2^32 elements");

  BlockMatrix made(kernels);
  made.value_ = value_of(values);
  made.inputs_ = inputs;
  made.outputs_ = outputs;
  std::vector<uint32_t> begins(outputs + 1);
  std::vector<uint32_t> packed(values.size());
  const int64_t end = static_cast<int64_t>(values.size());
  if (starts.integer(0) != 0) throw Refusal(at(starts, 0) + " is not 0");
  if (starts.integer(outputs) != end) throw Refusal(at(starts, outputs) + " is not the number of values");
  for (size_t row = 0; row < outputs; ++row) {
    const int64_t from = starts.integer(row), to = starts.integer(row + 1);
    if (to < from || to > end) throw Refusal(at(starts, row + 1) + " is " + std::to_string(to) + ", out of order");
    begins[row + 1] = static_cast<uint32_t>(to);
    int64_t before = -1;
    for (int64_t k = from; k < to; ++k) {
      packed[k] = checked_index(indices, static_cast<size_t>(k), before, inputs);
      before = packed[k];
    }
  }
  made.values_ = Buffer(values.size() * value_bytes(made.value_));
  if (values.size()) std::memcpy(made.values_.data(), values.data, values.size() * value_bytes(made.value_));
  made.pack(begins, packed, scale);
  return made;
}

BlockMatrix BlockMatrix::from_codes(const Kernels& kernels, const NOfM& pattern, const Tensor& outputs, const Tensor& codes,
                                    const Tensor& values, const Tensor* scale) {
  if (pattern.n == 0 || pattern.n > pattern.m || pattern.m > 256)
    throw Refusal("sizes says " + std::to_string(pattern.n) + " of " + std::to_string(pattern.m) + " inputs, expected 1 ≤ n ≤ m ≤ 256");
  values.expect_axes(2);
  const size_t lines = values.axis(0), per_output = pattern.per_output();
  if (values.axis(1) != per_output)
    throw Refusal(std::string(values.name) + " has " + std::to_string(values.axis(1)) + " values for each output, expected " +
                  std::to_string(per_output));
  if (values.size() > std::numeric_limits<int32_t>::max()) throw Refusal("values has more than 2^31 elements");
  outputs.expect_type({Type::u16, Type::s32, Type::s64});
  outputs.expect_size(lines, "one for each line of values");
  codes.expect_type({Type::u8});
  codes.expect_size((values.size() * pattern.bits() + 7) / 8, "the bits of one code for each value");
  if (scale) {
    scale->expect_type({Type::f32});
    scale->expect_size(lines, "one for each line of values");
  }

  std::vector<int32_t> starts(pattern.outputs + 1);
  std::vector<float> scales(scale ? pattern.outputs : 0, 1);
  int64_t before = -1;
  for (size_t line = 0; line < lines; ++line) {
    const size_t output = checked_index(outputs, line, before, pattern.outputs);
    before = static_cast<int64_t>(output);
    starts[output + 1] = static_cast<int32_t>(per_output);
    if (scale) scales[output] = static_cast<const float*>(scale->data)[line];
  }
  std::partial_sum(starts.begin(), starts.end(), starts.begin());
  const std::vector<int32_t> inputs = inputs_of(pattern, codes, lines);
  const auto column = [](const char* name, Type type, const auto& data) {
    return Tensor{name, type, {static_cast<int64_t>(data.size())}, data.data()};
  };
  const Tensor of_outputs = column("scale", Type::f32, scales);
  return from_rows(kernels, column("outputs", Type::s32, starts), column("codes", Type::s32, inputs), values,
                   scale ? &of_outputs : nullptr, pattern.inputs, pattern.outputs);
}

void BlockMatrix::pack(const std::vector<uint32_t>& starts, const std::vector<uint32_t>& indices,
                       const Tensor* scale) {
  stored_ = indices.size() * group_;
  panels_ = starts.size() - 1;
  index_ = inputs_ <= 1 << 16 ? Index::u16 : Index::u32;
  indices_ = Buffer(indices.size() * (index_ == Index::u16 ? 2 : 4));
  if (index_ == Index::u16)
    std::copy(indices.begin(), indices.end(), static_cast<uint16_t*>(indices_.data()));
  else
    std::copy(indices.begin(), indices.end(), static_cast<uint32_t*>(indices_.data()));

  // Strips of inputs, so that what a tile of x holds of one stays in the nearest cache while panels pass by. Single
  // entries are so few per output that narrow strips cost more than they save.
  const size_t strip_inputs = (group_ == 1 ? kSinglesBytes : kNearestBytes) / (kernels_->tile_rows[group_slot(group_)] * sizeof(float));
  const size_t strips = std::max<size_t>(1, (inputs_ + strip_inputs - 1) / strip_inputs);
  splits_.resize((strips + 1) * panels_);
  for (size_t panel = 0; panel < panels_; ++panel) {
    const auto begin = indices.begin() + starts[panel], end = indices.begin() + starts[panel + 1];
    for (size_t strip = 0; strip <= strips; ++strip) {
      const auto first = std::lower_bound(begin, end, static_cast<uint32_t>(strip * inputs_ / strips));
      splits_[strip * panels_ + panel] = static_cast<uint32_t>(first - indices.begin());
    }
  }
  if (!scale) return;
  scale->expect_type({Type::f32});
  scale->expect_size(outputs_, "one for each output");
  scale_.assign(static_cast<const float*>(scale->data), static_cast<const float*>(scale->data) + outputs_);
}

size_t BlockMatrix::bytes() const {
  return stored_ * value_bytes(value_) + stored_ / group_ * (index_ == Index::u16 ? 2 : 4);
}

void BlockMatrix::multiply(const float* x, size_t x_stride, size_t rows, const float* addend, size_t addend_stride,
                           float* y, size_t y_stride, size_t first, size_t last) const {
  if (first == last) return;
  const BlockKernel kernel = kernels_->blocks[int(value_)][group_slot(group_)][int(index_)];
  // One row fits any cache; of single entries, the kernel itself goes through the strips.
  const size_t strips = splits_.size() / panels_ - 1, at_once = x_stride == 1 || group_ == 1 ? strips : 1;
  BlockCall call{x, x_stride, rows, y, y_stride, addend, addend_stride, first / group_, (last + group_ - 1) / group_,
                 nullptr, at_once, panels_, indices_.data(), values_.data(), scale_.empty() ? nullptr : scale_.data()};
  for (size_t strip = 0; strip < strips; strip += at_once) {
    call.splits = splits_.data() + strip * panels_;
    kernel(call);
    call.addend = y;
    call.addend_stride = y_stride;
  }
}

FloatMatrix::FloatMatrix(const Tensor& values) {
  values.expect_axes(2);
  values.expect_type({Type::f32});
  inputs_ = values.axis(0);
  outputs_ = values.axis(1);
  const size_t panels = (outputs_ + kPanel - 1) / kPanel;
  values_ = Buffer(panels * inputs_ * kPanel * sizeof(float));
  const float* from = static_cast<const float*>(values.data);
  float* to = static_cast<float*>(values_.data());
  for (size_t panel = 0; panel < panels; ++panel)
    for (size_t k = 0; k < inputs_; ++k)
      for (size_t output = panel * kPanel; output < (panel + 1) * kPanel; ++output)
        *to++ = output < outputs_ ? from[k * outputs_ + output] : 0;
}

void FloatMatrix::multiply(const Kernels& kernels, const float* x, size_t x_stride, size_t rows, float* y,
                           size_t y_stride, size_t first, size_t last) const {
  kernels.floats({x, x_stride, rows, inputs_, y, y_stride, first / kPanel, (last + kPanel - 1) / kPanel,
                  static_cast<const float*>(values_.data())});
}

QuantizedMatrix::QuantizedMatrix(const Tensor& values, const Tensor& scale) {
  values.expect_axes(2);
  values.expect_type({Type::s8});
  scale.expect_type({Type::f32});
  inputs_ = values.axis(0);
  outputs_ = values.axis(1);
  scale.expect_size(outputs_, "one for each output");
  constexpr size_t kMostInputs = std::numeric_limits<int32_t>::max() / (255 * 128);
  if (inputs_ > kMostInputs)
    throw Refusal(std::string(values.name) + " has " + std::to_string(inputs_) + " inputs; 32 bits add up at most " +
                  std::to_string(kMostInputs));
  quads_ = (inputs_ + kQuad - 1) / kQuad;
  const size_t panels = (outputs_ + kPanel - 1) / kPanel;
  scale_.assign(panels * kPanel, 0);
  std::copy_n(static_cast<const float*>(scale.data), outputs_, scale_.begin());
  sums_.assign(panels * kPanel, 0);
  const size_t count = panels * quads_ * kPanel * kQuad;
  values_ = Buffer(count);
  int8_t* to = static_cast<int8_t*>(values_.data());
  std::fill_n(to, count, int8_t{0});
  const int8_t* from = static_cast<const int8_t*>(values.data);
  for (size_t k = 0; k < inputs_; ++k)
    for (size_t output = 0; output < outputs_; ++output) {
      const int8_t value = from[k * outputs_ + output];
      to[((output / kPanel * quads_ + k / kQuad) * kPanel + output % kPanel) * kQuad + k % kQuad] = value;
      sums_[output] += value;
    }
}

void QuantizedMatrix::multiply(const Kernels& kernels, const uint8_t* x, const float* x_scale, const int32_t* x_zero,
                               size_t rows, float* y, size_t y_stride, size_t first, size_t last) const {
  kernels.quantized({x, row_bytes(), x_scale, x_zero, rows, quads_, y, y_stride, first / kPanel,
                     (last + kPanel - 1) / kPanel, static_cast<const int8_t*>(values_.data()), scale_.data(),
                     sums_.data()});
}

}  // namespace saten
