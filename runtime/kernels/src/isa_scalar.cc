// Plain C++: the oracle of every other instruction set, and what runs where none of them is there.
#include "half.h"

#include "kernels.inl"

namespace saten {
namespace {

struct Scalar {
  using F = float;
  static constexpr size_t width = 1, kAccumulators = 32, kSingleVectors = 4, kTurn = 1, kPermuted = 0;

  static F zero() { return 0; }
  static F load(const float* p) { return *p; }
  static void store(float* p, F f) { *p = f; }
  static F fma(F a, F b, F c) { return a * b + c; }
  static F mul(F a, F b) { return a * b; }
  static F add(F a, F b) { return a + b; }
  static F div(F a, F b) { return a / b; }
  static F smaller(F a, F b) { return b < a ? b : a; }
  static F larger(F a, F b) { return b > a ? b : a; }
  static F at_least(F f, F g) { return f < g ? g : f; }
  static F times_power(F f, F n) {
    const uint32_t bits = n == n ? static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23 : 0;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return f * power;
  }
  static float least(F f) { return f; }
  static float most(F f) { return f; }
  template <size_t R>
  static F repeat(const float* p) {
    return *p;
  }
  template <size_t R, class V>
  static F spread(const V* v) {
    return as_float(*v);
  }
  template <size_t R>
  static F unmix(F f) {
    return f;
  }
  template <size_t G, class I>
  static F expand(const float* x, const I* i) {
    return x[*i];
  }
  static void transpose(const float* in, size_t, float* out, size_t) { *out = *in; }
  static bool codes(F x, float inverse, float shift, uint8_t* out) {
    const float code = __builtin_nearbyintf(x * inverse + shift);
    *out = static_cast<uint8_t>(code > 0 ? (code < 255 ? code : 255) : 0);
    return x == x;
  }
};

void quantized(const QuantizedCall& call) {
  for (size_t panel = call.first; panel < call.last; ++panel)
    for (size_t row = 0; row < call.rows; ++row) {
      const uint8_t* x = call.x + row * call.x_stride;
      const int8_t* w = call.values + panel * call.quads * kPanel * kQuad;
      int32_t sums[kPanel] = {};
      for (size_t quad = 0; quad < call.quads; ++quad)
        for (size_t k = 0; k < kPanel; ++k)
          for (size_t i = 0; i < kQuad; ++i) sums[k] += x[quad * kQuad + i] * w[(quad * kPanel + k) * kQuad + i];
      write_panel(call, row, panel, sums);
    }
}

bool supported() { return true; }

}  // namespace

extern const Kernels kScalar = make_kernels<Scalar>("scalar", supported, quantized);

}  // namespace saten
