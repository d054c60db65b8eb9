// The block kernels, written once over `Simd`, the vectors of one instruction set. A vector holds R rows × G outputs
// of y: where blocks are narrower than a vector, R = width / G rows share it; where they are wider, R = 1 and a
// block takes N vectors. Either way one multiply-add takes one load of x, and no lane is idle.
#pragma once

#include "simd.inl"

namespace saten {
namespace {

// Single outputs whose sums stay near while the strips of inputs pass by.
constexpr size_t kSingleOutputs = 64;

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

}  // namespace
}  // namespace saten
