// NEON without dot products: what every AArch64 processor has.
#include "isa_neon.inl"

namespace saten {
namespace {

// Four lanes per output, one for each input of a quad.
void quantized_row(const QuantizedCall& call, size_t panel, size_t row) {
  const int8_t* w = call.values + panel * call.quads * kPanel * kQuad;
  const uint8_t* x = call.x + row * call.x_stride;
  int32x4_t sum[kPanel];
  for (auto& each : sum) each = vdupq_n_s32(0);
  for (size_t quad = 0; quad < call.quads; ++quad, w += kPanel * kQuad, x += kQuad) {
    uint32_t codes;
    std::memcpy(&codes, x, 4);
    const int16x4_t wide = vget_low_s16(vreinterpretq_s16_u16(vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(codes)))));
    for (size_t k = 0; k < kPanel; k += 2) {
      const int16x8_t weights = vmovl_s8(vld1_s8(w + k * kQuad));
      sum[k] = vmlal_s16(sum[k], wide, vget_low_s16(weights));
      sum[k + 1] = vmlal_s16(sum[k + 1], wide, vget_high_s16(weights));
    }
  }
  int32_t sums[kPanel];
  for (size_t k = 0; k < kPanel; ++k) sums[k] = vaddvq_s32(sum[k]);
  write_panel(call, row, panel, sums);
}

void quantized(const QuantizedCall& call) {
  for (size_t panel = call.first; panel < call.last; ++panel)
    for (size_t row = 0; row < call.rows; ++row) quantized_row(call, panel, row);
}

bool supported() { return true; }

}  // namespace

extern const Kernels kNeon = make_kernels<Neon>("neon", supported, quantized);

}  // namespace saten
