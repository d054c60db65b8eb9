// The products of bytes with AVX-512 and VNNI: four per lane and instruction.
#include "isa_avx512.inl"

namespace saten {
namespace {

// M rows × N panels in registers.
template <size_t M, size_t N>
void quantized_step(const QuantizedCall& call, size_t row, size_t panel) {
  const size_t quads = call.quads, x_stride = call.x_stride, panel_bytes = quads * kPanel * kQuad;
  const int8_t* w = call.values + panel * panel_bytes;
  const uint8_t* x = call.x + row * x_stride;
  __m512i sum[M][N];
  SATEN_UNROLL for (size_t m = 0; m < M; ++m)
    SATEN_UNROLL for (size_t n = 0; n < N; ++n) sum[m][n] = _mm512_setzero_si512();
  for (size_t quad = 0; quad < quads; ++quad, w += kPanel * kQuad, x += kQuad) {
    __m512i weights[N];
    SATEN_UNROLL for (size_t n = 0; n < N; ++n) weights[n] = _mm512_loadu_si512(w + n * panel_bytes);
    SATEN_UNROLL for (size_t m = 0; m < M; ++m) {
      int32_t codes;
      std::memcpy(&codes, x + m * x_stride, kQuad);
      const __m512i inputs = _mm512_set1_epi32(codes);
      SATEN_UNROLL for (size_t n = 0; n < N; ++n) sum[m][n] = _mm512_dpbusd_epi32(sum[m][n], inputs, weights[n]);
    }
  }
  // Read from a copy: sums that a loop reads are kept in memory, not registers.
  __m512i total[M][N];
  SATEN_UNROLL for (size_t m = 0; m < M; ++m)
    SATEN_UNROLL for (size_t n = 0; n < N; ++n) total[m][n] = sum[m][n];
  for (size_t n = 0; n < N; ++n) {
    const size_t first = (panel + n) * kPanel;
    const __m512i sums = _mm512_loadu_si512(call.sums + first);
    const __m512 scale = _mm512_loadu_ps(call.scale + first);
    for (size_t m = 0; m < M; ++m) {
      const __m512i exact = _mm512_sub_epi32(total[m][n], _mm512_mullo_epi32(_mm512_set1_epi32(call.x_zero[row + m]), sums));
      const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_mul_ps(scale, _mm512_set1_ps(call.x_scale[row + m])));
      _mm512_storeu_ps(call.y + (row + m) * call.y_stride + first - call.first * kPanel, y);
    }
  }
}

template <size_t M, size_t N>
void quantized_panels(const QuantizedCall& call, size_t row, size_t panel, size_t count) {
  if (count == N) return quantized_step<M, N>(call, row, panel);
  if constexpr (N > 1) quantized_panels<M, N - 1>(call, row, panel, count);
}

void quantized(const QuantizedCall& call) {
  constexpr size_t kRows = 8, kPanels = 3, kPanelsOfOneRow = 8;  // 24 of 32 registers add up; 8 hide the latency
  for (size_t panel = call.first, count; panel < call.last; panel += count) {
    count = even_share(call.last - panel, call.rows < kRows ? kPanelsOfOneRow : kPanels);
    size_t row = 0;
    if (count <= kPanels)
      for (; row + kRows <= call.rows; row += kRows) quantized_panels<kRows, kPanels>(call, row, panel, count);
    for (; row < call.rows; ++row) quantized_panels<1, kPanelsOfOneRow>(call, row, panel, count);
  }
}

}  // namespace
}  // namespace saten
