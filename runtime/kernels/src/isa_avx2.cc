// AVX2 with FMA and F16C: 8 floats.
#include <immintrin.h>

#include "half.h"

#include "kernels.inl"
#include "processor.h"

namespace saten {
namespace {

struct Avx2 {
  using F = __m256;
  static constexpr size_t width = 8, kAccumulators = 8, kSingleVectors = 4, kTurn = 8, kPermuted = 0;

  static F zero() { return _mm256_setzero_ps(); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F f) { _mm256_storeu_ps(p, f); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F smaller(F a, F b) { return _mm256_min_ps(b, a); }  // the first where b is NaN
  static F larger(F a, F b) { return _mm256_max_ps(b, a); }
  static F at_least(F f, F g) { return _mm256_max_ps(g, f); }
  static F times_power(F f, F n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(f, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  static float least(F f) {
    __m128 h = _mm_min_ps(_mm256_castps256_ps128(f), _mm256_extractf128_ps(f, 1));
    h = _mm_min_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_min_ss(h, _mm_movehdup_ps(h)));
  }
  static float most(F f) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(f), _mm256_extractf128_ps(f, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
  }

  template <size_t R>
  static F repeat(const float* p) {
    if constexpr (R == 1) return _mm256_broadcast_ss(p);
    if constexpr (R == 2) {
      double pair;
      std::memcpy(&pair, p, 8);
      return _mm256_castpd_ps(_mm256_set1_pd(pair));
    }
  }

  static F values(const float* v) { return _mm256_loadu_ps(v); }
  static F values(const Half* v) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v))); }
  static F values(const int8_t* v) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(v))));
  }
  static __m128 four(const float* v) { return _mm_loadu_ps(v); }
  static __m128 four(const Half* v) { return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(v))); }
  static __m128 four(const int8_t* v) {
    int32_t bytes;
    std::memcpy(&bytes, v, 4);
    return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes)));
  }

  template <size_t R, class V>
  static F spread(const V* v) {
    if constexpr (R == 1) return values(v);
    if constexpr (R == 2)
      return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(four(v)), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
    if constexpr (R == 8) return _mm256_set1_ps(as_float(*v));
  }

  template <size_t R>
  static F unmix(F f) {
    if constexpr (R == 2) return _mm256_permutevar8x32_ps(f, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    return f;
  }

  template <size_t R, bool kAdd>
  static void write(F f, const Target& to) {
    if constexpr (R == 2) {
      write<kAdd>(_mm256_castps256_ps128(f), to);
      write<kAdd>(_mm256_extractf128_ps(f, 1), to.at(1, 0));
    }
  }
  template <bool kAdd>
  static void write(__m128 f, const Target& to) {
    _mm_storeu_ps(to.y, kAdd ? _mm_add_ps(_mm_loadu_ps(to.addend), f) : f);
  }

  template <size_t G, class I>
  static F expand(const float* x, const I* i) {
    if constexpr (G >= 8) return _mm256_set1_ps(x[i[0]]);
    if constexpr (G == 4)
      return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_set1_ps(x[i[0]])), _mm_set1_ps(x[i[1]]), 1);
    if constexpr (G == 1)
      return _mm256_setr_ps(x[i[0]], x[i[1]], x[i[2]], x[i[3]], x[i[4]], x[i[5]], x[i[6]], x[i[7]]);
  }

  // 8 × 8: pairs, then quarters, then halves across.
  static void transpose(const float* in, size_t in_stride, float* out, size_t out_stride) {
    F r[8], t[8];
    for (int k = 0; k < 8; ++k) r[k] = _mm256_loadu_ps(in + k * in_stride);
    for (int k = 0; k < 8; k += 2) {
      t[k] = _mm256_unpacklo_ps(r[k], r[k + 1]);
      t[k + 1] = _mm256_unpackhi_ps(r[k], r[k + 1]);
    }
    for (int k = 0; k < 8; k += 4)
      for (int half = 0; half < 2; ++half) {
        r[k + 2 * half] = _mm256_shuffle_ps(t[k + half], t[k + 2 + half], 0x44);
        r[k + 2 * half + 1] = _mm256_shuffle_ps(t[k + half], t[k + 2 + half], 0xee);
      }
    for (int c = 0; c < 4; ++c) {
      _mm256_storeu_ps(out + c * out_stride, _mm256_permute2f128_ps(r[c], r[c + 4], 0x20));
      _mm256_storeu_ps(out + (c + 4) * out_stride, _mm256_permute2f128_ps(r[c], r[c + 4], 0x31));
    }
  }

  static bool codes(F x, float inverse, float shift, uint8_t* out) {
    const F code = _mm256_fmadd_ps(x, _mm256_set1_ps(inverse), _mm256_set1_ps(shift));
    const __m256i whole = _mm256_cvtps_epi32(code);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
    return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)) == 0;
  }
};

// Bytes are widened to two, pairs of products added: two lanes per output, four vectors per panel.
template <size_t M>
void quantized_rows(const QuantizedCall& call, size_t panel, size_t row) {
  const int8_t* w = call.values + panel * call.quads * kPanel * kQuad;
  const uint8_t* x = call.x + row * call.x_stride;
  __m256i sum[M][4];
  for (auto& each : sum)
    for (auto& part : each) part = _mm256_setzero_si256();
  for (size_t quad = 0; quad < call.quads; ++quad, w += kPanel * kQuad, x += kQuad) {
    __m256i wide[M];
    for (size_t m = 0; m < M; ++m) {
      int32_t codes;
      std::memcpy(&codes, x + m * call.x_stride, 4);
      wide[m] = _mm256_cvtepu8_epi16(_mm_set1_epi32(codes));
    }
    for (size_t part = 0; part < 4; ++part) {
      const __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + 16 * part)));
      for (size_t m = 0; m < M; ++m)
        sum[m][part] = _mm256_add_epi32(sum[m][part], _mm256_madd_epi16(wide[m], weights));
    }
  }
  for (size_t m = 0; m < M; ++m) {
    alignas(32) int32_t pairs[2 * kPanel], sums[kPanel];
    for (size_t part = 0; part < 4; ++part)
      _mm256_store_si256(reinterpret_cast<__m256i*>(pairs + 8 * part), sum[m][part]);
    for (size_t k = 0; k < kPanel; ++k) sums[k] = pairs[2 * k] + pairs[2 * k + 1];
    write_panel(call, row + m, panel, sums);
  }
}

void quantized(const QuantizedCall& call) {
  size_t row = 0;
  for (; row + 2 <= call.rows; row += 2)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_rows<2>(call, panel, row);
  for (; row < call.rows; ++row)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_rows<1>(call, panel, row);
}

bool supported() { return has(Feature::avx2); }

}  // namespace

extern const Kernels kAvx2 = make_kernels<Avx2>("avx2", supported, quantized);

}  // namespace saten
