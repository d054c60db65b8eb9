// NEON vectors of AArch64: 4 floats.
#include <arm_neon.h>

#include "half.h"

#include "kernels.inl"

namespace saten {
namespace {

struct Neon {
  using F = float32x4_t;
  static constexpr size_t width = 4, kAccumulators = 16, kSingleVectors = 8, kTurn = 4, kPermuted = 0;

  static F zero() { return vdupq_n_f32(0); }
  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F f) { vst1q_f32(p, f); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F smaller(F a, F b) { return vminnmq_f32(a, b); }  // the other where one is NaN
  static F larger(F a, F b) { return vmaxnmq_f32(a, b); }
  static F at_least(F f, F g) { return vmaxq_f32(f, g); }
  static F times_power(F f, F n) {
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(f, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
  }
  static float least(F f) { return vminnmvq_f32(f); }
  static float most(F f) { return vmaxnmvq_f32(f); }

  template <size_t R>
  static F repeat(const float* p) {
    return vld1q_dup_f32(p);
  }

  static F values(const float* v) { return vld1q_f32(v); }
  static F values(const Half* v) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&v->bits))); }
  static F values(const int8_t* v) {
    int32_t bytes;
    std::memcpy(&bytes, v, 4);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }

  template <size_t R, class V>
  static F spread(const V* v) {
    if constexpr (R == 1) return values(v);
    return vdupq_n_f32(as_float(*v));
  }

  template <size_t R>
  static F unmix(F f) {
    return f;
  }

  template <size_t G, class I>
  static F expand(const float* x, const I* i) {
    if constexpr (G >= 4) return vld1q_dup_f32(x + i[0]);
    const float inputs[4] = {x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
    return vld1q_f32(inputs);
  }

  static void transpose(const float* in, size_t in_stride, float* out, size_t out_stride) {
    const float32x4x2_t top = vtrnq_f32(vld1q_f32(in), vld1q_f32(in + in_stride));
    const float32x4x2_t bottom = vtrnq_f32(vld1q_f32(in + 2 * in_stride), vld1q_f32(in + 3 * in_stride));
    for (size_t c = 0; c < 2; ++c) {
      vst1q_f32(out + c * out_stride, vcombine_f32(vget_low_f32(top.val[c]), vget_low_f32(bottom.val[c])));
      vst1q_f32(out + (c + 2) * out_stride, vcombine_f32(vget_high_f32(top.val[c]), vget_high_f32(bottom.val[c])));
    }
  }

  static bool codes(F x, float inverse, float shift, uint8_t* out) {
    const F code = vfmaq_n_f32(vdupq_n_f32(shift), x, inverse);
    const uint16x4_t words = vqmovun_s32(vcvtnq_s32_f32(code));
    const uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(words, words))), 0);
    std::memcpy(out, &bytes, 4);
    return vminvq_u32(vceqq_f32(x, x)) != 0;
  }
};

}  // namespace
}  // namespace saten
