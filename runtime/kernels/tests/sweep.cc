// Every kernel of the table, on every instruction set of this processor, against loops in float64 and the scalar one.
//
//     saten_sweep [cases per kernel, default 1000] [only this instruction set] [only this family]
#include <cstring>
#include <string>

#include "cases.h"
#include "families.h"
#include "processor.h"

namespace saten::testing {
namespace {

struct Family {
  const char* name;
  void (*check)(const Kernels& isa, size_t cases);
};

constexpr Family kFamilies[] = {{"kernels", check_kernels}, {"layers", check_layers}, {"attention", check_attention}};

// What GCC finds by its own means. Not every other compiler has them in a library.
void check_processor() {
#if defined(__x86_64__) && !defined(__clang__)
  const auto same = [](Feature feature, bool there) {
    expect(has(feature) == there, "differs from what the compiler finds", "processor");
  };
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  same(Feature::avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  same(Feature::avx512, avx512);
  same(Feature::avx512vnni, avx512 && __builtin_cpu_supports("avx512vnni"));
  same(Feature::avx512bf16, avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"));
  expect(!has(Feature::dot_products) && !has(Feature::int8_matrix_products), "has what ARM has", "processor");
#endif
}

bool wanted(const char* only, const char* name) { return !only || std::strcmp(only, name) == 0; }

}  // namespace

int sweep(size_t cases, const char* only_isa, const char* only_family) {
  size_t families = 0;
  for (const Family& family : kFamilies) families += wanted(only_family, family.name);
  if (!families) {
    std::fprintf(stderr, "saten_sweep: no family is named %s; there are kernels, layers and attention\n", only_family);
    return 2;
  }
  check_that_errors_are_seen();
  check_processor();
  for (size_t i = 0; i < kInstructionSetCount; ++i) {
    const Kernels& isa = *kInstructionSets[i];
    if (!wanted(only_isa, isa.isa)) continue;
    if (!isa.supported()) {
      std::printf("%s: not on this processor\n", isa.isa);
      continue;
    }
    for (const Family& family : kFamilies)
      if (wanted(only_family, family.name)) family.check(isa, cases);
  }
  std::printf(failures ? "%zu FAILURES\n" : "all agree\n", failures);
  return failures ? 1 : 0;
}

}  // namespace saten::testing

// An empty word stands for every instruction set.
int main(int count, char** words) {
  const auto word = [&](int k) { return count > k && *words[k] ? words[k] : nullptr; };
  const char* const cases = word(1);
  return saten::testing::sweep(cases ? std::strtoul(cases, nullptr, 10) : 1000, word(2), word(3));
}
