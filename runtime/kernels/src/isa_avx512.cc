// AVX-512 without VNNI: bytes are widened to two, and pairs of products are added.
#include "isa_avx512.inl"
#include "processor.h"

namespace saten {
namespace {

// Two lanes per output: the two pairs of a quad.
template <size_t M>
void quantized_rows(const QuantizedCall& call, size_t panel, size_t row) {
  const int8_t* w = call.values + panel * call.quads * kPanel * kQuad;
  const uint8_t* x = call.x + row * call.x_stride;
  __m512i sum[M][2];
  for (auto& each : sum) each[0] = each[1] = _mm512_setzero_si512();
  for (size_t quad = 0; quad < call.quads; ++quad, w += kPanel * kQuad, x += kQuad) {
    const __m512i low = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
    const __m512i high = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 32)));
    for (size_t m = 0; m < M; ++m) {
      int32_t codes;
      std::memcpy(&codes, x + m * call.x_stride, 4);
      const __m512i wide = _mm512_cvtepu8_epi16(_mm256_set1_epi32(codes));
      sum[m][0] = _mm512_add_epi32(sum[m][0], _mm512_madd_epi16(wide, low));
      sum[m][1] = _mm512_add_epi32(sum[m][1], _mm512_madd_epi16(wide, high));
    }
  }
  for (size_t m = 0; m < M; ++m) {
    alignas(64) int32_t pairs[2 * kPanel], sums[kPanel];
    _mm512_store_si512(pairs, sum[m][0]);
    _mm512_store_si512(pairs + kPanel, sum[m][1]);
    for (size_t k = 0; k < kPanel; ++k) sums[k] = pairs[2 * k] + pairs[2 * k + 1];
    write_panel(call, row + m, panel, sums);
  }
}

void quantized(const QuantizedCall& call) {
  size_t row = 0;
  for (; row + 8 <= call.rows; row += 8)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_rows<8>(call, panel, row);
  for (; row < call.rows; ++row)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_rows<1>(call, panel, row);
}

bool supported() { return has(Feature::avx512); }

}  // namespace

extern const Kernels kAvx512 = make_kernels<Avx512>("avx512", supported, quantized);

}  // namespace saten
