// One stored value as a float.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernel_table.h"

// In an unnamed namespace, as everything an instruction set's file includes: the linker would keep one copy of an
// inline function, perhaps the one compiled for a processor that is not there.
namespace saten {
namespace {

inline float as_float(float value) { return value; }
inline float as_float(int8_t value) { return value; }
inline float as_float(Half value) {
  // Exponent and fraction moved to their places in binary32, then scaled from bias 15 to bias 127. Subnormals come
  // out right because the product is exact; infinity and NaN need the largest exponent put back.
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16, rest = uint32_t(value.bits & 0x7fff) << 13;
  float scaled;
  std::memcpy(&scaled, &rest, 4);
  scaled *= 0x1p112f;
  uint32_t bits;
  std::memcpy(&bits, &scaled, 4);
  if (rest >= 0x7c00u << 13) bits |= 0x7f800000;
  bits |= sign;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

}  // namespace
}  // namespace saten
