// What the kernels share. They are written once over `Simd`, the vectors of one instruction set:
//
//   F                   a vector of `width` floats
//   kAccumulators       how many of them stay in registers
//   kSingleVectors      row vectors of single outputs at a time
//   kTurn               rows that `transpose` turns at a time
//   kPermuted           rows that come out of a register, see input_of
//   repeat<R>(p)        p[0…R-1] p[0…R-1] …          R floats over and over
//   several<C>(v)       v[0] v[1] … v[C - 1], 4 or 8 values as floats, where kPermuted > 0
//   lane(f, m)          f[m] in every lane, where kPermuted > 0
//   spread<R>(v)        v[0]×R v[1]×R …              each value R times, as floats
//   unmix<R>(f)         lanes from (output, row) order to (row, output) order
//   expand<G>(x, i)     x[i[0]]×G x[i[1]]×G …        inputs of one row
//   write<R, add>(f, …) R rows of f, in (row, output) order, added to those of an addend, to y, y + stride …
//   at_least(f, g)      the larger of each; NaN where f is NaN
//   times_power(f, n)   f · 2ⁿ, n whole and from -126 to 127
//   zero, load, store, fma, mul, add, transpose, smaller, larger, least, most, codes
#pragma once

#include <cstddef>

#include "kernel_table.h"

// Accumulators stay in registers only where no loop over them is left.
#define SATEN_UNROLL _Pragma("GCC unroll 16")

namespace saten {
namespace {

// How many of `left` panels to take at a time, at most `most`: 4 panels are two twos, not three and one.
constexpr size_t even_share(size_t left, size_t most) {
  const size_t times = (left + most - 1) / most;
  return (left + times - 1) / times;
}

// Where results go: rows of y, and the rows that are added on the way.
struct Target {
  float* y;
  size_t stride;
  const float* addend;
  size_t addend_stride;

  Target at(size_t row, size_t output) const {
    return {y + row * stride + output, stride, addend ? addend + row * addend_stride + output : nullptr, addend_stride};
  }
};

}  // namespace
}  // namespace saten
