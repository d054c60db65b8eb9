#include "families.h"

#include <string>

#include "cases.h"

namespace saten::testing {
namespace {

const Kernels& scalar() { return *kInstructionSets[0]; }

struct BlockCase {
  size_t rows, inputs, panels, group, stride;
  bool accumulate, scaled;
  std::vector<float> x, tile, scale, before;
  std::vector<uint32_t> splits, wide;  // splits (strips + 1, panels)
  std::vector<uint16_t> narrow;
  Values values;

  static BlockCase make(const Kernels& isa, Value value, size_t group, Random& random) {
    const size_t slot = group_slot(group), panels = random.of<size_t>({1, 2, 3, 5, 17});
    const size_t rows = shape_near(isa.tile_rows[slot], random), inputs = shape_near(16, random) * random.of<size_t>({1, 3});
    const double density = random.of({0., .02, .1, .5, 1.});
    const size_t strips = 1 + random.below(3);
    std::vector<uint32_t> indices, splits((strips + 1) * panels);
    for (size_t panel = 0; panel < panels; ++panel) {
      const auto chosen = random.ascending(inputs, density);
      for (size_t strip = 0; strip <= strips; ++strip)
        splits[strip * panels + panel] = static_cast<uint32_t>(indices.size() + chosen.size() * strip / strips);
      indices.insert(indices.end(), chosen.begin(), chosen.end());
    }
    BlockCase made{rows, inputs, panels, group, 1, random.below(2) == 0, value == Value::s8 || random.below(4) == 0, random.numbers(rows * inputs), {}, random.numbers(panels * group), {},
                   splits, indices, {indices.begin(), indices.end()}, Values(value, indices.size() * group, random)};
    const size_t quantum = isa.row_quantum[slot];
    if (rows > 1) made.stride = (rows + quantum - 1) / quantum * quantum + quantum * random.below(2);
    if (made.stride == 1 && rows > 1) made.stride = 2;
    made.tile.assign(inputs * made.stride, 0);
    for (size_t row = 0; row < rows; ++row)
      for (size_t k = 0; k < inputs; ++k) made.tile[k * made.stride + row] = made.x[row * inputs + k];
    made.before = random.numbers(rows * (panels * group + 3));
    return made;
  }

  std::vector<float> run(const Kernels& isa, Value value, Index index) const {
    std::vector<float> y = before;
    const void* indices = index == Index::u16 ? static_cast<const void*>(narrow.data()) : wide.data();
    isa.blocks[int(value)][group_slot(group)][int(index)]({tile.data(), stride, rows, y.data(), panels * group + 3, accumulate ? y.data() : nullptr, panels * group + 3, 0, panels,
             splits.data(), splits.size() / panels - 1, panels, indices, values.data(), scaled ? scale.data() : nullptr});
    return y;
  }

  // The exact result of one element and what rounding may add to it.
  void exact(size_t row, size_t output, double& sum, double& bound) const {
    sum = bound = 0;
    const size_t panel = output / group;
    const size_t begin = splits[panel], end = splits[splits.size() - panels + panel];
    for (size_t block = begin; block < end; ++block) {
      const double term = double(x[row * inputs + wide[block]]) * values.numbers[block * group + output % group];
      sum += term;
      bound += std::fabs(term);
    }
    if (scaled) sum *= scale[output], bound *= std::fabs(scale[output]);
    if (accumulate) sum += before[row * (panels * group + 3) + output], bound += std::fabs(before[row * (panels * group + 3) + output]);
    bound *= gamma(double(end - begin) + 3);
  }
};

void check_block_kernel(const Kernels& isa, const char* name, Value value, size_t group, Index index, size_t cases) {
  Random random(static_cast<unsigned>(group * 100 + size_t(value) * 10 + size_t(index)));
  for (size_t k = 0; k < cases; ++k) {
    const BlockCase one = BlockCase::make(isa, value, group, random);
    const std::vector<float> y = one.run(isa, value, index);
    const std::string where = std::string(name) + "__" + isa.isa + " rows " + std::to_string(one.rows) + " inputs " +
                              std::to_string(one.inputs) + " panels " + std::to_string(one.panels) + " case " + std::to_string(k);
    // The scalar kernels want a tile of their own stride; any will do, as theirs is a multiple of 1.
    const std::vector<float> oracle = one.run(scalar(), value, index);
    const size_t width = one.panels * one.group, stride = width + 3;
    for (size_t row = 0; row < one.rows; ++row) {
      for (size_t output = 0; output < width; ++output) {
        double sum, bound;
        one.exact(row, output, sum, bound);
        const float got = y[row * stride + output];
        expect(std::fabs(got - sum) <= bound, "differs from float64", where);
        expect(std::fabs(double(got) - oracle[row * stride + output]) <= 2 * bound, "differs from the scalar kernel", where);
      }
      for (size_t beyond = width; beyond < stride; ++beyond)
        expect(y[row * stride + beyond] == one.before[row * stride + beyond], "wrote beyond its outputs", where);
    }
  }
  std::printf("%s__%s: %zu cases\n", name, isa.isa, cases);
}

void check_float_kernel(const Kernels& isa, size_t cases) {
  Random random(5);
  for (size_t k = 0; k < cases; ++k) {
    const size_t rows = shape_near(isa.float_rows, random), inputs = shape_near(16, random) * random.of<size_t>({1, 7});
    const size_t outputs = shape_near(16, random) * random.of<size_t>({1, 3}), width = (outputs + 15) / 16 * 16, y_stride = width + 3;
    const auto weights = random.numbers(inputs * outputs), x = random.numbers(rows * inputs), before = random.numbers(rows * y_stride);
    const FloatMatrix matrix(tensor("a", Type::f32, {int64_t(inputs), int64_t(outputs)}, weights));
    const size_t stride = rows == 1 ? 1 : std::max<size_t>(2, (rows + isa.turn - 1) / isa.turn * isa.turn + isa.turn * random.below(2));
    std::vector<float> tile(inputs * stride), y = before;
    for (size_t row = 0; row < rows; ++row)
      for (size_t i = 0; i < inputs; ++i) tile[i * stride + row] = x[row * inputs + i];
    matrix.multiply(isa, tile.data(), stride, rows, y.data(), y_stride, 0, outputs);
    const std::string where = std::string("floats__") + isa.isa + " rows " + std::to_string(rows) + " inputs " + std::to_string(inputs) + " outputs " + std::to_string(outputs);
    for (size_t row = 0; row < rows; ++row) {
      for (size_t output = 0; output < outputs; ++output) {
        double sum = 0, bound = 0;
        for (size_t i = 0; i < inputs; ++i) {
          const double term = double(x[row * inputs + i]) * weights[i * outputs + output];
          sum += term, bound += std::fabs(term);
        }
        expect(std::fabs(y[row * y_stride + output] - sum) <= gamma(double(inputs) + 2) * bound, "differs from float64", where);
      }
      for (size_t beyond = width; beyond < y_stride; ++beyond)
        expect(y[row * y_stride + beyond] == before[row * y_stride + beyond], "wrote beyond its panels", where);
    }
  }
  std::printf("floats__%s: %zu cases\n", isa.isa, cases);
}

void check_quantized_kernel(const Kernels& isa, size_t cases) {
  Random random(7);
  for (size_t k = 0; k < cases; ++k) {
    const size_t rows = shape_near(8, random), inputs = shape_near(16, random) * random.of<size_t>({1, 7}), outputs = shape_near(16, random) * random.of<size_t>({1, 3});
    const auto weights = random.codes(inputs * outputs);
    auto scale = random.numbers(outputs), x_scale = random.numbers(rows);
    const QuantizedMatrix matrix(tensor("a", Type::s8, {int64_t(inputs), int64_t(outputs)}, weights), tensor("a_scale", Type::f32, {int64_t(outputs)}, scale));
    std::vector<uint8_t> codes(rows * matrix.row_bytes());
    for (auto& each : codes) each = static_cast<uint8_t>(random.bits());  // the padding too: it must not count
    std::vector<int32_t> zero(rows);
    for (auto& each : zero) each = static_cast<int32_t>(random.below(256));
    const size_t stride = (outputs + 15) / 16 * 16;
    std::vector<float> y(rows * stride);
    matrix.multiply(isa, codes.data(), x_scale.data(), zero.data(), rows, y.data(), stride, 0, outputs);
    const std::string where = std::string("quantized__") + isa.isa + " case " + std::to_string(k);
    for (size_t row = 0; row < rows; ++row)
      for (size_t output = 0; output < outputs; ++output) {
        int64_t sum = 0;
        for (size_t i = 0; i < inputs; ++i) sum += int64_t(codes[row * matrix.row_bytes() + i] - zero[row]) * weights[i * outputs + output];
        const double exact = double(sum) * x_scale[row] * scale[output];
        expect(std::fabs(y[row * stride + output] - exact) <= gamma(3) * std::fabs(exact), "differs from the exact sum", where);
      }
  }
  std::printf("quantized__%s: %zu cases\n", isa.isa, cases);
}

void check_quantize(const Kernels& isa, size_t cases) {
  Random random(11);
  for (size_t k = 0; k < cases; ++k) {
    const size_t columns = shape_near(16, random) * random.of<size_t>({1, 5});
    auto x = random.numbers(columns);
    const float shift = random.of({0.f, 1.f, -1.f, 3.f}), spread = random.of({0.f, 1e-6f, 1.f, 1e6f});
    for (float& each : x) each = (each + 2 * shift) * spread;
    std::vector<uint8_t> codes(columns);
    float scale = 0;
    int32_t zero = 0;
    isa.quantize(x.data(), columns, codes.data(), &scale, &zero);
    const float low = std::min(0.f, *std::min_element(x.begin(), x.end())), high = std::max(0.f, *std::max_element(x.begin(), x.end()));
    const std::string where = std::string("quantize__") + isa.isa + " case " + std::to_string(k);
    expect(high == low || std::fabs(scale - (double(high) - low) / 255) <= 4 * kUnit * scale, "scale is not a 255th of the range", where);
    for (size_t i = 0; i < columns; ++i)
      expect(std::fabs((int(codes[i]) - zero) * double(scale) - x[i]) <= (0.5 + 255 * 4 * kUnit) * scale, "off by more than half a step", where);
    x[random.below(columns)] = random.of({NAN, INFINITY, -INFINITY});
    isa.quantize(x.data(), columns, codes.data(), &scale, &zero);
    expect(std::isnan(scale), "a row with NaN or infinity looks sound", where);
  }
  std::printf("quantize__%s: %zu cases\n", isa.isa, cases);
}

void check_transpose(const Kernels& isa, size_t cases) {
  Random random(13);
  for (size_t k = 0; k < cases; ++k) {
    const size_t rows = shape_near(16, random), columns = shape_near(16, random), quantum = isa.row_quantum[0];
    const size_t stride = (rows + quantum - 1) / quantum * quantum, x_stride = columns + random.below(3);
    const auto x = random.numbers(rows * x_stride);
    std::vector<float> tile(columns * stride, -1);
    isa.transpose(x.data(), x_stride, rows, columns, tile.data(), stride);
    for (size_t column = 0; column < columns; ++column)
      for (size_t row = 0; row < stride; ++row)
        expect(tile[column * stride + row] == (row < rows ? x[row * x_stride + column] : 0), "misplaced", std::string("transpose__") + isa.isa);
  }
  std::printf("transpose__%s: %zu cases\n", isa.isa, cases);
}

}  // namespace

void check_that_errors_are_seen() {
  Random random(23);
  BlockCase one = BlockCase::make(scalar(), Value::f32, 16, random);
  while (one.values.numbers.empty()) one = BlockCase::make(scalar(), Value::f32, 16, random);
  const std::vector<float> right = one.run(scalar(), Value::f32, Index::u16);
  for (float damage : {1e-3f, NAN}) {
    const size_t width = one.panels * one.group;
    size_t seen = 0;
    for (size_t output = 0; output < width; ++output) {
      double sum, bound;
      one.exact(0, output, sum, bound);
      const double wrong = right[output] + damage * (1 + std::fabs(right[output]));
      seen += !(std::fabs(wrong - sum) <= bound);
    }
    expect(seen == width, "a wrong result passes", "the check itself");
  }
}

void check_kernels(const Kernels& isa, size_t cases) {
#define SATEN_CHECK(value, V, G, index, I) \
  check_block_kernel(isa, #value "-blocks-" #G "-" #index, Value::value, G, Index::index, cases);
  SATEN_BLOCK_KERNELS(SATEN_CHECK)
  check_float_kernel(isa, cases);
  check_quantized_kernel(isa, cases);
  check_quantize(isa, cases);
  check_transpose(isa, cases);
}

}  // namespace saten::testing
