#include "processor.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace saten {
namespace {

constexpr uint64_t bit(unsigned number) { return uint64_t{1} << number; }
constexpr bool all(uint64_t found, uint64_t wanted) { return (found & wanted) == wanted; }

#if defined(__x86_64__)

// Bits of XCR0, which says what the system saves, and of CPUID's leaves 1, 7 and 7.1 (Intel SDM, volumes 1 and 2).
struct Facts {
  uint64_t saved, leaf1_ecx, leaf7_ebx, leaf7_ecx, leaf7_1_eax;
};
constexpr uint64_t kVectors = bit(1) | bit(2), kMasks = bit(5) | bit(6) | bit(7);
constexpr uint64_t kOsXsave = bit(27), kFmaF16c = bit(12) | bit(29);
constexpr uint64_t kAvx2 = bit(5), kAvx512FDqBwVl = bit(16) | bit(17) | bit(30) | bit(31);
constexpr uint64_t kVnni = bit(11), kBf16 = bit(5);

struct Demand {
  Feature feature;
  Facts facts;
};
constexpr Demand kDemands[] = {
    {Feature::avx2, {kVectors, kFmaF16c, kAvx2, 0, 0}},
    {Feature::avx512, {kVectors | kMasks, kFmaF16c, kAvx2 | kAvx512FDqBwVl, 0, 0}},
    {Feature::avx512vnni, {kVectors | kMasks, kFmaF16c, kAvx2 | kAvx512FDqBwVl, kVnni, 0}},
    {Feature::avx512bf16, {kVectors | kMasks, kFmaF16c, kAvx2 | kAvx512FDqBwVl, kVnni, kBf16}},
};

Facts read_facts() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  Facts facts{};
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return facts;
  facts.leaf1_ecx = ecx;
  if (ecx & kOsXsave) {  // else the instruction is none
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    facts.saved = low;
  }
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return facts;
  facts.leaf7_ebx = ebx;
  facts.leaf7_ecx = ecx;
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) facts.leaf7_1_eax = eax;
  return facts;
}

bool fulfils(const Demand& demand) {
  static const Facts there = read_facts();
  const Facts& wanted = demand.facts;
  return all(there.saved, wanted.saved) && all(there.leaf1_ecx, wanted.leaf1_ecx) &&
         all(there.leaf7_ebx, wanted.leaf7_ebx) && all(there.leaf7_ecx, wanted.leaf7_ecx) &&
         all(there.leaf7_1_eax, wanted.leaf7_1_eax);
}

#elif defined(__aarch64__)

// Linux's arch/arm64/include/uapi/asm/hwcap.h, by number: the headers of an old system lack what is newer.
struct Demand {
  Feature feature;
  unsigned long entry;
  uint64_t bits;
};
constexpr unsigned long kHwcap = 16, kHwcap2 = 26;
constexpr Demand kDemands[] = {
    {Feature::dot_products, kHwcap, bit(20)},           // asimddp
    {Feature::int8_matrix_products, kHwcap2, bit(13)},  // i8mm
};

bool fulfils(const Demand& demand) { return all(getauxval(demand.entry), demand.bits); }

#else

struct Demand {
  Feature feature;
};
constexpr Demand kDemands[] = {{}};

bool fulfils(const Demand&) { return false; }

#endif

}  // namespace

bool has(Feature feature) {
  for (const Demand& demand : kDemands)
    if (demand.feature == feature) return fulfils(demand);
  return false;
}

}  // namespace saten
