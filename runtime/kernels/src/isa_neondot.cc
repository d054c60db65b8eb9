// NEON with dot products (Armv8.2 asimddp): four products of bytes per lane and instruction.
#include "isa_neon.inl"
#include "processor.h"

namespace saten {
namespace {

// The instruction wants signed bytes: 128 is taken off every code, and off the zero point.
template <size_t M>
void quantized_rows(const QuantizedCall& call, size_t panel, size_t row) {
  const int8_t* w = call.values + panel * call.quads * kPanel * kQuad;
  const uint8_t* x = call.x + row * call.x_stride;
  int32x4_t sum[M][4];
  for (auto& each : sum)
    for (auto& part : each) part = vdupq_n_s32(0);
  for (size_t quad = 0; quad < call.quads; ++quad, w += kPanel * kQuad, x += kQuad) {
    int8x16_t weights[4];
    for (size_t part = 0; part < 4; ++part) weights[part] = vld1q_s8(w + 16 * part);
    for (size_t m = 0; m < M; ++m) {
      uint32_t codes;
      std::memcpy(&codes, x + m * call.x_stride, 4);
      const int8x16_t inputs = vreinterpretq_s8_u32(vdupq_n_u32(codes ^ 0x80808080u));
      for (size_t part = 0; part < 4; ++part) sum[m][part] = vdotq_s32(sum[m][part], weights[part], inputs);
    }
  }
  const int32_t* of_weights = call.sums + panel * kPanel;
  for (size_t m = 0; m < M; ++m) {
    int32_t sums[kPanel];
    for (size_t part = 0; part < 4; ++part)
      vst1q_s32(sums + 4 * part, vmlaq_n_s32(sum[m][part], vld1q_s32(of_weights + 4 * part), 128));
    write_panel(call, row + m, panel, sums);
  }
}

void quantized(const QuantizedCall& call) {
  size_t row = 0;
  for (; row + 4 <= call.rows; row += 4)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_rows<4>(call, panel, row);
  for (; row < call.rows; ++row)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_rows<1>(call, panel, row);
}

bool supported() { return has(Feature::dot_products); }

}  // namespace

extern const Kernels kNeonDot = make_kernels<Neon>("neondot", supported, quantized);

}  // namespace saten
