#include "families.h"

#include <string>

#include "cases.h"

namespace saten::testing {
namespace {

struct Residual {
  size_t inputs, outputs, size;
  std::vector<int32_t> indices, starts;
  Values values;
  std::vector<float> scale;
  std::vector<double> dense;  // (inputs, outputs)
  NOfM pattern{};             // of `coded`: whose codes these are, and the outputs of its lines
  std::vector<uint8_t> codes{};
  std::vector<int32_t> lines{};

  static Residual grouped(Value value, size_t inputs, size_t groups, size_t size, double density, Random& random) {
    const size_t kept = std::min(inputs, static_cast<size_t>(std::ceil(density * double(inputs))));
    Residual made{inputs, groups * size, size, {}, {}, Values(value, groups * size * kept, random), random.numbers(groups * size), std::vector<double>(inputs * groups * size)};
    for (size_t group = 0; group < groups; ++group) {
      auto chosen = random.ascending(inputs, 1);
      std::shuffle(chosen.begin(), chosen.end(), random.bits);
      std::sort(chosen.begin(), chosen.begin() + static_cast<long>(kept));
      for (size_t k = 0; k < kept; ++k) {
        made.indices.push_back(static_cast<int32_t>(chosen[k]));
        for (size_t o = 0; o < size; ++o) {
          const size_t output = group * size + o;
          made.dense[chosen[k] * made.outputs + output] = made.values.numbers[output * kept + k] * double(value == Value::s8 ? made.scale[output] : 1);
        }
      }
    }
    return made;
  }

  static Residual rows(Value value, size_t inputs, size_t outputs, double density, Random& random) {
    std::vector<int32_t> indices, starts{0};
    for (size_t output = 0; output < outputs; ++output) {
      for (uint32_t index : random.ascending(inputs, random.below(5) ? density : 0)) indices.push_back(static_cast<int32_t>(index));
      starts.push_back(static_cast<int32_t>(indices.size()));
    }
    Residual made{inputs, outputs, 1, indices, starts, Values(value, indices.size(), random), random.numbers(outputs), std::vector<double>(inputs * outputs)};
    for (size_t output = 0; output < outputs; ++output)
      for (int32_t k = starts[output]; k < starts[output + 1]; ++k)
        made.dense[size_t(indices[size_t(k)]) * outputs + output] = made.values.numbers[size_t(k)] * double(value == Value::s8 ? made.scale[output] : 1);
    return made;
  }

  static Residual coded(Value value, size_t inputs, size_t outputs, Random& random) {
    const size_t m = random.of<size_t>({1, 2, 4, 5, 8, 16, 256}), n = 1 + random.below(std::min<size_t>(m, 3));
    const NOfM pattern{inputs, outputs, n, m};
    const size_t bits = static_cast<size_t>(std::ceil(std::log2(double(m))));
    std::vector<int32_t> lines, indices;
    std::vector<bool> stream;
    for (size_t output = 0; output < outputs; ++output) {
      if (random.below(4) == 0) continue;
      lines.push_back(static_cast<int32_t>(output));
      for (size_t start = 0; start < inputs; start += m) {
        auto places = random.ascending(std::min(m, inputs - start), 1);
        std::shuffle(places.begin(), places.end(), random.bits);
        places.resize(std::min(n, places.size()));
        std::sort(places.begin(), places.end());
        for (uint32_t place : places) {
          indices.push_back(static_cast<int32_t>(start + place));
          for (size_t bit = 0; bit < bits; ++bit) stream.push_back(place >> bit & 1);
        }
      }
    }
    std::vector<uint8_t> codes((stream.size() + 7) / 8);
    for (size_t bit = 0; bit < stream.size(); ++bit) codes[bit / 8] |= static_cast<uint8_t>(stream[bit] << bit % 8);
    Residual made{inputs, outputs, 1, indices, {}, Values(value, indices.size(), random), random.numbers(lines.size()), std::vector<double>(inputs * outputs), pattern, codes, lines};
    for (size_t k = 0; k < indices.size(); ++k) {
      const size_t line = k / (indices.size() / lines.size());
      made.dense[size_t(indices[k]) * outputs + size_t(lines[line])] = made.values.numbers[k] * double(value == Value::s8 ? made.scale[line] : 1);
    }
    return made;
  }

  BlockMatrix pack_codes(const Kernels& isa) const {
    const int64_t count = int64_t(lines.size());
    Tensor stored = tensor("stored", values.type, {count, count ? int64_t(indices.size()) / count : int64_t(pattern.per_output())}, indices);
    stored.data = values.data();
    const Tensor of = tensor("scale", Type::f32, {count}, scale);
    return BlockMatrix::from_codes(isa, pattern, tensor("outputs", Type::s32, {count}, lines), tensor("codes", Type::u8, {int64_t(codes.size())}, codes), stored,
                                   values.type == Type::s8 ? &of : nullptr);
  }

  BlockMatrix pack(const Kernels& isa) const {
    if (pattern.m) return pack_codes(isa);
    const Tensor at = tensor("indices", Type::s32, {int64_t(indices.size())}, indices), of = tensor("scale", Type::f32, {int64_t(outputs)}, scale);
    Tensor stored = tensor("values", values.type, {int64_t(values.numbers.size())}, indices);
    stored.data = values.data();
    const Tensor* scaled = values.type == Type::s8 ? &of : nullptr;
    if (!starts.empty()) return BlockMatrix::from_rows(isa, tensor("indptr", Type::s32, {int64_t(starts.size())}, starts), at, stored, scaled, inputs, outputs);
    const int64_t groups = int64_t(outputs / size), kept = int64_t(values.numbers.size() / outputs);
    Tensor table = at;
    table.shape = {groups, kept};
    stored.shape = {groups, int64_t(size), kept};
    return BlockMatrix::from_groups(isa, table, stored, scaled);
  }
};

std::vector<double> product(const std::vector<double>& x, const std::vector<double>& m, size_t rows, size_t inner, size_t outputs) {
  std::vector<double> y(rows * outputs);
  for (size_t row = 0; row < rows; ++row)
    for (size_t k = 0; k < inner; ++k)
      for (size_t o = 0; o < outputs; ++o) y[row * outputs + o] += x[row * inner + k] * m[k * outputs + o];
  return y;
}

std::vector<double> sizes_of(std::vector<double> m) {
  for (double& each : m) each = std::fabs(each);
  return m;
}

// None, a bias, or a bias and GELU, with equal odds.
Epilogue some_epilogue(size_t outputs, Random& random) {
  const size_t kind = random.below(3);
  return kind == 0 ? Epilogue{} : Epilogue{random.numbers(outputs), kind == 1 ? Activation::none : Activation::gelu};
}

// What an epilogue makes of a sum and of what rounding may have added to it. gelu' is at most 1.13; its own error is
// less than 8 units of x: what erf is fitted to, and what its two polynomials round.
void finish_exactly(const Epilogue& epilogue, size_t output, double& sum, double& bound) {
  if (epilogue.bias.empty()) return;
  sum += epilogue.bias[output];
  bound += kUnit * (std::fabs(sum) + bound);
  if (epilogue.activation != Activation::gelu) return;
  bound = 1.13 * bound + 8 * kUnit * (std::fabs(sum) + bound);
  sum *= (1 + std::erf(sum / std::sqrt(2.))) / 2;
}

void check_linear(const Kernels& isa, Value value, size_t size, size_t cases, bool coded = false) {
  Random random(static_cast<unsigned>(size * 10 + size_t(value)));
  for (size_t k = 0; k < cases; ++k) {
    const size_t inputs = random.of<size_t>({1, 7, 64, 67, 129, k % 50 ? size_t{31} : size_t{1100}}), rows = random.of<size_t>({1, 2, 5, 8, 16, 33, 131});
    const double density = random.of({0., .02, .1, .5, 1.});
    const size_t groups = std::max<size_t>(1, random.of<size_t>({1, 3, 40, 210}) / size);
    const Residual residual = coded ? Residual::coded(value, inputs, groups, random) : size == 1 ? Residual::rows(value, inputs, groups, density, random) : Residual::grouped(value, inputs, groups, size, density, random);
    const size_t outputs = residual.outputs, rank = random.of<size_t>({0, 1, 5, 16, 17});
    const bool with_train = random.below(2) == 0, exact_inputs = with_train || size == 1;
    const auto x = random.numbers(rows * inputs), a = random.numbers(inputs * rank), b = random.numbers(rank * outputs);
    const Tensor at = tensor("a", Type::f32, {int64_t(inputs), int64_t(rank)}, a), bt = tensor("b", Type::f32, {int64_t(rank), int64_t(outputs)}, b);
    std::optional<LowRank> train;
    if (with_train) train.emplace(LowRank{Factor(at), Factor(bt)});
    const Epilogue epilogue = some_epilogue(outputs, random);
    const Linear layer(std::move(train), residual.pack(isa), epilogue);
    if (exact_inputs) layer.expect_inputs(inputs);
    std::vector<float> y(rows * outputs, NAN);
    Room room;
    layer.run(isa, x.data(), rows, inputs, y.data(), room.scratch(), on_threads(random.of<size_t>({1, 2, 4})));
    const std::vector<double> wide(x.begin(), x.end()), wide_a(a.begin(), a.end()), wide_b(b.begin(), b.end());
    auto sum = product(wide, residual.dense, rows, inputs, outputs), bound = product(sizes_of(wide), sizes_of(residual.dense), rows, inputs, outputs);
    if (with_train) {
      const auto low = product(product(wide, wide_a, rows, inputs, rank), wide_b, rows, rank, outputs);
      const auto most = product(product(sizes_of(wide), sizes_of(wide_a), rows, inputs, rank), sizes_of(wide_b), rows, rank, outputs);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += low[i], bound[i] += most[i];
    }
    const std::string where = std::string("linear__") + isa.isa + " size " + std::to_string(size) + " rows " + std::to_string(rows) + " inputs " + std::to_string(inputs) + " outputs " + std::to_string(outputs);
    for (size_t i = 0; i < sum.size(); ++i) {
      double moved = gamma(double(inputs + 2 * rank + 8)) * bound[i];
      finish_exactly(epilogue, i % outputs, sum[i], moved);
      expect(std::fabs(y[i] - sum[i]) <= moved, "differs from float64", where);
    }
  }
  std::printf("linear__%s values %d size %zu%s: %zu cases\n", isa.isa, int(value), size, coded ? " coded" : "", cases);
}

void check_quantized_linear(const Kernels& isa, size_t cases) {
  Random random(17);
  for (size_t k = 0; k < cases; ++k) {
    const size_t inputs = shape_near(16, random) * random.of<size_t>({0, 3, 3, 3}), rank = random.of<size_t>({0, 1, 7, 16, 33}), outputs = random.of<size_t>({1, 16, 50, 210}), rows = random.of<size_t>({1, 2, 9, 40});
    const auto x = random.numbers(rows * inputs), a_scale = random.numbers(rank), b_scale = random.numbers(outputs);
    const auto a = random.codes(inputs * rank), b = random.codes(rank * outputs);
    const Epilogue epilogue = some_epilogue(outputs, random);
    const Linear layer(LowRank{Factor(tensor("a", Type::s8, {int64_t(inputs), int64_t(rank)}, a), tensor("a_scale", Type::f32, {int64_t(rank)}, a_scale)),
                               Factor(tensor("b", Type::s8, {int64_t(rank), int64_t(outputs)}, b), tensor("b_scale", Type::f32, {int64_t(outputs)}, b_scale))}, {}, epilogue);
    std::vector<float> y(rows * outputs, NAN);
    Room room;
    layer.run(isa, x.data(), rows, inputs, y.data(), room.scratch(), on_threads(random.of<size_t>({1, 2, 4})));
    for (size_t row = 0; row < rows; ++row) {
      // x moves by half a step of its row's range, x A by what that and its own half step add up to.
      const auto step = [](const std::vector<double>& v, double moved) {
        double low = 0, high = 0;
        for (double each : v) low = std::min(low, each - moved), high = std::max(high, each + moved);
        return (0.5 + 255 * 4 * kUnit) * (high - low) / 255;
      };
      std::vector<double> of_row(x.begin() + long(row * inputs), x.begin() + long((row + 1) * inputs)), inner(rank), moved(rank);
      const double x_moved = step(of_row, 0);
      for (size_t r = 0; r < rank; ++r)
        for (size_t i = 0; i < inputs; ++i) {
          const double weight = double(a[i * rank + r]) * a_scale[r];
          inner[r] += of_row[i] * weight;
          moved[r] += (x_moved + gamma(4) * (std::fabs(of_row[i]) + x_moved)) * std::fabs(weight);
        }
      const double inner_step = step(inner, rank ? *std::max_element(moved.begin(), moved.end()) : 0);
      for (size_t o = 0; o < outputs; ++o) {
        double sum = 0, bound = 0;
        for (size_t r = 0; r < rank; ++r) {
          const double weight = double(b[r * outputs + o]) * b_scale[o];
          sum += inner[r] * weight;
          bound += (moved[r] + inner_step + gamma(4) * (std::fabs(inner[r]) + moved[r] + inner_step)) * std::fabs(weight);
        }
        finish_exactly(epilogue, o, sum, bound);
        expect(std::fabs(y[row * outputs + o] - sum) <= bound, "differs by more than its steps", std::string("quantized linear__") + isa.isa);
      }
    }
  }
  std::printf("quantized linear__%s: %zu cases\n", isa.isa, cases);
}

void check_embedding(const Kernels& isa, size_t cases) {
  Random random(19);
  for (size_t k = 0; k < cases; ++k) {
    const size_t rows = shape_near(16, random), width = random.of<size_t>({1, 16, 33, 140}), rank = random.of<size_t>({1, 6, 16}), kept = std::min<size_t>(width, random.of<size_t>({0, 1, 5})), stored = 1 + random.below(rows), count = random.of<size_t>({0, 1, 3, 40});
    const auto a = random.numbers(rows * rank), b = random.numbers(rank * width), whole = random.numbers(stored * width), entries = random.numbers(rows * kept);
    std::vector<int32_t> slots, columns;
    for (size_t row = 0; row < rows; ++row) {
      slots.push_back(static_cast<int32_t>(random.below(stored)));
      auto chosen = random.ascending(width, 1);
      std::shuffle(chosen.begin(), chosen.end(), random.bits);
      std::sort(chosen.begin(), chosen.begin() + long(kept));
      columns.insert(columns.end(), chosen.begin(), chosen.begin() + long(kept));
    }
    std::vector<int64_t> ids(count);
    for (auto& each : ids) each = int64_t(random.below(2 * rows)) - int64_t(rows);
    const bool with_train = random.below(2), with_rows = random.below(2), with_entries = !with_rows;
    std::optional<Factor> factor;
    if (with_train) factor.emplace(tensor("b", Type::f32, {int64_t(rank), int64_t(width)}, b));
    std::optional<Tensor> slot_table, column_table;
    if (with_rows) slot_table = tensor("slots", Type::s32, {int64_t(rows)}, slots);
    if (with_entries) column_table = tensor("columns", Type::s32, {int64_t(rows), int64_t(kept)}, columns);
    const Embedding layer(rows, width, std::move(factor), slot_table, stored, column_table);
    Table table;
    table.a.floats = a.data(), table.rows.floats = whole.data(), table.entries.floats = entries.data();
    std::vector<float> y(count * width, NAN);
    Room room;
    layer.run(isa, table, ids.data(), count, y.data(), room.scratch(), on_threads(2));
    for (size_t i = 0; i < count; ++i) {
      const size_t id = size_t(ids[i] < 0 ? ids[i] + int64_t(rows) : ids[i]);
      for (size_t o = 0; o < width; ++o) {
        double sum = 0, bound = 0;
        for (size_t r = 0; with_train && r < rank; ++r) {
          sum += double(a[id * rank + r]) * b[r * width + o];
          bound += std::fabs(double(a[id * rank + r]) * b[r * width + o]);
        }
        double rest = with_rows ? whole[size_t(slots[id]) * width + o] : 0;
        for (size_t e = 0; with_entries && e < kept; ++e)
          if (size_t(columns[id * kept + e]) == o) rest = entries[id * kept + e];
        expect(std::fabs(y[i * width + o] - sum - rest) <= gamma(double(rank) + 1) * (bound + std::fabs(rest)), "differs from float64", std::string("embedding__") + isa.isa);
      }
    }
    const int64_t outside[] = {int64_t(rows), -int64_t(rows) - 1};
    for (int64_t id : outside) {
      bool refused = false;
      try {
        layer.run(isa, table, &id, 1, y.data(), room.scratch(), on_threads(1));
      } catch (const Refusal&) {
        refused = true;
      }
      expect(refused, "took an id outside the table", "embedding");
    }
  }
  std::printf("embedding__%s: %zu cases\n", isa.isa, cases);
}

}  // namespace

void check_layers(const Kernels& isa, size_t cases) {
  for (Value value : {Value::f32, Value::f16, Value::s8}) {
    for (size_t size : {1, 2, 4, 8, 12, 16, 32, 53, 64}) check_linear(isa, value, size, cases / 10 + 1);
    check_linear(isa, value, 1, cases / 10 + 1, true);
  }
  check_quantized_linear(isa, cases);
  check_embedding(isa, cases / 10 + 1);
}

}  // namespace saten::testing
