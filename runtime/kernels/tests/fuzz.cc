// libFuzzer: a node is made of arbitrary weights and meets inputs of arbitrary sizes. Either is refused, or it computes
// what the scalar kernels compute.
#include <cfloat>
#include <cstring>
#include <iterator>

#include "cases.h"

namespace saten::testing {
namespace {

// Reads the fuzzer's bytes, zeros after the end.
struct Bytes {
  const uint8_t* at;
  const uint8_t* end;
  uint8_t byte() { return at < end ? *at++ : 0; }
  uint32_t word() { return byte() | uint32_t(byte()) << 8; }
  // In [-2, 2): what is added up stays far from overflow, where the order of additions would decide.
  std::vector<float> numbers(size_t count) {
    std::vector<float> made(count);
    for (float& each : made) each = static_cast<int8_t>(byte()) / 64.f;
    return made;
  }
  std::vector<int8_t> codes(size_t count) {
    std::vector<int8_t> made(count);
    for (int8_t& each : made) each = static_cast<int8_t>(byte());
    return made;
  }
  // As many values of a type; what is no value type gets bytes too.
  std::vector<uint8_t> values(Type type, size_t count) {
    const auto source = numbers(count);
    std::vector<uint8_t> made(count * 4);
    for (size_t k = 0; k < count; ++k) {
      const Half half = half_of(source[k]);
      if (type == Type::f16) std::memcpy(&made[k * 2], &half, 2);
      else if (type == Type::f32) std::memcpy(&made[k * 4], &source[k], 4);
      else made[k] = static_cast<uint8_t>(static_cast<int8_t>(source[k] * 64));
    }
    return made;
  }
  // Mostly small steps, so that sound index lists are found.
  std::vector<int32_t> indices(size_t count) {
    std::vector<int32_t> made(count);
    int32_t last = -1;
    for (int32_t& each : made) {
      const uint8_t step = byte();
      each = step == 255 ? static_cast<int32_t>(word() << 16 | word()) : step == 254 ? -1 : static_cast<int32_t>(static_cast<uint32_t>(last) + 1 + step % 4);
      last = each;
    }
    return made;
  }
};

constexpr Type kTypes[] = {Type::f32, Type::f16, Type::s8, Type::s32, Type::other};

// Lines of codes of some sizes, which mostly fit together.
BlockMatrix make_coded(const Kernels& isa, Bytes& bytes, Type type, size_t inputs, size_t outputs, size_t lines) {
  NOfM pattern{inputs, outputs, size_t(bytes.byte() % 4), size_t(bytes.byte() % 12)};
  if (bytes.byte() % 16 == 0) pattern.m += 250;
  const int64_t width = pattern.m ? int64_t(pattern.per_output()) : 0, odd = bytes.byte() % 16 / 15;
  const auto at = bytes.indices(lines);
  const auto scale = bytes.numbers(lines);
  const auto stored = bytes.values(type, lines * size_t(width + odd));
  const auto codes = bytes.codes((lines * size_t(width) * pattern.bits() + 7) / 8 + size_t(bytes.byte() % 16 / 15));
  const Tensor scaled = tensor("scale", Type::f32, {int64_t(lines)}, scale);
  const Tensor packed = tensor("codes", Type::u8, {int64_t(codes.size())}, codes);
  return BlockMatrix::from_codes(isa, pattern, tensor("outputs", Type::s32, {int64_t(lines)}, at), packed,
                                 tensor("stored", type, {int64_t(lines), width + odd}, stored), type == Type::s8 ? &scaled : nullptr);
}

// comparable: whether every instruction set must come to the same result but for rounding.
Linear make_linear(const Kernels& isa, Bytes bytes, bool& comparable) {
  const uint8_t kind = bytes.byte() % 3;
  const bool rows = kind > 0, coded = kind > 1, train = bytes.byte() % 2, quantized = bytes.byte() % 2;
  const size_t inputs = bytes.byte() % 40, groups = bytes.byte() % 5, size = bytes.byte() % 40, kept = bytes.byte() % 24;
  const size_t outputs = rows ? size : groups * size, rank = bytes.byte() % 20;
  const Type type = kTypes[bytes.byte() % 5];
  const auto scale = bytes.numbers(outputs);
  const Tensor scaled = tensor("scale", Type::f32, {int64_t(outputs) + bytes.byte() % 16 / 15}, scale);
  const Tensor* maybe = type == Type::s8 ? &scaled : nullptr;
  comparable = !(train && quantized);  // a code next to a rounding border may fall to either side
  std::optional<BlockMatrix> residual;
  const bool with_residual = bytes.byte() % 4;
  if (with_residual && coded) residual = make_coded(isa, bytes, type, inputs, outputs, kept);
  if (with_residual && !coded) {
    const size_t count = rows ? kept : groups * size * kept;
    const auto indices = bytes.indices(rows ? kept : groups * kept);
    auto starts = bytes.indices(outputs + 1);
    if (bytes.byte() % 8) starts.front() = 0, starts.back() = int32_t(kept);
    const auto stored = bytes.values(type, count);
    if (rows) {
      residual = BlockMatrix::from_rows(isa, tensor("indptr", Type::s32, {int64_t(starts.size())}, starts),
                                        tensor("indices", Type::s32, {int64_t(kept)}, indices),
                                        tensor("stored", type, {int64_t(kept)}, stored), maybe, inputs, outputs);
    } else {
      residual = BlockMatrix::from_groups(
          isa, tensor("indices", Type::s32, {int64_t(groups), int64_t(kept)}, indices),
          tensor("blocks", type, {int64_t(groups), int64_t(size), int64_t(kept)}, stored), maybe);
    }
  }
  std::optional<LowRank> low;
  if (train) {
    const int64_t inner = int64_t(rank) + bytes.byte() % 16 / 15;
    const Type of = quantized ? Type::s8 : Type::f32;
    const auto a = bytes.values(of, inputs * rank), b = bytes.values(of, size_t(inner) * outputs);
    const auto a_scale = bytes.numbers(rank), b_scale = bytes.numbers(outputs);
    const Tensor at = tensor("a", of, {int64_t(inputs), int64_t(rank)}, a), bt = tensor("b", of, {inner, int64_t(outputs)}, b);
    if (quantized)
      low.emplace(LowRank{Factor(at, tensor("a_scale", Type::f32, {int64_t(rank)}, a_scale)),
                          Factor(bt, tensor("b_scale", Type::f32, {int64_t(outputs)}, b_scale))});
    else
      low.emplace(LowRank{Factor(at), Factor(bt)});
  }
  const size_t epilogue = bytes.byte() % 3;
  Epilogue after;
  if (epilogue) after = {bytes.numbers(outputs + bytes.byte() % 16 / 15), epilogue == 1 ? Activation::none : Activation::gelu};
  return Linear(std::move(low), std::move(residual), std::move(after));
}

void run_linear(Bytes bytes) {
  const size_t rows = bytes.byte() % 40, columns = bytes.byte() % 48;
  const auto x = Random(bytes.byte()).numbers(rows * columns);
  std::vector<float> oracle;
  for (size_t i = 0; i < kInstructionSetCount; ++i) {
    const Kernels& isa = *kInstructionSets[i];
    if (!isa.supported()) continue;
    bool comparable;
    const Linear layer = make_linear(isa, bytes, comparable);
    layer.expect_inputs(columns);
    std::vector<float> y(rows * layer.outputs());
    Room room;
    layer.run(isa, x.data(), rows, columns, y.data(), room.scratch(), on_threads(1));
    if (i == 0) oracle = y;
    // |x|, values, scales, bias ≤ 2 (codes ≤ 128), 48 inputs, rank ≤ 20: no sum of sizes exceeds 48·2·128·2 +
    // 48·2·2·20·2 + 2, and GELU's slope is at most 1.13.
    constexpr double kLargest = 1.13 * (48 * 2 * 128 * 2 + 48 * 2 * 2 * 20 * 2 + 2);
    for (size_t k = 0; comparable && k < y.size(); ++k)
      if (!(std::fabs(double(y[k]) - oracle[k]) <= 2 * gamma(200) * kLargest)) {
        std::fprintf(stderr, "%s: element %zu of %zu × %zu is %g, scalar %g\n", isa.isa, k, rows, layer.outputs(), y[k], oracle[k]);
        std::abort();
      }
  }
}

void run_embedding(Bytes bytes) {
  const size_t rows = bytes.byte() % 20, width = bytes.byte() % 40, rank = bytes.byte() % 8, stored = bytes.byte() % 20;
  const size_t kept = bytes.byte() % 8, count = bytes.byte() % 8, odd = bytes.byte() % 16 / 15;
  const auto slots = bytes.indices(rows + odd), columns = bytes.indices(rows * kept);
  const auto a = bytes.numbers(rows * rank), b = bytes.numbers(rank * width), whole = bytes.numbers(stored * width);
  const auto entries = bytes.numbers(rows * kept);
  const auto ids = bytes.codes(count);
  const uint8_t parts = bytes.byte();
  const Kernels& isa = kernels();
  std::optional<Factor> factor;
  if (parts & 1) factor.emplace(tensor("b", Type::f32, {int64_t(rank), int64_t(width)}, b));
  std::optional<Tensor> slot_table, column_table;
  if (parts & 2) slot_table = tensor("slots", Type::s32, {int64_t(slots.size())}, slots);
  if (parts & 4) column_table = tensor("columns", Type::s32, {int64_t(rows), int64_t(kept)}, columns);
  const Embedding layer(rows, width, std::move(factor), slot_table, stored, column_table);
  Table table;
  table.a.floats = a.data(), table.rows.floats = whole.data(), table.entries.floats = entries.data();
  const std::vector<int64_t> wide(ids.begin(), ids.end());
  std::vector<float> y(count * width);
  Room room;
  layer.run(isa, table, wide.data(), count, y.data(), room.scratch(), on_threads(1));
}

// Sizes from none to a few beyond a panel, mostly such that fit. A mask is numbers, or hides every key.
void run_attention(Bytes bytes) {
  const size_t batch = bytes.byte() % 3, heads = bytes.byte() % 4, queries = bytes.byte() % 40, keys = bytes.byte() % 40;
  const size_t size = bytes.byte() % 36, value_size = bytes.byte() % 36, axes = bytes.byte() % 8;
  const bool narrow = bytes.byte() % 2, hidden = bytes.byte() % 4 == 0;
  const auto odd = [&] { return size_t(bytes.byte() % 16 / 15); };
  const auto shape = [&](size_t tokens, size_t width) {
    return std::vector<int64_t>{int64_t(batch + odd()), int64_t(tokens + odd()), int64_t(heads * width + odd())};
  };
  const auto count = [](const std::vector<int64_t>& of) {
    size_t product = 1;
    for (int64_t axis : of) product *= size_t(axis);
    return product;
  };
  const auto q_shape = shape(queries, size), k_shape = shape(keys, size), v_shape = shape(keys, value_size);
  std::vector<int64_t> mask_shape;
  const size_t whole[] = {1, batch, heads, queries, keys};  // of five axes, one too many
  for (size_t axis = axes < 6 ? 5 - axes : 5; axis < 5; ++axis) mask_shape.push_back(bytes.byte() % 2 ? int64_t(whole[axis] + odd()) : 1);
  const auto q = bytes.numbers(count(q_shape)), k = bytes.numbers(count(k_shape)), v = bytes.numbers(count(v_shape));
  const auto mask = hidden ? std::vector<float>(count(mask_shape), -FLT_MAX) : bytes.numbers(count(mask_shape));
  const Tensor masks = tensor("mask", Type::f32, mask_shape, mask);
  const Attention attention(int64_t(heads), .25f, narrow);
  const Attended given(attention, tensor("queries", Type::f32, q_shape, q), tensor("keys", Type::f32, k_shape, k),
                       tensor("values", Type::f32, v_shape, v), axes < 6 ? &masks : nullptr);
  std::vector<float> oracle;
  for (size_t i = 0; i < kInstructionSetCount; ++i) {
    const Kernels& isa = *kInstructionSets[i];
    if (!isa.supported()) continue;
    std::vector<float> y(count(given.shape()), NAN);
    Room room;
    attention.run(isa, given, y.data(), room.scratch(), on_threads(1));
    if (i == 0) oracle = y;
    // A score is at most 35·2·2/4 + 2 = 37, and gamma(200) moves it by less than 2^-11. bfloat16 moves it by up to
    // 35·2^-8 < 1/7, so a weight by less than e^(2/7) - 1 < 1/3 of itself. No value exceeds 2.
    const double allowed = narrow && isa.pairs ? 1 : 0x1p-7;
    for (size_t at = 0; at < y.size(); ++at)
      if (!(std::fabs(double(y[at]) - oracle[at]) <= allowed)) {
        std::fprintf(stderr, "%s: element %zu of %zu × %zu × %zu is %g, scalar %g\n", isa.isa, at, batch, queries, heads * value_size, y[at], oracle[at]);
        std::abort();
      }
  }
}

constexpr void (*kTargets[])(Bytes) = {run_embedding, run_linear, run_linear, run_attention};

}  // namespace
}  // namespace saten::testing

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace saten;
  if (size == 0) return 0;
  const testing::Bytes bytes{data + 1, data + size};
  try {
    testing::kTargets[data[0] % std::size(testing::kTargets)](bytes);
  } catch (const Refusal&) {  // what arbitrary weights deserve
  }
  return 0;
}
