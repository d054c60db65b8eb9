// The kernels, by name, and what one is called with.
//
//     s8-blocks-16-u16__avx512        int8 values, blocks of 16 outputs × 1 input, two-byte input numbers
//     ^ values  ^   ^ index
//               outputs per block
//
// SATEN_BLOCK_KERNELS is the only list: dispatch, tests and benchmark expand it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace saten {

struct Half {  // IEEE binary16
  uint16_t bits;
};

// (values, type) and (outputs per block) and (index, type)
#define SATEN_FOR_EACH_GROUP(X, value, V, index, I) \
  X(value, V, 1, index, I) X(value, V, 4, index, I) X(value, V, 8, index, I) X(value, V, 16, index, I) X(value, V, 32, index, I)
#define SATEN_FOR_EACH_VALUE(X, index, I)       \
  SATEN_FOR_EACH_GROUP(X, f32, float, index, I) \
  SATEN_FOR_EACH_GROUP(X, f16, Half, index, I)  \
  SATEN_FOR_EACH_GROUP(X, s8, int8_t, index, I)
#define SATEN_BLOCK_KERNELS(X) SATEN_FOR_EACH_VALUE(X, u16, uint16_t) SATEN_FOR_EACH_VALUE(X, u32, uint32_t)

enum class Value { f32, f16, s8 };
enum class Index { u16, u32 };

// y (rows, …) = addend + x times the panels [first, last) of a block matrix.
// A panel is `group` consecutive outputs. Its blocks lie together, and those of strip s of the inputs begin at
// splits[s * panels + panel].
struct BlockCall {
  const float* x;          // tile (inputs, x_stride): input k of row r at x[k * x_stride + r]; one row: x_stride = 1
  size_t x_stride;         // a multiple of `row_quantum`, the rows beyond `rows` hold zeros
  size_t rows;             // ≥ 1
  float* y;                // (rows, y_stride), from the first output of panel `first`
  size_t y_stride;
  const float* addend;     // (rows, addend_stride), as y, and perhaps y itself; or null
  size_t addend_stride;
  size_t first, last;      // panels
  const uint32_t* splits;  // (strips + 1, panels)
  size_t strips, panels;
  const void* indices;     // (blocks), the input of each block
  const void* values;      // (blocks, group)
  const float* scale;      // (outputs), or null for 1
};

// y (rows, n) = x times the panels [first, last) of a packed matrix, see FloatMatrix.
struct FloatCall {
  const float* x;          // a tile or one row, as in BlockCall
  size_t x_stride;         // a multiple of `turn`
  size_t rows;
  size_t inputs;
  float* y;                // (rows, y_stride), from the first output of panel `first`
  size_t y_stride;
  size_t first, last;      // panels of 16 outputs
  const float* values;     // (panels, inputs, 16)
};

// y (rows, n) = dequantized product of u8 rows and a packed s8 matrix, see QuantizedMatrix.
struct QuantizedCall {
  const uint8_t* x;        // (rows, x_stride) codes, padded with anything to whole quads
  size_t x_stride;         // bytes, a multiple of 4
  const float* x_scale;    // (rows)
  const int32_t* x_zero;   // (rows)
  size_t rows;
  size_t quads;            // inputs / 4, rounded up
  float* y;                // (rows, y_stride), from the first output of panel `first`
  size_t y_stride;
  size_t first, last;      // panels of 16 outputs
  const int8_t* values;    // (panels, quads, 16, 4)
  const float* scale;      // (panels · 16)
  const int32_t* sums;     // (panels · 16), of the weights of each output
};

// Weights of an attention, one column for each query: scores → e^(scale · score + mask − the largest of its column).
struct SoftmaxCall {
  float* scores;           // (keys, stride)
  size_t stride;           // a multiple of kPanel
  size_t keys, columns;    // columns: up to the stride, a multiple of kPanel
  float scale;
  const float* mask;       // null, or that of key k at mask[k * mask_stride]
  size_t mask_stride;
  bool mask_of_each;       // whether as many columns follow there, or one number stands for all
  float* sums;             // (columns), of the weights
};

using BlockKernel = void (*)(const BlockCall&);

// What is done to x (A B + S) + bias; gelu is the exact one, by erf.
enum class Activation { none, gelu };

// Products of bfloat16, two per word: a word of x holds two inputs, the even one in its lower half.
struct Pairs {
  void (*product)(const FloatCall&);                                    // as of floats; inputs: pairs
  void (*softmax)(const SoftmaxCall&);                                  // as of floats; scores become (pairs of keys, stride)
  void (*neighbours)(const float* x, size_t count, float* pairs);       // x[0] x[1], x[2] x[3], …, and a last 0
  void (*rows)(const float* even, const float* odd, float* pairs);      // even[0] odd[0], … of a panel's width
};

// What one instruction set offers.
struct Kernels {
  const char* isa;
  bool (*supported)();
  BlockKernel blocks[3][5][2];                                 // by Value, group_slot, Index
  size_t tile_rows[5];                                         // by group_slot: rows a tile should hold
  size_t row_quantum[5];                                       // by group_slot: what x_stride is a multiple of
  bool direct[5];                                              // by group_slot: whether y may be written in place
  size_t turn;                                                 // the same of a FloatCall: rows that are transposed at a time
  size_t float_rows;                                           // rows a tile should hold where there are no blocks
  void (*transpose)(const float* x, size_t x_stride, size_t rows, size_t columns, float* tile, size_t tile_stride);
  void (*quantize)(const float* x, size_t columns, uint8_t* codes, float* scale, int32_t* zero);
  void (*floats)(const FloatCall&);
  void (*quantized)(const QuantizedCall&);
  void (*softmax)(const SoftmaxCall&);
  const struct Pairs* pairs;                                   // null where the set has no products of them
  // y (rows, columns) = activation(y + bias)
  void (*finish)(float* y, size_t y_stride, size_t rows, size_t columns, const float* bias, Activation activation);
};

constexpr size_t kGroups[] = {1, 4, 8, 16, 32};
constexpr size_t kMostTileRows = 64;
constexpr size_t kPanel = 16;  // outputs per panel of a FloatMatrix or QuantizedMatrix
constexpr size_t kQuad = 4;    // inputs whose products one lane adds up

constexpr size_t group_slot(size_t group) {
  return group == 1 ? 0 : group == 4 ? 1 : group == 8 ? 2 : group == 16 ? 3 : 4;
}

// Every instruction set of this build, the most capable last; the first is the scalar one.
extern const Kernels* const kInstructionSets[];
extern const size_t kInstructionSetCount;

// The most capable that the processor has, or what SATEN_KERNELS_ISA names.
// Throws std::invalid_argument: SATEN_KERNELS_ISA names none of this processor's.
const Kernels& kernels();

}  // namespace saten
