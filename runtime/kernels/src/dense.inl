// The dense product of floats, written once over `Simd`.
#pragma once

#include "simd.inl"

namespace saten {
namespace {

// The dense product: M rows × N panels in registers.
template <class S>
struct DenseShape {
  static constexpr size_t kVectors = kPanel / S::width;  // per panel
  static constexpr size_t kMost = S::kAccumulators / kVectors < 8 ? S::kAccumulators / kVectors : 8;
  static constexpr size_t kFew = kMost >= 4 ? kMost / 4 : 1;
  static constexpr size_t kPanels = S::kAccumulators / (kVectors * kMost);
};

template <class S, size_t M, size_t N>
void dense_step(const FloatCall& call, size_t row, size_t panel) {
  using F = typename S::F;
  constexpr size_t V = DenseShape<S>::kVectors;
  const size_t inputs = call.inputs, x_stride = call.x_stride, y_stride = call.y_stride;
  const float* x = call.x + row;
  const float* weights = call.values + panel * inputs * kPanel;
  F sum[M][N][V];
  SATEN_UNROLL for (size_t m = 0; m < M; ++m)
    SATEN_UNROLL for (size_t n = 0; n < N; ++n)
      SATEN_UNROLL for (size_t v = 0; v < V; ++v) sum[m][n][v] = S::zero();
  for (size_t k = 0; k < inputs; ++k, x += x_stride, weights += kPanel) {
    F weight[N][V];
    SATEN_UNROLL for (size_t n = 0; n < N; ++n)
      SATEN_UNROLL for (size_t v = 0; v < V; ++v) weight[n][v] = S::load(weights + n * inputs * kPanel + v * S::width);
    SATEN_UNROLL for (size_t m = 0; m < M; ++m) {
      const F input = S::template repeat<1>(x + m);
      SATEN_UNROLL for (size_t n = 0; n < N; ++n)
        SATEN_UNROLL for (size_t v = 0; v < V; ++v) sum[m][n][v] = S::fma(input, weight[n][v], sum[m][n][v]);
    }
  }
  float* const y = call.y + row * y_stride + (panel - call.first) * kPanel;
  const size_t rows = call.rows - row;
  SATEN_UNROLL for (size_t m = 0; m < M; ++m)
    if (m < rows)
      SATEN_UNROLL for (size_t n = 0; n < N; ++n)
        SATEN_UNROLL for (size_t v = 0; v < V; ++v) S::store(y + m * y_stride + n * kPanel + v * S::width, sum[m][n][v]);
}

template <class S, size_t M, size_t N>
void dense_panels(const FloatCall& call, size_t row, size_t panel, size_t count) {
  if (count == N) return dense_step<S, M, N>(call, row, panel);
  if constexpr (N > 1) dense_panels<S, M, N - 1>(call, row, panel, count);
}

// One row: several inputs are in flight.
template <class S>
void dense_row(const FloatCall& call) {
  using F = typename S::F;
  constexpr size_t V = DenseShape<S>::kVectors, kChains = V >= 4 ? 1 : 4 / V;
  for (size_t panel = call.first; panel < call.last; ++panel) {
    const float* weights = call.values + panel * call.inputs * kPanel;
    F sum[kChains][V];
    SATEN_UNROLL for (size_t c = 0; c < kChains; ++c)
      SATEN_UNROLL for (size_t v = 0; v < V; ++v) sum[c][v] = S::zero();
    const auto add = [&](size_t k, F(&into)[V]) __attribute__((always_inline)) {
      const F input = S::template repeat<1>(call.x + k);
      SATEN_UNROLL for (size_t v = 0; v < V; ++v)
        into[v] = S::fma(input, S::load(weights + k * kPanel + v * S::width), into[v]);
    };
    size_t k = 0;
    for (; k + kChains <= call.inputs; k += kChains) {
      SATEN_UNROLL for (size_t c = 0; c < kChains; ++c) add(k + c, sum[c]);
    }
    for (; k < call.inputs; ++k) add(k, sum[0]);
    SATEN_UNROLL for (size_t v = 0; v < V; ++v) {
      SATEN_UNROLL for (size_t c = 1; c < kChains; ++c) sum[0][v] = S::add(sum[0][v], sum[c][v]);
      S::store(call.y + (panel - call.first) * kPanel + v * S::width, sum[0][v]);
    }
  }
}

template <class S>
void dense(const FloatCall& call) {
  using Form = DenseShape<S>;
  if (call.x_stride == 1) return dense_row<S>(call);
  for (size_t panel = call.first, count; panel < call.last; panel += count) {
    count = even_share(call.last - panel, Form::kPanels);
    size_t row = 0;
    for (; row + Form::kMost - Form::kFew < call.rows; row += Form::kMost)
      dense_panels<S, Form::kMost, Form::kPanels>(call, row, panel, count);
    for (; row < call.rows; row += Form::kFew) dense_panels<S, Form::kFew, Form::kPanels>(call, row, panel, count);
  }
}

}  // namespace
}  // namespace saten
