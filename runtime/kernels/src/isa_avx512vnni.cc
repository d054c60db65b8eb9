// AVX-512 with VNNI: four products of bytes per lane and instruction.
#include "isa_avx512.inl"

namespace saten {
namespace {

template <size_t M>
void quantized_rows(const QuantizedCall& call, size_t panel, size_t row) {
  const int8_t* w = call.values + panel * call.quads * kPanel * kQuad;
  const uint8_t* x = call.x + row * call.x_stride;
  __m512i sum[M];
  for (auto& each : sum) each = _mm512_setzero_si512();
  for (size_t quad = 0; quad < call.quads; ++quad, w += kPanel * kQuad, x += kQuad) {
    const __m512i weights = _mm512_loadu_si512(w);
#pragma GCC unroll 16
    for (size_t m = 0; m < M; ++m) {
      int32_t codes;
      std::memcpy(&codes, x + m * call.x_stride, 4);
      sum[m] = _mm512_dpbusd_epi32(sum[m], _mm512_set1_epi32(codes), weights);
    }
  }
  const size_t first = panel * kPanel;
  const __m512i sums = _mm512_loadu_si512(call.sums + first);
  const __m512 scale = _mm512_loadu_ps(call.scale + first);
  for (size_t m = 0; m < M; ++m) {
    const __m512i exact = _mm512_sub_epi32(sum[m], _mm512_mullo_epi32(_mm512_set1_epi32(call.x_zero[row + m]), sums));
    const __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), _mm512_mul_ps(scale, _mm512_set1_ps(call.x_scale[row + m])));
    _mm512_storeu_ps(call.y + (row + m) * call.y_stride + first - call.first * kPanel, y);
  }
}

void quantized(const QuantizedCall& call) {
  size_t row = 0;
  for (; row + 8 <= call.rows; row += 8)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_rows<8>(call, panel, row);
  for (; row < call.rows; ++row)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_rows<1>(call, panel, row);
}

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

}  // namespace

extern const Kernels kAvx512Vnni = make_kernels<Avx512>("avx512vnni", supported, quantized);

}  // namespace saten
