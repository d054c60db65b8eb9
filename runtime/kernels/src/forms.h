// The operators of the domain `saten`: the forms of saten_exporters that have a kernel, with their inputs in order.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

#include "kernel_table.h"

namespace saten {

// A layer is a train, a residual, or the sum of both.
struct Part {
  const char* stem;
  const char* floats[5];  // its inputs
  const char* codes[5];   // those in int8
};
inline constexpr Part kNothing{"", {}, {}};
inline constexpr Part kLowRank{"LowRank", {"a", "b"}, {"a", "a_scale", "b", "b_scale"}};
inline constexpr Part kGrouped{"Grouped", {"indices", "blocks"}, {"indices", "codes", "scale"}};
inline constexpr Part kCsr{"Csr", {"indptr", "indices", "stored", "shape"}, {"indptr", "indices", "stored", "scale", "shape"}};
inline constexpr Part kNOfM{"NOfM", {"outputs", "codes", "stored", "sizes"}, {"outputs", "codes", "stored", "scale", "sizes"}};
inline constexpr Part kRows{"Rows", {"slots", "rows"}, {"slots", "codes", "scale"}};
inline constexpr Part kSparse{"Sparse", {"columns", "entries", "width"}, {"columns", "codes", "scale", "width"}};

// What a node does with its weights. A head multiplies by the transpose of a table that an embedding looks up. An
// attention has no weights.
enum class Kind { linear, embedding, head, attention };

struct NamedKind {
  Kind kind;
  const char* stem;
  const Part* residuals[4];  // what may stand beside a train or alone
};

// What may follow a linear layer in the same node.
struct NamedEpilogue {
  const char* suffix;
  bool with_bias;
  Activation activation;
};

// One operator: its name, and its inputs, those that are no weights first.
struct Form {
  Form(const NamedKind& kind, const Part& train, const Part& residual, bool quantized, const NamedEpilogue& epilogue);
  // An attention, with or without numbers that are added to its scores; narrow: its products may take bfloat16.
  Form(bool masked, bool narrow);

  bool has_train() const { return train == &kLowRank; }
  bool has(const Part& part) const { return residual == &part; }
  size_t given() const { return kind == Kind::attention ? input_count : 1; }  // inputs that are no weights

  Kind kind;
  const Part* train;
  const Part* residual;
  bool quantized;
  bool narrow = false;
  const NamedEpilogue* epilogue;
  std::string name;
  std::array<const char*, 11> inputs{};
  size_t input_count = 0;
};

// Every form that has a kernel.
std::vector<Form> all_forms();

}  // namespace saten
