// NEON with 8-bit matrix products (Armv8.6 i8mm): 2 rows × 2 outputs × 8 inputs per instruction.
#include "isa_neon.inl"
#include "processor.h"

namespace saten {
namespace {

// Two quads of two outputs are brought side by side, as the instruction reads 8 inputs of each.
int8x16_t two_quads(const int8_t* now, const int8_t* next) {
  const int32x2_t a = vreinterpret_s32_s8(vld1_s8(now)), b = vreinterpret_s32_s8(vld1_s8(next));
  return vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(a, b), vzip2_s32(a, b)));
}

// M pairs of rows; sum[m][k]: (row 0, output 2k), (row 0, 2k + 1), (row 1, 2k), (row 1, 2k + 1).
template <size_t M>
void quantized_pairs(const QuantizedCall& call, size_t panel, size_t row) {
  constexpr size_t kStep = kPanel * kQuad;
  const int8_t* w = call.values + panel * call.quads * kStep;
  int32x4_t sum[M][kPanel / 2];
  for (auto& each : sum)
    for (auto& part : each) part = vdupq_n_s32(0);
  const int8_t nothing[kStep] = {};
  for (size_t quad = 0; quad < call.quads; quad += 2, w += 2 * kStep) {
    const bool whole = quad + 1 < call.quads;
    uint8x16_t inputs[M];
    for (size_t m = 0; m < M; ++m) {
      uint8_t codes[16] = {};
      for (size_t r = 0; r < 2 && row + 2 * m + r < call.rows; ++r)
        std::memcpy(codes + 8 * r, call.x + (row + 2 * m + r) * call.x_stride + quad * kQuad, whole ? 8 : 4);
      inputs[m] = vld1q_u8(codes);
    }
    for (size_t k = 0; k < kPanel / 2; ++k) {
      const int8x16_t weights = two_quads(w + 8 * k, whole ? w + kStep + 8 * k : nothing);
      for (size_t m = 0; m < M; ++m) sum[m][k] = vusmmlaq_s32(sum[m][k], inputs[m], weights);
    }
  }
  for (size_t m = 0; m < M; ++m) {
    int32_t sums[2][kPanel];
    for (size_t k = 0; k < kPanel / 2; ++k) {
      vst1_s32(sums[0] + 2 * k, vget_low_s32(sum[m][k]));
      vst1_s32(sums[1] + 2 * k, vget_high_s32(sum[m][k]));
    }
    for (size_t r = 0; r < 2 && row + 2 * m + r < call.rows; ++r) write_panel(call, row + 2 * m + r, panel, sums[r]);
  }
}

void quantized(const QuantizedCall& call) {
  size_t row = 0;
  for (; row + 4 <= call.rows; row += 4)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_pairs<2>(call, panel, row);
  for (; row < call.rows; row += 2)
    for (size_t panel = call.first; panel < call.last; ++panel) quantized_pairs<1>(call, panel, row);
}

bool supported() { return has(Feature::int8_matrix_products); }

}  // namespace

extern const Kernels kNeonI8mm = make_kernels<Neon>("neoni8mm", supported, quantized);

}  // namespace saten
