// Products of pairs of bfloat16, for an instruction set that has them: the tiles, panels and loops of floats, each word
// of which holds two inputs. Written over `Simd` and `P`, the same vectors with products of pairs.
#pragma once

#include <cstring>

#include "dense.inl"
#include "softmax.inl"

namespace saten {
namespace {

template <class P>
void pair_neighbours(const float* x, size_t count, float* pairs) {
  constexpr size_t kStep = 2 * P::width;
  size_t k = 0;
  for (; k + kStep <= count; k += kStep) P::store(pairs + k / 2, P::neighbours(P::load(x + k), P::load(x + k + P::width)));
  if (k == count) return;
  float rest[kStep] = {}, made[P::width];
  std::memcpy(rest, x + k, (count - k) * sizeof(float));
  P::store(made, P::neighbours(P::load(rest), P::load(rest + P::width)));
  std::memcpy(pairs + k / 2, made, (count - k + 1) / 2 * sizeof(float));
}

template <class P>
void pair_rows(const float* even, const float* odd, float* pairs) {
  for (size_t k = 0; k < kPanel; k += P::width) P::store(pairs + k, P::pairs(P::load(even + k), P::load(odd + k)));
}

template <class S, class P>
constexpr Pairs make_pairs() {
  return {&dense<P>, &softmax<S, P>, &pair_neighbours<P>, &pair_rows<P>};
}

}  // namespace
}  // namespace saten
