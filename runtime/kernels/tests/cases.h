// Random layers, and what they compute by loops in float64: nothing of the library's but its types.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "layers.h"

namespace saten::testing {

constexpr double kUnit = 0x1p-24;  // half an ulp of 1 in float

// Higham, "Accuracy and Stability of Numerical Algorithms", §3.1.
inline double gamma(double k) { return k * kUnit / (1 - k * kUnit); }

struct Random {
  std::mt19937 bits;
  explicit Random(unsigned seed) : bits(seed) {}
  size_t below(size_t end) { return end ? bits() % end : 0; }
  float number() { return static_cast<float>(static_cast<int32_t>(bits())) * 0x1p-30f; }  // in [-2, 2)
  template <class T>
  T of(std::initializer_list<T> choices) {
    return choices.begin()[below(choices.size())];
  }
  std::vector<float> numbers(size_t count) {
    std::vector<float> made(count);
    for (float& each : made) each = number();
    return made;
  }
  std::vector<int8_t> codes(size_t count) {
    std::vector<int8_t> made(count);
    for (int8_t& each : made) each = static_cast<int8_t>(bits());
    return made;
  }
  std::vector<uint32_t> ascending(size_t inputs, double density) {
    std::vector<uint32_t> made;
    for (size_t k = 0; k < inputs; ++k)
      if (density >= 1 || bits() < density * 0x1p32) made.push_back(static_cast<uint32_t>(k));
    return made;
  }
};

// A size at, or one beside, a tile's border.
inline size_t shape_near(size_t tile, Random& random) {
  return std::max<size_t>(1, random.of<size_t>({1, 2, 3, tile - 1, tile, tile + 1, 2 * tile, 2 * tile + 1, 37}));
}

// binary16 of a number that needs no rounding there: a multiple of 1/256 below 4.
inline Half half_of(float value) {
  const uint16_t sign = value < 0 ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size == 0) return {sign};
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // in [1/2, 1)
  const auto digits = static_cast<uint16_t>(fraction * 2048) & 0x3ff;
  return {static_cast<uint16_t>(sign | ((exponent + 14) << 10) | digits)};
}

// Values of a kernel's type, and the numbers they stand for.
struct Values {
  std::vector<float> numbers;
  std::vector<Half> halves;
  std::vector<int8_t> codes;
  Type type;

  Values(Value value, size_t count, Random& random)
      : type(value == Value::f32 ? Type::f32 : value == Value::f16 ? Type::f16 : Type::s8) {
    for (size_t k = 0; k < count; ++k) {
      const int code = static_cast<int8_t>(random.bits());
      numbers.push_back(type == Type::f32 ? random.number() : type == Type::f16 ? code / 256.f : code);
      if (type == Type::f16) halves.push_back(half_of(numbers.back()));
      if (type == Type::s8) codes.push_back(static_cast<int8_t>(code));
    }
  }
  const void* data() const {
    if (type == Type::f16) return halves.data();
    if (type == Type::s8) return codes.data();
    return numbers.data();
  }
};

template <class T>
Tensor tensor(const char* name, Type type, std::vector<int64_t> shape, const std::vector<T>& data) {
  Tensor made;
  made.name = name;
  made.type = type;
  made.shape = std::move(shape);
  made.data = data.data();
  return made;
}

// Runs tasks on `threads` threads of its own.
inline ParallelFor on_threads(size_t threads) {
  return [threads](size_t count, const std::function<void(size_t)>& task) {
    std::vector<std::thread> others;
    for (size_t t = 1; t < threads; ++t)
      others.emplace_back([&, t] {
        for (size_t k = t; k < count; k += threads) task(k);
      });
    for (size_t k = 0; k < count; k += threads) task(k);
    for (std::thread& each : others) each.join();
  };
}

// Memory of exactly the size asked for, so that a sanitizer sees a step beyond.
struct Room {
  std::vector<std::unique_ptr<void, void (*)(void*)>> taken;
  Scratch scratch() {
    return [this](size_t bytes) {
      taken.emplace_back(std::aligned_alloc(64, std::max<size_t>(64, (bytes + 63) / 64 * 64)), std::free);
      return taken.back().get();
    };
  }
};

inline size_t failures = 0;

inline void expect(bool holds, const char* what, const std::string& where) {
  if (holds) return;
  if (++failures <= 20) std::fprintf(stderr, "FAILED %s: %s\n", where.c_str(), what);
}

}  // namespace saten::testing
