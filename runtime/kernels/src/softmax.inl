// The weights of an attention, written once over `Simd`: a lane is a query, so no sum goes across lanes.
#pragma once

#include <type_traits>

#include "simd.inl"

namespace saten {
namespace {

// e^x of x ≤ 0, at least e^-87, within 12 half-ulps; NaN stays NaN. As 2ⁿ e^r, |r| ≤ ln 2 / 2, whose polynomial is fitted
// by repeated weighted least squares to the largest relative error, 1.8 half-ulps.
template <class S>
typename S::F exponential(typename S::F x) {
  using F = typename S::F;
  static constexpr float kLeast = -87, kLog2E = 1.44269504f, kMinusLn2 = -0.693147181f;
  static constexpr float kWhole = 12582912, kMinusWhole = -kWhole;  // 1.5 · 2²³: added, it rounds to a whole number
  static constexpr float kP[] = {1, 1, 0.499992311f, 0.166671142f, 0.0418901555f, 0.00831252057f};
  const auto each = [](const float& v) { return S::template spread<S::width>(&v); };
  x = S::at_least(x, each(kLeast));
  const F n = S::add(S::fma(x, each(kLog2E), each(kWhole)), each(kMinusWhole));
  const F r = S::fma(n, each(kMinusLn2), x);
  F p = each(kP[5]);
  SATEN_UNROLL for (int k = 4; k >= 0; --k) p = S::fma(p, r, each(kP[k]));
  return S::times_power(p, n);
}

// What is added to scores: nothing, one number for all queries, or one for each.
enum class Mask { none, of_all, of_each };

// P: makes pairs of the weights of two keys, or is S and leaves them.
template <class S, class P, Mask kMask>
void softmax_column(const SoftmaxCall& call, size_t column) {
  using F = typename S::F;
  float* const scores = call.scores + column;
  const float* const mask = call.mask + (kMask == Mask::of_each ? column : 0);
  const F scale = S::template spread<S::width>(&call.scale);
  const auto masked = [&](size_t k) __attribute__((always_inline)) {
    const F score = S::load(scores + k * call.stride);
    if constexpr (kMask == Mask::none) return S::mul(score, scale);
    if constexpr (kMask == Mask::of_all) return S::fma(score, scale, S::template spread<S::width>(mask + k * call.mask_stride));
    if constexpr (kMask == Mask::of_each) return S::fma(score, scale, S::load(mask + k * call.mask_stride));
  };
  F most = masked(0);
  for (size_t k = 1; k < call.keys; ++k) most = S::larger(most, masked(k));
  static constexpr float kMinusOne = -1;
  const F minus_most = S::mul(most, S::template spread<S::width>(&kMinusOne));
  F sum = S::zero();
  const auto weight = [&](size_t k) __attribute__((always_inline)) {
    const F made = exponential<S>(S::add(masked(k), minus_most));
    sum = S::add(sum, made);
    return made;
  };
  if constexpr (std::is_same_v<S, P>) {
    for (size_t k = 0; k < call.keys; ++k) S::store(scores + k * call.stride, weight(k));
  } else {
    for (size_t k = 0; k < call.keys; k += 2) {
      const F even = weight(k), odd = k + 1 < call.keys ? weight(k + 1) : S::zero();
      S::store(scores + k / 2 * call.stride, P::pairs(even, odd));
    }
  }
  S::store(call.sums + column, sum);
}

template <class S, class P = S>
void softmax(const SoftmaxCall& call) {
  const auto column = !call.mask          ? softmax_column<S, P, Mask::none>
                      : call.mask_of_each ? softmax_column<S, P, Mask::of_each>
                                          : softmax_column<S, P, Mask::of_all>;
  for (size_t k = 0; k < call.columns; k += S::width) column(call, k);
}

}  // namespace
}  // namespace saten
