#include "families.h"

#include <cfloat>

#include "cases.h"

namespace saten::testing {
namespace {

constexpr double kLowest = -FLT_MAX;
constexpr double kUnitBf16 = 0x1p-9;  // half an ulp of 1 in bfloat16

struct AttentionCase {
  size_t batch, heads, queries, keys, size, value_size;
  bool narrow;
  float scale;
  std::vector<int64_t> mask_shape;
  std::vector<float> q, k, v, mask;

  static AttentionCase make(size_t number, Random& random) {
    AttentionCase made{};
    made.batch = random.of<size_t>({1, 1, 2, 3}), made.heads = random.of<size_t>({1, 2, 3});
    made.keys = random.of<size_t>({1, 2, 7, 15, 16, 17, 33, 65, number % 20 ? size_t{49} : size_t{397}});
    made.queries = random.below(4) ? made.keys : random.of<size_t>({1, 5, 16, 50});
    made.size = random.of<size_t>({16, 32, 64, 80, 1, 7, 20});
    made.value_size = random.below(4) ? made.size : random.of<size_t>({1, 16, 33});
    made.narrow = random.below(2);
    made.scale = random.of({1.f, .5f, 1 / std::sqrt(float(made.size))});
    made.q = random.numbers(made.batch * made.queries * made.heads * made.size);
    made.k = random.numbers(made.batch * made.keys * made.heads * made.size);
    made.v = random.numbers(made.batch * made.keys * made.heads * made.value_size);
    made.add_mask(random);
    return made;
  }

  // None, padding, or any numbers, spread along some axes; sometimes some queries see nothing at all.
  void add_mask(Random& random) {
    const size_t kind = random.below(4);
    if (kind == 0) return;
    const int64_t b = int64_t(batch), h = int64_t(heads), t = int64_t(queries), s = int64_t(keys);
    mask_shape = random.of<std::vector<int64_t>>({{b, 1, 1, s}, {b, 1, t, s}, {1, h, t, s}, {b, h, t, s}, {t, s}, {s}, {b, 1, t, 1}, {}});
    size_t count = 1;
    for (int64_t axis : mask_shape) count *= size_t(axis);
    mask = random.numbers(count);
    const double hidden = random.of({.3, .9, 1.});
    for (float& each : mask)
      if (kind > 1) each = random.bits() < hidden * 0x1p32 ? float(kLowest) : 0;
  }

  // The number added for one text, head, query and key.
  float added(const size_t (&at)[4]) const {
    size_t index = 0;
    for (size_t axis = 0; axis < mask_shape.size(); ++axis) {
      const size_t length = size_t(mask_shape[axis]);
      index = index * length + (length == 1 ? 0 : at[4 - mask_shape.size() + axis]);
    }
    return mask[index];
  }

  std::vector<float> run(const Kernels& isa, size_t threads) const {
    const auto of = [&](const char* name, size_t tokens, size_t width, const std::vector<float>& data) {
      return tensor(name, Type::f32, {int64_t(batch), int64_t(tokens), int64_t(heads * width)}, data);
    };
    const Attention attention(int64_t(heads), scale, narrow);
    const Tensor masks = tensor("mask", Type::f32, mask_shape, mask);
    const Attended given(attention, of("queries", queries, size, q), of("keys", keys, size, k),
                         of("values", keys, value_size, v), mask.empty() ? nullptr : &masks);
    std::vector<float> y(batch * queries * heads * value_size, NAN);
    Room room;
    attention.run(isa, given, y.data(), room.scratch(), on_threads(threads));
    return y;
  }

  // One query of one head: the exact results and what rounding may add. A score is off by δ, an exponential by 12 units
  // and what its argument is off by: δ and the rounding of the difference. The floor of weights, e^-87, adds 2^-125 of
  // each value.
  // rounded: what each factor of a product is off by, relatively.
  void exact(size_t text, size_t head, size_t query, double rounded, std::vector<double>& sums, std::vector<double>& bounds) const {
    std::vector<double> scores(keys), moved(keys);
    const float* const row = &q[((text * queries + query) * heads + head) * size];
    double most = -INFINITY;
    for (size_t key = 0; key < keys; ++key) {
      const float* const other = &k[((text * keys + key) * heads + head) * size];
      for (size_t i = 0; i < size; ++i) {
        scores[key] += double(row[i]) * other[i] * scale;
        moved[key] += std::fabs(double(row[i]) * other[i] * scale) * (gamma(double(size) + 2) + 2.01 * rounded);
      }
      const double add = mask.empty() ? 0 : double(added({text, head, query, key}));
      if (add == kLowest) moved[key] = scores[key] = 0;  // no score moves the lowest number of all
      scores[key] += add;
      moved[key] += add == kLowest ? 0 : kUnit * std::fabs(scores[key]);
      most = std::max(most, scores[key]);
    }
    double total = 0, off = 0;
    for (size_t key = 0; key < keys; ++key) {
      const double distance = most - scores[key];
      scores[key] = std::exp(-distance);
      moved[key] = scores[key] == 0 ? 0 : std::expm1(moved[key] + (distance + 12) * kUnit);
      total += scores[key], off += scores[key] * moved[key];
    }
    off = (off / total + gamma(2 * double(keys) + 8)) * 2;
    sums.assign(value_size, 0), bounds.assign(value_size, 0);
    for (size_t key = 0; key < keys; ++key)
      for (size_t i = 0; i < value_size; ++i) {
        const double value = v[((text * keys + key) * heads + head) * value_size + i];
        sums[i] += scores[key] / total * value;
        bounds[i] += (scores[key] / total * (2 * moved[key] + off + 2.01 * rounded) + 0x1p-125) * std::fabs(value);
      }
  }
};

// Also that a neighbour's result would be seen.
void check_case(const AttentionCase& one, const std::vector<float>& y, double rounded, const std::string& where, size_t& seen) {
  std::vector<double> sums, bounds;
  size_t at = 0;
  for (size_t text = 0; text < one.batch; ++text)
    for (size_t query = 0; query < one.queries; ++query)
      for (size_t head = 0; head < one.heads; ++head) {
        one.exact(text, head, query, rounded, sums, bounds);
        for (size_t i = 0; i < one.value_size; ++i, ++at) {
          expect(std::fabs(y[at] - sums[i]) <= bounds[i], "differs from float64", where);
          seen += !(std::fabs(y[(at + 1) % y.size()] - sums[i]) <= bounds[i]);
        }
      }
}

// NaN in a query stays in its row, and an infinite score does not become a weight.
void check_nan(const Kernels& isa, Random& random) {
  AttentionCase one = AttentionCase::make(1, random);
  one.q[0] = random.of({NAN, INFINITY});
  const std::vector<float> y = one.run(isa, 1);
  const std::string where = std::string("attention__") + isa.isa;
  const bool hidden = !one.mask.empty();  // an infinite score may lie behind a mask that is lower still
  for (size_t k = 0; k < one.value_size && !hidden; ++k) expect(std::isnan(y[k]), "hides NaN", where);
  for (size_t k = one.heads * one.value_size; k < y.size(); ++k) expect(std::isfinite(y[k]), "spreads NaN", where);
}

void check_refusals() {
  const std::vector<float> numbers(64);
  const auto refused = [&](int64_t heads, std::vector<int64_t> q, std::vector<int64_t> k, std::vector<int64_t> v, std::vector<int64_t> m) {
    try {
      const Attention attention(heads, 1);
      const Tensor mask = tensor("mask", Type::f32, m, numbers);
      Attended(attention, tensor("queries", Type::f32, q, numbers), tensor("keys", Type::f32, k, numbers), tensor("values", Type::f32, v, numbers), &mask);
      return false;
    } catch (const Refusal&) {
      return true;
    }
  };
  expect(!refused(2, {1, 3, 4}, {1, 5, 4}, {1, 5, 6}, {1, 1, 3, 5}), "refuses what fits", "attention");
  expect(refused(0, {1, 3, 4}, {1, 5, 4}, {1, 5, 6}, {1}), "takes no heads", "attention");
  expect(refused(3, {1, 3, 4}, {1, 5, 4}, {1, 5, 6}, {1}), "takes heads of different sizes", "attention");
  expect(refused(2, {1, 3, 4}, {1, 5, 6}, {1, 5, 6}, {1}), "takes keys of another size", "attention");
  expect(refused(2, {2, 3, 4}, {1, 5, 4}, {1, 5, 6}, {1}), "takes keys of another batch", "attention");
  expect(refused(2, {1, 3, 4}, {1, 5, 4}, {1, 4, 6}, {1}), "takes fewer values than keys", "attention");
  expect(refused(2, {3, 4}, {5, 4}, {5, 6}, {1}), "takes two axes", "attention");
  expect(refused(2, {1, 3, 4}, {1, 5, 4}, {1, 5, 6}, {1, 1, 5, 3}), "takes a turned mask", "attention");
  expect(refused(2, {1, 3, 4}, {1, 5, 4}, {1, 5, 6}, {1, 1, 1, 1, 1}), "takes a mask of five axes", "attention");
}

}  // namespace

void check_attention(const Kernels& isa, size_t cases) {
  Random random(29);
  size_t seen = 0;
  check_refusals();
  for (size_t k = 0; k < cases; ++k) {
    const AttentionCase one = AttentionCase::make(k, random);
    const size_t threads = random.of<size_t>({1, 2, 4});
    const std::string where = std::string("attention__") + isa.isa + " queries " + std::to_string(one.queries) + " keys " +
                              std::to_string(one.keys) + " size " + std::to_string(one.size) + " case " + std::to_string(k);
    check_case(one, one.run(isa, threads), one.narrow && isa.pairs ? kUnitBf16 : 0, where, seen);
    check_nan(isa, random);
  }
  expect(seen > 0, "a wrong result passes", "attention");
  std::printf("attention__%s: %zu cases\n", isa.isa, cases);
}

}  // namespace saten::testing
