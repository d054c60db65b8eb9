// AVX-512 with VNNI.
#include "isa_avx512vnni.inl"
#include "processor.h"

namespace saten {
namespace {

bool supported() { return has(Feature::avx512vnni); }

}  // namespace

extern const Kernels kAvx512Vnni = make_kernels<Avx512>("avx512vnni", supported, quantized);

}  // namespace saten
