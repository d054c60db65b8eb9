// The block kernels, written once over `Simd`, the vectors of one instruction set. A vector holds R rows × G outputs
// of y: where blocks are narrower than a vector, R = width / G rows share it; where they are wider, R = 1 and a
// block takes N vectors. Either way one multiply-add takes one load of x, and no lane is idle.
//
// Simd: F (vector of `width` floats), kAccumulators (how many stay in registers), kPermuted (see input_of), and
//   repeat<R>(p)        p[0…R-1] p[0…R-1] …          R floats over and over
//   several<C>(v)       v[0] v[1] … v[C - 1], 4 or 8 values as floats, where kPermuted > 0
//   lane(f, m)          f[m] in every lane, where kPermuted > 0
//   spread<R>(v)        v[0]×R v[1]×R …              each value R times, as floats
//   unmix<R>(f)         lanes from (output, row) order to (row, output) order
//   expand<G>(x, i)     x[i[0]]×G x[i[1]]×G …        inputs of one row
//   write<R, add>(f, …) R rows of f, in (row, output) order, added to those of an addend, to y, y + stride …
//   zero, load, store, fma, mul, add, transpose, smaller, larger, least, most, codes

#include <cfloat>
#include <cmath>
#include <cstring>

#include "kernel_table.h"

// Accumulators stay in registers only where no loop over them is left.
#define SATEN_UNROLL _Pragma("GCC unroll 16")

namespace saten {
namespace {

// Single outputs whose sums stay near while the strips of inputs pass by.
constexpr size_t kSingleOutputs = 64;

// How many of `left` panels to take at a time, at most `most`: 4 panels are two twos, not three and one.
constexpr size_t even_share(size_t left, size_t most) {
  const size_t times = (left + most - 1) / most;
  return (left + times - 1) / times;
}

template <class S, size_t G>
struct Shape {
  static constexpr size_t kRows = G < S::width ? S::width / G : 1;     // rows per vector
  static constexpr size_t kVectors = G > S::width ? G / S::width : 1;  // vectors per block
  // Row vectors per step. 8 multiply-adds in flight hide their latency; where the rows of 8 would crowd the nearest
  // cache, two blocks are in flight instead.
  static constexpr size_t kInFlight = S::kAccumulators / kVectors < 8 ? S::kAccumulators / kVectors : 8;
  static constexpr size_t kMost = kRows == 2 && kInFlight >= 2 ? kInFlight / 2 : kInFlight;
  static constexpr size_t kFew = kMost >= 4 ? kMost / 4 : 1;
  static constexpr size_t kChains = kInFlight / kMost;
  static constexpr size_t kTileRows = (G == 1 ? S::kSingleVectors : kMost) * kRows;
  static_assert(kTileRows <= kMostTileRows);
  // Rows of y may lie a multiple of the nearest cache's size apart. No more of them than it has ways may be written in
  // pieces; any number where each write is a whole line.
  static constexpr bool kDirect = kTileRows <= 8 || (G == 1 && S::width * sizeof(float) >= 64);
  static constexpr size_t kQuantum = G == 1 || kFew * kRows < S::kTurn ? (G == 1 ? S::width : S::kTurn) : kFew * kRows;
};

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

// One vector of results, R rows × its outputs, to the first `rows` of R rows.
template <class S, size_t G, bool kAdd>
void write_rows(typename S::F result, size_t rows, const Target& to) {
  constexpr size_t R = Shape<S, G>::kRows;
  if constexpr (R == 1) {
    if (rows) S::store(to.y, kAdd ? S::add(S::load(to.addend), result) : result);
  } else if (rows >= R) {
    S::template write<R, kAdd>(S::template unmix<R>(result), to);
  } else {
    alignas(64) float lanes[S::width];
    S::store(lanes, S::template unmix<R>(result));
    for (size_t r = 0; r < rows; ++r)
      for (size_t k = 0; k < G; ++k)
        to.y[r * to.stride + k] = kAdd ? to.addend[r * to.addend_stride + k] + lanes[r * G + k] : lanes[r * G + k];
  }
}

// Row vector m of M. Where a block is one vector of one row, loads are what it waits for: of 8 rows, the last few come
// from one load and permutations instead.
template <class S, size_t R, size_t M, size_t N>
typename S::F input_of(const float* x, size_t m) {
  if constexpr (S::kPermuted > 0 && M == 8 && R == 1 && N == 1)
    if (m >= M - S::kPermuted) return S::lane(S::template several<8>(x), m);
  return S::template repeat<R>(x + m * R);
}

// M row vectors of every panel, C blocks at a time. What the loops need is copied first: stores of vectors may alias
// anything.
template <class S, size_t G, class V, class I, size_t M, size_t C, bool kAdd>
void row_step(const BlockCall& call, size_t row) {
  using F = typename S::F;
  constexpr size_t R = Shape<S, G>::kRows, N = Shape<S, G>::kVectors;
  const I* const indices = static_cast<const I*>(call.indices);
  const V* const values = static_cast<const V*>(call.values);
  const float *const tile = call.x + row, *const scales = call.scale;
  const uint32_t *const starts = call.splits, *const ends = starts + call.strips * call.panels;
  const size_t x_stride = call.x_stride, first = call.first, last = call.last;
  const size_t rows = call.rows - row < M * R ? call.rows - row : M * R;
  const Target to = Target{call.y, call.y_stride, call.addend, call.addend_stride}.at(row, 0);
  for (size_t panel = first; panel < last; ++panel) {
    F sum[C][M][N];
    SATEN_UNROLL for (size_t c = 0; c < C; ++c)
      SATEN_UNROLL for (size_t m = 0; m < M; ++m)
        SATEN_UNROLL for (size_t n = 0; n < N; ++n) sum[c][m][n] = S::zero();
    const auto add = [&](size_t block, F(&into)[M][N]) __attribute__((always_inline)) {
      const float* x = tile + indices[block] * x_stride;
      F weight[N];
      SATEN_UNROLL for (size_t n = 0; n < N; ++n)
        weight[n] = S::template spread<R>(values + block * G + n * S::width);
      SATEN_UNROLL for (size_t m = 0; m < M; ++m) {
        const F input = input_of<S, R, M, N>(x, m);
        SATEN_UNROLL for (size_t n = 0; n < N; ++n) into[m][n] = S::fma(input, weight[n], into[m][n]);
      }
    };
    size_t block = starts[panel];
    const size_t end = ends[panel];
    if constexpr (C > 1)
      for (; block + C <= end; block += C) {
        SATEN_UNROLL for (size_t c = 0; c < C; ++c) add(block + c, sum[c]);
      }
    for (; block < end; ++block) add(block, sum[0]);
    SATEN_UNROLL for (size_t n = 0; n < N; ++n) {
      const size_t output = (panel - first) * G + n * S::width;
      SATEN_UNROLL for (size_t c = 1; c < C; ++c)
        SATEN_UNROLL for (size_t m = 0; m < M; ++m) sum[0][m][n] = S::add(sum[0][m][n], sum[c][m][n]);
      if (scales) {
        const F scale = S::template spread<R>(scales + first * G + output);
        SATEN_UNROLL for (size_t m = 0; m < M; ++m) sum[0][m][n] = S::mul(sum[0][m][n], scale);
      }
      if (rows == M * R) {
        SATEN_UNROLL for (size_t m = 0; m < M; ++m) write_rows<S, G, kAdd>(sum[0][m][n], R, to.at(m * R, output));
      } else {
        SATEN_UNROLL for (size_t m = 0; m < M; ++m)
          write_rows<S, G, kAdd>(sum[0][m][n], rows > m * R ? rows - m * R : 0, to.at(m * R, output));
      }
    }
  }
}

template <class S, size_t G, class V, class I, bool kAdd>
void many_rows(const BlockCall& call) {
  using Form = Shape<S, G>;
  constexpr size_t R = Form::kRows, kMost = Form::kMost, kFew = Form::kFew, kChains = Form::kChains;
  size_t row = 0;
  for (; row + (kMost - kFew) * R < call.rows; row += kMost * R) row_step<S, G, V, I, kMost, kChains, kAdd>(call, row);
  for (; row < call.rows; row += kFew * R) row_step<S, G, V, I, kFew, 1, kAdd>(call, row);
}

// One row: several blocks are in flight, as each alone would wait for the one before.
template <class S, size_t G, class V, class I>
void one_row(const BlockCall& call) {
  using F = typename S::F;
  constexpr size_t N = Shape<S, G>::kVectors;
  constexpr size_t kBlocks = Shape<S, G>::kRows;  // per vector
  constexpr size_t kChains = N >= 4 ? 1 : 4 / N;
  const I* indices = static_cast<const I*>(call.indices);
  const V* values = static_cast<const V*>(call.values);
  const uint32_t *const starts = call.splits, *const ends = starts + call.strips * call.panels;
  for (size_t panel = call.first; panel < call.last; ++panel) {
    size_t block = starts[panel];
    const size_t end = ends[panel];
    F sum[kChains][N];
    for (auto& chain : sum)
      for (auto& each : chain) each = S::zero();
    for (; block + kChains * kBlocks <= end; block += kChains * kBlocks)
      for (size_t c = 0; c < kChains; ++c) {
        const size_t at = block + c * kBlocks;
        const F input = S::template expand<G>(call.x, indices + at);
        for (size_t n = 0; n < N; ++n)
          sum[c][n] = S::fma(input, S::template spread<1>(values + at * G + n * S::width), sum[c][n]);
      }
    alignas(64) float lanes[N * S::width];
    for (size_t n = 0; n < N; ++n) {
      F total = sum[0][n];
      for (size_t c = 1; c < kChains; ++c) total = S::add(total, sum[c][n]);
      S::store(lanes + n * S::width, total);
    }
    float outputs[G];
    for (size_t k = 0; k < G; ++k) {
      outputs[k] = lanes[k];
      for (size_t part = 1; part < kBlocks; ++part) outputs[k] += lanes[part * G + k];
    }
    for (; block < end; ++block)
      for (size_t k = 0; k < G; ++k) outputs[k] += call.x[indices[block]] * as_float(values[block * G + k]);
    for (size_t k = 0; k < G; ++k) {
      const float total = call.scale ? outputs[k] * call.scale[panel * G + k] : outputs[k];
      const size_t output = (panel - call.first) * G + k;
      call.y[output] = call.addend ? call.addend[output] + total : total;
    }
  }
}

// Adds the entries of one strip to M row vectors of sums, (outputs, M · width), or begins them.
template <class S, class V, class I, size_t M>
void add_singles(const BlockCall& call, const uint32_t* starts, const uint32_t* ends, size_t row, size_t outputs, bool begin, float* sums) {
  using F = typename S::F;
  constexpr size_t W = S::width, kChains = M >= 8 ? 1 : M == 1 ? 8 : 4;
  const I* const indices = static_cast<const I*>(call.indices);
  const V* const values = static_cast<const V*>(call.values);
  const float* const x = call.x + row;
  const size_t x_stride = call.x_stride;
  for (size_t output = 0; output < outputs; ++output, sums += M * W) {
    F sum[kChains][M];
    SATEN_UNROLL for (size_t m = 0; m < M; ++m) sum[0][m] = begin ? S::zero() : S::load(sums + m * W);
    SATEN_UNROLL for (size_t c = 1; c < kChains; ++c)
      SATEN_UNROLL for (size_t m = 0; m < M; ++m) sum[c][m] = S::zero();
    size_t block = starts[output];
    const size_t end = ends[output];
    for (; block + kChains <= end; block += kChains) {
      F weights[kChains];
      if constexpr (S::kPermuted > 0 && kChains > 1) {
        const F several = S::template several<kChains>(values + block);
        SATEN_UNROLL for (size_t c = 0; c < kChains; ++c) weights[c] = S::lane(several, c);
      } else {
        SATEN_UNROLL for (size_t c = 0; c < kChains; ++c) weights[c] = S::template spread<W>(values + block + c);
      }
      SATEN_UNROLL for (size_t c = 0; c < kChains; ++c) {
        const float* from = x + indices[block + c] * x_stride;
        SATEN_UNROLL for (size_t m = 0; m < M; ++m) sum[c][m] = S::fma(S::load(from + m * W), weights[c], sum[c][m]);
      }
    }
    for (; block < end; ++block) {
      const float* from = x + indices[block] * x_stride;
      const F weight = S::template spread<W>(values + block);
      SATEN_UNROLL for (size_t m = 0; m < M; ++m) sum[0][m] = S::fma(S::load(from + m * W), weight, sum[0][m]);
    }
    SATEN_UNROLL for (size_t m = 0; m < M; ++m) {
      F total = sum[0][m];
      SATEN_UNROLL for (size_t c = 1; c < kChains; ++c) total = S::add(total, sum[c][m]);
      S::store(sums + m * W, total);
    }
  }
}

// M row vectors of the single outputs [first, last): strip by strip to a buffer, which is transposed into y. Few rows
// fit the nearest cache whole.
template <class S, class V, class I, size_t M>
void single_step(const BlockCall& call, size_t first, size_t last, size_t row) {
  constexpr size_t W = S::width;
  const size_t at_once = M == S::kSingleVectors ? 1 : call.strips;
  alignas(64) float sums[kSingleOutputs][M * W];
  for (size_t strip = 0; strip < call.strips; strip += at_once) {
    const uint32_t* const starts = call.splits + strip * call.panels + first;
    add_singles<S, V, I, M>(call, starts, starts + at_once * call.panels, row, last - first, strip == 0, sums[0]);
  }
  for (size_t k = 0; call.scale && k < last - first; ++k)
    for (size_t m = 0; m < M; ++m)
      S::store(sums[k] + m * W, S::mul(S::load(sums[k] + m * W), S::template spread<W>(call.scale + first + k)));
  const size_t outputs = last - first, whole = outputs / W * W;
  for (size_t m = 0; m < M; ++m) {
    alignas(64) float turned[W][kSingleOutputs];
    for (size_t k = 0; k < outputs; k += S::kTurn)
      for (size_t r = 0; r < W; r += S::kTurn) S::transpose(&sums[k][m * W + r], M * W, &turned[r][k], kSingleOutputs);
    for (size_t r = 0; r < W && row + m * W + r < call.rows; ++r) {
      const Target to = Target{call.y, call.y_stride, call.addend, call.addend_stride}.at(row + m * W + r, first - call.first);
      for (size_t k = 0; k < whole; k += W)
        S::store(to.y + k, to.addend ? S::add(S::load(to.addend + k), S::load(turned[r] + k)) : S::load(turned[r] + k));
      for (size_t k = whole; k < outputs; ++k) to.y[k] = to.addend ? to.addend[k] + turned[r][k] : turned[r][k];
    }
  }
}

template <class S, class V, class I>
void many_rows_of_singles(const BlockCall& call) {
  constexpr size_t W = S::width, kMost = S::kSingleVectors, kHalf = kMost / 2;
  for (size_t first = call.first; first < call.last; first += kSingleOutputs) {
    const size_t last = first + kSingleOutputs < call.last ? first + kSingleOutputs : call.last;
    size_t row = 0;
    for (; row + (kMost - 1) * W < call.rows; row += kMost * W) single_step<S, V, I, kMost>(call, first, last, row);
    for (; row + (kHalf - 1) * W < call.rows; row += kHalf * W) single_step<S, V, I, kHalf>(call, first, last, row);
    for (; row < call.rows; row += W) single_step<S, V, I, 1>(call, first, last, row);
  }
}

template <class S, size_t G, class V, class I>
void blocks(const BlockCall& call) {
  if (call.x_stride == 1) return one_row<S, G, V, I>(call);
  if constexpr (G == 1)
    many_rows_of_singles<S, V, I>(call);
  else
    call.addend ? many_rows<S, G, V, I, true>(call) : many_rows<S, G, V, I, false>(call);
}

// The dense product: M rows × N panels in registers.
template <class S>
struct DenseShape {
  static constexpr size_t kVectors = kPanel / S::width;  // per panel
  static constexpr size_t kMost = S::kAccumulators / kVectors < 8 ? S::kAccumulators / kVectors : 8;
  static constexpr size_t kFew = kMost >= 4 ? kMost / 4 : 1;
  static constexpr size_t kPanels = S::kAccumulators / (kVectors * kMost);
};

template <class S, size_t M, size_t N>
void dense_step(const FloatCall& call, size_t row, size_t panel) {
  using F = typename S::F;
  constexpr size_t V = DenseShape<S>::kVectors;
  const size_t inputs = call.inputs, x_stride = call.x_stride, y_stride = call.y_stride;
  const float* x = call.x + row;
  const float* weights = call.values + panel * inputs * kPanel;
  F sum[M][N][V];
  SATEN_UNROLL for (size_t m = 0; m < M; ++m)
    SATEN_UNROLL for (size_t n = 0; n < N; ++n)
      SATEN_UNROLL for (size_t v = 0; v < V; ++v) sum[m][n][v] = S::zero();
  for (size_t k = 0; k < inputs; ++k, x += x_stride, weights += kPanel) {
    F weight[N][V];
    SATEN_UNROLL for (size_t n = 0; n < N; ++n)
      SATEN_UNROLL for (size_t v = 0; v < V; ++v) weight[n][v] = S::load(weights + n * inputs * kPanel + v * S::width);
    SATEN_UNROLL for (size_t m = 0; m < M; ++m) {
      const F input = S::template repeat<1>(x + m);
      SATEN_UNROLL for (size_t n = 0; n < N; ++n)
        SATEN_UNROLL for (size_t v = 0; v < V; ++v) sum[m][n][v] = S::fma(input, weight[n][v], sum[m][n][v]);
    }
  }
  float* const y = call.y + row * y_stride + (panel - call.first) * kPanel;
  const size_t rows = call.rows - row;
  SATEN_UNROLL for (size_t m = 0; m < M; ++m)
    if (m < rows)
      SATEN_UNROLL for (size_t n = 0; n < N; ++n)
        SATEN_UNROLL for (size_t v = 0; v < V; ++v) S::store(y + m * y_stride + n * kPanel + v * S::width, sum[m][n][v]);
}

template <class S, size_t M, size_t N>
void dense_panels(const FloatCall& call, size_t row, size_t panel, size_t count) {
  if (count == N) return dense_step<S, M, N>(call, row, panel);
  if constexpr (N > 1) dense_panels<S, M, N - 1>(call, row, panel, count);
}

// One row: several inputs are in flight.
template <class S>
void dense_row(const FloatCall& call) {
  using F = typename S::F;
  constexpr size_t V = DenseShape<S>::kVectors, kChains = V >= 4 ? 1 : 4 / V;
  for (size_t panel = call.first; panel < call.last; ++panel) {
    const float* weights = call.values + panel * call.inputs * kPanel;
    F sum[kChains][V];
    SATEN_UNROLL for (size_t c = 0; c < kChains; ++c)
      SATEN_UNROLL for (size_t v = 0; v < V; ++v) sum[c][v] = S::zero();
    const auto add = [&](size_t k, F(&into)[V]) __attribute__((always_inline)) {
      const F input = S::template repeat<1>(call.x + k);
      SATEN_UNROLL for (size_t v = 0; v < V; ++v)
        into[v] = S::fma(input, S::load(weights + k * kPanel + v * S::width), into[v]);
    };
    size_t k = 0;
    for (; k + kChains <= call.inputs; k += kChains) {
      SATEN_UNROLL for (size_t c = 0; c < kChains; ++c) add(k + c, sum[c]);
    }
    for (; k < call.inputs; ++k) add(k, sum[0]);
    SATEN_UNROLL for (size_t v = 0; v < V; ++v) {
      SATEN_UNROLL for (size_t c = 1; c < kChains; ++c) sum[0][v] = S::add(sum[0][v], sum[c][v]);
      S::store(call.y + (panel - call.first) * kPanel + v * S::width, sum[0][v]);
    }
  }
}

template <class S>
void dense(const FloatCall& call) {
  using Form = DenseShape<S>;
  if (call.x_stride == 1) return dense_row<S>(call);
  for (size_t panel = call.first, count; panel < call.last; panel += count) {
    count = even_share(call.last - panel, Form::kPanels);
    size_t row = 0;
    for (; row + Form::kMost - Form::kFew < call.rows; row += Form::kMost)
      dense_panels<S, Form::kMost, Form::kPanels>(call, row, panel, count);
    for (; row < call.rows; row += Form::kFew) dense_panels<S, Form::kFew, Form::kPanels>(call, row, panel, count);
  }
}

// x (rows, columns) → tile (columns, tile_stride), zeros in the rows beyond.
template <class S>
void transpose_tile(const float* x, size_t x_stride, size_t rows, size_t columns, float* tile, size_t tile_stride) {
  constexpr size_t W = S::kTurn;
  for (size_t row = 0; row < tile_stride; row += W) {
    size_t column = 0;
    if (row + W <= rows)
      for (; column + W <= columns; column += W)
        S::transpose(x + row * x_stride + column, x_stride, tile + column * tile_stride + row, tile_stride);
    for (; column < columns; ++column)
      for (size_t r = row; r < row + W; ++r) tile[column * tile_stride + r] = r < rows ? x[r * x_stride + column] : 0;
  }
}

// One row of x as x ≈ (code − zero) · scale; the range is widened to hold 0, as DynamicQuantizeLinear does.
template <class S>
void quantize_row(const float* x, size_t columns, uint8_t* codes, float* scale, int32_t* zero) {
  using F = typename S::F;
  constexpr size_t W = S::width;
  F lowest = S::zero(), highest = S::zero();
  size_t k = 0;
  for (; k + W <= columns; k += W) {
    lowest = S::smaller(lowest, S::load(x + k));
    highest = S::larger(highest, S::load(x + k));
  }
  float low = S::least(lowest), high = S::most(highest);
  for (; k < columns; ++k) {
    low = x[k] < low ? x[k] : low;
    high = x[k] > high ? x[k] : high;
  }
  const float range = high - low;
  const bool usable = range > 255 * FLT_MIN && range < INFINITY;  // else every code is 0
  *scale = usable ? range / 255 : 1;
  const float shift = usable ? __builtin_nearbyintf(-low / *scale) : 0;
  const float inverse = usable ? 1 / *scale : 0;
  *zero = static_cast<int32_t>(shift);
  bool sound = range < INFINITY;
  for (k = 0; k + W <= columns; k += W) sound &= S::codes(S::load(x + k), inverse, shift, codes + k);
  for (; k < columns; ++k) {
    const float code = __builtin_nearbyintf(x[k] * inverse + shift);
    codes[k] = static_cast<uint8_t>(code > 0 ? (code < 255 ? code : 255) : 0);
    sound &= x[k] == x[k];
  }
  if (!sound) *scale = NAN;  // NaN or infinity among the inputs: the outputs say so
}

// Writes one row of one panel: (sum − zero · weights) · scales. Unsigned, so that what cancels may wrap.
inline void write_panel(const QuantizedCall& call, size_t row, size_t panel, const int32_t* sums) {
  const size_t first = panel * kPanel;
  const uint32_t zero = static_cast<uint32_t>(call.x_zero[row]);
  float* y = call.y + row * call.y_stride + first - call.first * kPanel;
  for (size_t k = 0; k < kPanel; ++k) {
    const uint32_t exact = static_cast<uint32_t>(sums[k]) - zero * static_cast<uint32_t>(call.sums[first + k]);
    y[k] = static_cast<float>(static_cast<int32_t>(exact)) * (call.x_scale[row] * call.scale[first + k]);
  }
}

// Φ(x) x = (1 + erf(x / √2)) x / 2. Up to |z| = 3.9, beyond which it rounds to 1, erf(z) is z P(z²) / Q(z²) within
// 1.5e-8: coefficients fitted by repeated weighted least squares to the largest error. NaN stays NaN.
template <class S>
typename S::F gelu(typename S::F x) {
  using F = typename S::F;
  static constexpr float kP[] = {1.12837899f, 0.1919415f, 0.0529669859f, 0.00383689813f, 0.00028745798f, 2.050386e-06f};
  static constexpr float kQ[] = {1.f, 0.503435493f, 0.114758402f, 0.0151092475f, 0.0011817402f, 3.82307662e-05f};
  static constexpr float kMost = 3.9f, kLeast = -3.9f, kRootHalf = 0.70710678f, kHalf = 0.5f;
  const auto each = [](const float& v) { return S::template spread<S::width>(&v); };
  const F z = S::larger(each(kLeast), S::smaller(each(kMost), S::mul(x, each(kRootHalf)))), square = S::mul(z, z);
  F p = each(kP[5]), q = each(kQ[5]);
  SATEN_UNROLL for (int k = 4; k >= 0; --k) {
    p = S::fma(p, square, each(kP[k]));
    q = S::fma(q, square, each(kQ[k]));
  }
  const F half = S::mul(x, each(kHalf));
  return S::fma(half, S::div(S::mul(z, p), q), half);
}

template <class S>
void finish(float* y, size_t y_stride, size_t rows, size_t columns, const float* bias, Activation activation) {
  constexpr size_t W = S::width;
  const auto one = [&](float* to, const float* added) {
    const typename S::F sum = S::add(S::load(to), S::load(added));
    S::store(to, activation == Activation::gelu ? gelu<S>(sum) : sum);
  };
  for (size_t row = 0; row < rows; ++row, y += y_stride) {
    size_t k = 0;
    for (; k + W <= columns; k += W) one(y + k, bias + k);
    if (k == columns) continue;
    float rest[W] = {}, added[W] = {};
    std::memcpy(rest, y + k, (columns - k) * sizeof(float));
    std::memcpy(added, bias + k, (columns - k) * sizeof(float));
    one(rest, added);
    std::memcpy(y + k, rest, (columns - k) * sizeof(float));
  }
}

template <class S>
Kernels make_kernels(const char* isa, bool (*supported)(), void (*quantized)(const QuantizedCall&)) {
  Kernels made{};
  made.isa = isa;
  made.supported = supported;
#define SATEN_FILL(value, V, G, index, I) \
  made.blocks[int(Value::value)][group_slot(G)][int(Index::index)] = &blocks<S, G, V, I>;
  SATEN_BLOCK_KERNELS(SATEN_FILL)
#undef SATEN_FILL
#define SATEN_ROWS(G)                                      \
  made.tile_rows[group_slot(G)] = Shape<S, G>::kTileRows;  \
  made.row_quantum[group_slot(G)] = Shape<S, G>::kQuantum; \
  made.direct[group_slot(G)] = Shape<S, G>::kDirect;
  SATEN_ROWS(1) SATEN_ROWS(4) SATEN_ROWS(8) SATEN_ROWS(16) SATEN_ROWS(32)
#undef SATEN_ROWS
  made.turn = S::kTurn;
  made.float_rows = DenseShape<S>::kMost > S::kTurn ? DenseShape<S>::kMost : S::kTurn;
  made.transpose = &transpose_tile<S>;
  made.quantize = &quantize_row<S>;
  made.floats = &dense<S>;
  made.quantized = quantized;
  made.finish = &finish<S>;
  return made;
}

}  // namespace
}  // namespace saten
