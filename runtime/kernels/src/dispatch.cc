#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernel_table.h"

namespace saten {

extern const Kernels kScalar;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16;
const Kernels* const kInstructionSets[] = {&kScalar, &kAvx2, &kAvx512, &kAvx512Vnni, &kAvx512Bf16};
#elif defined(__aarch64__)
extern const Kernels kNeon, kNeonDot, kNeonI8mm;
const Kernels* const kInstructionSets[] = {&kScalar, &kNeon, &kNeonDot, &kNeonI8mm};
#else
const Kernels* const kInstructionSets[] = {&kScalar};
#endif
const size_t kInstructionSetCount = sizeof(kInstructionSets) / sizeof(kInstructionSets[0]);

const Kernels& kernels() {
  const char* wanted = std::getenv("SATEN_KERNELS_ISA");
  std::string there;
  for (size_t k = kInstructionSetCount; k-- > 0;) {
    const Kernels& each = *kInstructionSets[k];
    if (!each.supported()) continue;
    if (!wanted || !*wanted || std::strcmp(wanted, each.isa) == 0) return each;
    there += there.empty() ? each.isa : std::string(", ") + each.isa;
  }
  throw std::invalid_argument("SATEN_KERNELS_ISA=" + std::string(wanted) + ": this processor has " + there);
}

}  // namespace saten
