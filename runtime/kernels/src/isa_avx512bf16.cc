// AVX-512 with VNNI and BF16: two products of bfloat16 per lane and instruction.
#include "isa_avx512vnni.inl"
#include "pairs.inl"
#include "processor.h"

namespace saten {
namespace {

// A lane of x and of the weights is a pair of bfloat16, the even one in the lower half; sums are floats.
struct Avx512Pairs : Avx512 {
  static F fma(F a, F b, F c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }

  // Pairs of each lane of two vectors.
  static F pairs(F even, F odd) {
    alignas(64) static constexpr uint16_t kOrder[] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves));
  }
  // Pairs of neighbouring lanes of two vectors, one behind the other.
  static F neighbours(F first, F second) { return (F)_mm512_cvtne2ps_pbh(second, first); }
};

constexpr Pairs kPairs = make_pairs<Avx512, Avx512Pairs>();

constexpr Kernels with_pairs(Kernels made) {
  made.pairs = &kPairs;
  return made;
}

bool supported() { return has(Feature::avx512bf16); }

}  // namespace

extern const Kernels kAvx512Bf16 = with_pairs(make_kernels<Avx512>("avx512bf16", supported, quantized));

}  // namespace saten
