// AVX-512 vectors: 16 floats.
#include <immintrin.h>

#include "half.h"

#include "kernels.inl"

namespace saten {
namespace {

struct Avx512 {
  using F = __m512;
  static constexpr size_t width = 16, kAccumulators = 24, kSingleVectors = 4, kTurn = 8, kPermuted = 3;

  static F zero() { return _mm512_setzero_ps(); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F f) { _mm512_storeu_ps(p, f); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F smaller(F a, F b) { return _mm512_min_ps(b, a); }  // the first where b is NaN
  static F larger(F a, F b) { return _mm512_max_ps(b, a); }
  static F at_least(F f, F g) { return _mm512_max_ps(g, f); }
  static F times_power(F f, F n) { return _mm512_scalef_ps(f, n); }
  static float least(F f) { return _mm512_reduce_min_ps(f); }
  static float most(F f) { return _mm512_reduce_max_ps(f); }

  template <size_t R>
  static F repeat(const float* p) {
    if constexpr (R == 1) return _mm512_set1_ps(*p);
    if constexpr (R == 2) {
      double pair;
      std::memcpy(&pair, p, 8);
      return _mm512_castpd_ps(_mm512_set1_pd(pair));
    }
    if constexpr (R == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(p));
  }

  template <size_t C, class V>
  static F several(const V* v) {
    static_assert(C == 4 || C == 8);
    if constexpr (C == 4) return four(v);
    return eight(v);
  }
  static F lane(F f, size_t m) { return _mm512_permutexvar_ps(_mm512_set1_epi32(static_cast<int>(m)), f); }

  static F values(const float* v) { return _mm512_loadu_ps(v); }
  static F values(const Half* v) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v))); }
  static F values(const int8_t* v) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v))));
  }
  static F eight(const float* v) { return _mm512_castps256_ps512(_mm256_loadu_ps(v)); }
  static F eight(const Half* v) {
    return _mm512_castps256_ps512(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(v))));
  }
  static F eight(const int8_t* v) {
    return _mm512_castps256_ps512(
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(v)))));
  }
  static F four(const float* v) { return _mm512_castps128_ps512(_mm_loadu_ps(v)); }
  static F four(const Half* v) {
    return _mm512_castps128_ps512(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(v))));
  }
  static F four(const int8_t* v) {
    int32_t bytes;
    std::memcpy(&bytes, v, 4);
    return _mm512_castps128_ps512(_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(bytes))));
  }

  template <size_t R, class V>
  static F spread(const V* v) {
    if constexpr (R == 1) return values(v);
    if constexpr (R == 2)
      return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7), eight(v));
    if constexpr (R == 4)
      return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), four(v));
    if constexpr (R == 16) return _mm512_set1_ps(as_float(*v));
  }

  template <size_t R>
  static F unmix(F f) {
    if constexpr (R == 2)
      return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15), f);
    if constexpr (R == 4)
      return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), f);
    return f;
  }

  template <size_t R, bool kAdd>
  static void write(F f, const Target& to) {
    if constexpr (R == 2) {
      write<kAdd>(_mm512_castps512_ps256(f), to);
      write<kAdd>(_mm512_extractf32x8_ps(f, 1), to.at(1, 0));
    }
    if constexpr (R == 4) {
      write<kAdd>(_mm512_castps512_ps128(f), to);
      write<kAdd>(_mm512_extractf32x4_ps(f, 1), to.at(1, 0));
      write<kAdd>(_mm512_extractf32x4_ps(f, 2), to.at(2, 0));
      write<kAdd>(_mm512_extractf32x4_ps(f, 3), to.at(3, 0));
    }
  }
  template <bool kAdd>
  static void write(__m256 f, const Target& to) {
    _mm256_storeu_ps(to.y, kAdd ? _mm256_add_ps(_mm256_loadu_ps(to.addend), f) : f);
  }
  template <bool kAdd>
  static void write(__m128 f, const Target& to) {
    _mm_storeu_ps(to.y, kAdd ? _mm_add_ps(_mm_loadu_ps(to.addend), f) : f);
  }

  template <size_t G, class I>
  static F expand(const float* x, const I* i) {
    if constexpr (G >= 16) return _mm512_set1_ps(x[i[0]]);
    if constexpr (G == 8)
      return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_set1_ps(x[i[0]])), _mm256_set1_ps(x[i[1]]), 1);
    if constexpr (G == 4) {
      F f = _mm512_castps128_ps512(_mm_set1_ps(x[i[0]]));
      f = _mm512_insertf32x4(f, _mm_set1_ps(x[i[1]]), 1);
      f = _mm512_insertf32x4(f, _mm_set1_ps(x[i[2]]), 2);
      return _mm512_insertf32x4(f, _mm_set1_ps(x[i[3]]), 3);
    }
    if constexpr (G == 1) return _mm512_i32gather_ps(sixteen(i), x, 4);
  }
  static __m512i sixteen(const uint16_t* i) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(i)));
  }
  static __m512i sixteen(const uint32_t* i) { return _mm512_loadu_si512(i); }

  // 8 × 8: pairs, then quarters, then halves across.
  static void transpose(const float* in, size_t in_stride, float* out, size_t out_stride) {
    __m256 r[8], t[8];
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
    const F code = _mm512_fmadd_ps(x, _mm512_set1_ps(inverse), _mm512_set1_ps(shift));
    const __m512i whole = _mm512_max_epi32(_mm512_cvtps_epi32(code), _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtusepi32_epi8(whole));
    return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) == 0;
  }
};

}  // namespace
}  // namespace saten
