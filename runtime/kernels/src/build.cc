#include "build.h"

#include <cstring>

namespace saten {

const Tensor& Weights::operator[](const char* name) const {
  for (const Tensor& each : tensors_)
    if (std::strcmp(each.name, name) == 0) return each;
  throw std::logic_error(std::string("no input ") + name);
}

namespace {

const Tensor* scale_of(const Form& form, const Weights& w) { return form.quantized ? &w["scale"] : nullptr; }

void expect_scale(const Tensor& scale, size_t count, const char* why) {
  scale.expect_type({Type::f32});
  scale.expect_size(count, why);
}

// Linear layers.

std::optional<LowRank> train_of(const Form& form, const Weights& w) {
  if (!form.has_train()) return {};
  if (form.quantized) return LowRank{Factor(w["a"], w["a_scale"]), Factor(w["b"], w["b_scale"])};
  return LowRank{Factor(w["a"]), Factor(w["b"])};
}

BlockMatrix rows_of(const Form& form, const Weights& w) {
  const Tensor& shape = w["shape"];
  shape.expect_type({Type::s64});
  shape.expect_size(2, "outputs and inputs");
  const int64_t outputs = shape.integer(0), inputs = shape.integer(1);
  if (outputs < 0 || inputs < 0 || inputs > INT32_MAX || outputs > INT32_MAX) throw Refusal("shape is out of range");
  return BlockMatrix::from_rows(kernels(), w["indptr"], w["indices"], w["stored"], scale_of(form, w),
                                static_cast<size_t>(inputs), static_cast<size_t>(outputs));
}

BlockMatrix nofm_of(const Form& form, const Weights& w) {
  const Tensor& sizes = w["sizes"];
  sizes.expect_type({Type::s64});
  sizes.expect_size(4, "inputs, outputs, n and m");
  for (size_t k = 0; k < 4; ++k)
    if (sizes.integer(k) < 0 || sizes.integer(k) > INT32_MAX) throw Refusal("sizes is out of range");
  const auto size = [&](size_t k) { return static_cast<size_t>(sizes.integer(k)); };
  return BlockMatrix::from_codes(kernels(), {size(0), size(1), size(2), size(3)}, w["outputs"], w["codes"], w["stored"],
                                 scale_of(form, w));
}

std::optional<BlockMatrix> residual_of(const Form& form, const Weights& w) {
  if (form.has(kNothing)) return {};
  if (form.has(kCsr)) return rows_of(form, w);
  if (form.has(kNOfM)) return nofm_of(form, w);
  return BlockMatrix::from_groups(kernels(), w["indices"], w[form.quantized ? "codes" : "blocks"], scale_of(form, w));
}

Epilogue epilogue_of(const Form& form, const Weights& w) {
  if (!form.epilogue->with_bias) return {};
  const Tensor& bias = w["bias"];
  bias.expect_axes(1);
  bias.expect_type({Type::f32});
  const float* const values = static_cast<const float*>(bias.data);
  return {{values, values + bias.size()}, form.epilogue->activation};
}

// Tables, for embeddings and heads.

size_t width_of_entries(const Weights& w) {
  w["width"].expect_type({Type::s64});
  w["width"].expect_size(1, "the width of the table");
  const int64_t width = w["width"].integer(0);
  if (width < 0 || width > INT32_MAX) throw Refusal("width is out of range");
  return static_cast<size_t>(width);
}

size_t table_width(const Form& form, const Weights& w) {
  if (!form.has_train() && form.has(kSparse)) return width_of_entries(w);
  const Tensor& wide = w[form.has_train() ? "b" : form.quantized ? "codes" : "rows"];
  wide.expect_axes(2);
  return wide.axis(1);
}

Type stored_type(const Form& form) { return form.quantized ? Type::s8 : Type::f32; }

// B of a table (rows, …) = A B.
Factor table_factor(const Form& form, const Weights& w, size_t rows) {
  const Tensor& a = w["a"];
  a.expect_type({stored_type(form)});
  if (form.quantized) expect_scale(w["a_scale"], rows, "one for each row of the table");
  Factor b = form.quantized ? Factor(w["b"], w["b_scale"]) : Factor(w["b"]);
  if (b.inputs() != a.axis(1)) throw Refusal("a and b differ in rank");
  return b;
}

// How many whole rows are stored.
size_t expect_rows(const Form& form, const Weights& w, size_t width) {
  const Tensor& values = w[form.quantized ? "codes" : "rows"];
  values.expect_axes(2);
  values.expect_type({stored_type(form)});
  const size_t stored = values.axis(0);
  values.expect_size(stored * width, "rows as wide as the table");
  if (form.quantized) expect_scale(w["scale"], stored, "one for each stored row");
  return stored;
}

void expect_entries(const Form& form, const Weights& w, size_t rows, size_t width) {
  const Tensor& values = w[form.quantized ? "codes" : "entries"];
  values.expect_type({stored_type(form)});
  values.expect_size(w["columns"].size(), "one for each column number");
  if (width_of_entries(w) != width) throw Refusal("width is not that of b");
  if (form.quantized) expect_scale(w["scale"], rows, "one for each row of the table");
}

// As many as the train has, or the residual where there is no train.
size_t table_rows(const Form& form, const Weights& w) {
  if (!form.has_train() && form.has(kRows)) return w["slots"].size();
  const Tensor& first = w[form.has_train() ? "a" : "columns"];
  first.expect_axes(2);
  return first.axis(0);
}

// Every table must hold what `Table` says, as lookups trust it.
Embedding embedding_of(const Form& form, const Weights& w) {
  const size_t width = table_width(form, w), rows = table_rows(form, w);
  std::optional<Factor> b;
  std::optional<Tensor> slots, columns;
  size_t stored = 0;
  if (form.has_train()) b.emplace(table_factor(form, w, rows));
  if (form.has(kRows)) {
    slots = w["slots"];
    stored = expect_rows(form, w, width);
  }
  if (form.has(kSparse)) {
    columns = w["columns"];
    expect_entries(form, w, rows, width);
  }
  return Embedding(rows, width, std::move(b), slots, stored, columns);
}

// (rows, columns) → (columns, rows)
template <class T>
std::vector<T> turned(const T* from, size_t rows, size_t columns) {
  std::vector<T> made(rows * columns);
  for (size_t row = 0; row < rows; ++row)
    for (size_t column = 0; column < columns; ++column) made[column * rows + row] = from[row * columns + column];
  return made;
}

Tensor matrix(const char* name, Type type, size_t rows, size_t columns, const void* data) {
  return {name, type, {static_cast<int64_t>(rows), static_cast<int64_t>(columns)}, data};
}

// The scales of B lie along the inputs of Bᵀ, which is small: it becomes floats.
std::vector<float> floats_of_b(const Form& form, const Weights& w) {
  const Tensor& b = w["b"];
  const float* const floats = static_cast<const float*>(b.data);
  if (!form.quantized) return {floats, floats + b.size()};
  const size_t width = b.axis(1);
  expect_scale(w["b_scale"], width, "one for each column of the table");
  const float* const scale = static_cast<const float*>(w["b_scale"].data);
  std::vector<float> numbers(b.size());
  for (size_t k = 0; k < numbers.size(); ++k) numbers[k] = static_cast<const int8_t*>(b.data)[k] * scale[k % width];
  return numbers;
}

// x (A B + S)ᵀ = (x Bᵀ) Aᵀ + x Sᵀ.
std::optional<LowRank> turned_train(const Form& form, const Weights& w) {
  if (!form.has_train()) return {};
  const Tensor &a = w["a"], &b = w["b"];
  for (const Tensor* each : {&a, &b}) {
    each->expect_axes(2);
    each->expect_type({stored_type(form)});
  }
  const size_t rows = a.axis(0), rank = a.axis(1), width = b.axis(1);
  if (b.axis(0) != rank) throw Refusal("a and b differ in rank");
  const std::vector<float> b_turned = turned(floats_of_b(form, w).data(), rank, width);
  Factor first(matrix("b", Type::f32, width, rank, b_turned.data()));
  if (form.quantized) {
    const auto codes = turned(static_cast<const int8_t*>(a.data), rows, rank);
    return LowRank{std::move(first), Factor(matrix("a", a.type, rank, rows, codes.data()), w["a_scale"])};
  }
  const auto floats = turned(static_cast<const float*>(a.data), rows, rank);
  return LowRank{std::move(first), Factor(matrix("a", a.type, rank, rows, floats.data()))};
}

// The entries of each row of the table are those of one output.
std::optional<BlockMatrix> turned_residual(const Form& form, const Weights& w) {
  if (form.has(kNothing)) return {};
  const Tensor& columns = w["columns"];
  columns.expect_axes(2);
  const size_t rows = columns.axis(0), kept = columns.axis(1), width = table_width(form, w);
  if (columns.size() > INT32_MAX) throw Refusal("columns has more than 2^31 elements");
  std::vector<int32_t> starts(rows + 1);
  for (size_t row = 0; row <= rows; ++row) starts[row] = static_cast<int32_t>(row * kept);
  const Tensor at{"starts", Type::s32, {static_cast<int64_t>(starts.size())}, starts.data()};
  const Tensor& stored = w[form.quantized ? "codes" : "entries"];
  return BlockMatrix::from_rows(kernels(), at, columns, stored, scale_of(form, w), width, rows);
}

}  // namespace

Layer build(const Form& form, const Weights& w) {
  if (form.kind == Kind::embedding) return embedding_of(form, w);
  if (form.kind == Kind::head) return Linear(turned_train(form, w), turned_residual(form, w));
  return Linear(train_of(form, w), residual_of(form, w), epilogue_of(form, w));
}

}  // namespace saten
