// What is done to rows before and after the products, written once over `Simd`.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>

#include "simd.inl"

namespace saten {
namespace {

// x (rows, columns) → tile (columns, tile_stride), zeros in the rows beyond.
template <class S>
void transpose_tile(const float* x, size_t x_stride, size_t rows, size_t columns, float* tile, size_t tile_stride) {
  constexpr size_t W = S::kTurn;
  for (size_t row = 0; row < tile_stride; row += W) {
    size_t column = 0;
    if (row + W <= rows)
      for (; column + W <= columns; column += W)
        S::transpose(x + row * x_stride + column, x_stride, tile + column * tile_stride + row, tile_stride);
    for (; column < columns; ++column)
      for (size_t r = row; r < row + W; ++r) tile[column * tile_stride + r] = r < rows ? x[r * x_stride + column] : 0;
  }
}

// One row of x as x ≈ (code − zero) · scale; the range is widened to hold 0, as DynamicQuantizeLinear does.
template <class S>
void quantize_row(const float* x, size_t columns, uint8_t* codes, float* scale, int32_t* zero) {
  using F = typename S::F;
  constexpr size_t W = S::width;
  F lowest = S::zero(), highest = S::zero();
  size_t k = 0;
  for (; k + W <= columns; k += W) {
    lowest = S::smaller(lowest, S::load(x + k));
    highest = S::larger(highest, S::load(x + k));
  }
  float low = S::least(lowest), high = S::most(highest);
  for (; k < columns; ++k) {
    low = x[k] < low ? x[k] : low;
    high = x[k] > high ? x[k] : high;
  }
  const float range = high - low;
  const bool usable = range > 255 * FLT_MIN && range < INFINITY;  // else every code is 0
  *scale = usable ? range / 255 : 1;
  const float shift = usable ? __builtin_nearbyintf(-low / *scale) : 0;
  const float inverse = usable ? 1 / *scale : 0;
  *zero = static_cast<int32_t>(shift);
  bool sound = range < INFINITY;
  for (k = 0; k + W <= columns; k += W) sound &= S::codes(S::load(x + k), inverse, shift, codes + k);
  for (; k < columns; ++k) {
    const float code = __builtin_nearbyintf(x[k] * inverse + shift);
    codes[k] = static_cast<uint8_t>(code > 0 ? (code < 255 ? code : 255) : 0);
    sound &= x[k] == x[k];
  }
  if (!sound) *scale = NAN;  // NaN or infinity among the inputs: the outputs say so
}

// Writes one row of one panel: (sum − zero · weights) · scales. Unsigned, so that what cancels may wrap.
inline void write_panel(const QuantizedCall& call, size_t row, size_t panel, const int32_t* sums) {
  const size_t first = panel * kPanel;
  const uint32_t zero = static_cast<uint32_t>(call.x_zero[row]);
  float* y = call.y + row * call.y_stride + first - call.first * kPanel;
  for (size_t k = 0; k < kPanel; ++k) {
    const uint32_t exact = static_cast<uint32_t>(sums[k]) - zero * static_cast<uint32_t>(call.sums[first + k]);
    y[k] = static_cast<float>(static_cast<int32_t>(exact)) * (call.x_scale[row] * call.scale[first + k]);
  }
}

// Φ(x) x = (1 + erf(x / √2)) x / 2. Up to |z| = 3.9, beyond which it rounds to 1, erf(z) is z P(z²) / Q(z²) within
// 1.5e-8: coefficients fitted by repeated weighted least squares to the largest error. NaN stays NaN.
template <class S>
typename S::F gelu(typename S::F x) {
  using F = typename S::F;
  static constexpr float kP[] = {1.12837899f, 0.1919415f, 0.0529669859f, 0.00383689813f, 0.00028745798f, 2.050386e-06f};
  static constexpr float kQ[] = {1.f, 0.503435493f, 0.114758402f, 0.0151092475f, 0.0011817402f, 3.82307662e-05f};
  static constexpr float kMost = 3.9f, kLeast = -3.9f, kRootHalf = 0.70710678f, kHalf = 0.5f;
  const auto each = [](const float& v) { return S::template spread<S::width>(&v); };
  const F z = S::larger(each(kLeast), S::smaller(each(kMost), S::mul(x, each(kRootHalf)))), square = S::mul(z, z);
  F p = each(kP[5]), q = each(kQ[5]);
  SATEN_UNROLL for (int k = 4; k >= 0; --k) {
    p = S::fma(p, square, each(kP[k]));
    q = S::fma(q, square, each(kQ[k]));
  }
  const F half = S::mul(x, each(kHalf));
  return S::fma(half, S::div(S::mul(z, p), q), half);
}

template <class S>
void finish(float* y, size_t y_stride, size_t rows, size_t columns, const float* bias, Activation activation) {
  constexpr size_t W = S::width;
  const auto one = [&](float* to, const float* added) {
    const typename S::F sum = S::add(S::load(to), S::load(added));
    S::store(to, activation == Activation::gelu ? gelu<S>(sum) : sum);
  };
  for (size_t row = 0; row < rows; ++row, y += y_stride) {
    size_t k = 0;
    for (; k + W <= columns; k += W) one(y + k, bias + k);
    if (k == columns) continue;
    float rest[W] = {}, added[W] = {};
    std::memcpy(rest, y + k, (columns - k) * sizeof(float));
    std::memcpy(added, bias + k, (columns - k) * sizeof(float));
    one(rest, added);
    std::memcpy(y + k, rest, (columns - k) * sizeof(float));
  }
}

}  // namespace
}  // namespace saten
