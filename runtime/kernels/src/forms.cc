#include "forms.h"

namespace saten {
namespace {

constexpr NamedKind kKinds[] = {
    {Kind::linear, "Linear", {&kNothing, &kGrouped, &kCsr, &kNOfM}},
    {Kind::embedding, "Embedding", {&kNothing, &kRows, &kSparse}},
    // Whole rows of a table are dense: their function body multiplies them as fast.
    {Kind::head, "Head", {&kNothing, &kSparse}},
};

constexpr NamedEpilogue kNoEpilogue{"", false, Activation::none};
constexpr NamedEpilogue kBias{"Bias", true, Activation::none};
constexpr NamedEpilogue kBiasGelu{"BiasGelu", true, Activation::gelu};

}  // namespace

Form::Form(const NamedKind& row, const Part& train, const Part& residual, bool quantized, const NamedEpilogue& epilogue)
    : kind(row.kind), train(&train), residual(&residual), quantized(quantized), epilogue(&epilogue) {
  name = std::string(train.stem) + residual.stem + row.stem + (quantized ? "Int8" : "") + epilogue.suffix;
  inputs[input_count++] = "x";
  for (const Part* part : {&train, &residual})
    for (const char* input : quantized ? part->codes : part->floats)
      if (input) inputs[input_count++] = input;
  if (epilogue.with_bias) inputs[input_count++] = "bias";
}

Form::Form(bool masked, bool narrow)
    : kind(Kind::attention), train(&kNothing), residual(&kNothing), quantized(false), narrow(narrow), epilogue(&kNoEpilogue) {
  name = std::string(masked ? "Masked" : "") + "MultiHeadAttention" + (narrow ? "Bf16" : "");
  for (const char* input : {"queries", "keys", "values"}) inputs[input_count++] = input;
  if (masked) inputs[input_count++] = "mask";
}

std::vector<Form> all_forms() {
  std::vector<Form> all;
  for (bool masked : {false, true})
    for (bool narrow : {false, true}) all.emplace_back(masked, narrow);
  for (bool quantized : {false, true})
    for (const NamedKind& row : kKinds)
      for (const Part* train : {&kNothing, &kLowRank})
        for (const Part* residual : row.residuals) {
          if (!residual || (train == &kNothing && residual == &kNothing)) continue;
          for (const NamedEpilogue* epilogue : {&kNoEpilogue, &kBias, &kBiasGelu})
            if (row.kind == Kind::linear || !epilogue->with_bias) all.emplace_back(row, *train, *residual, quantized, *epilogue);
        }
  return all;
}

}  // namespace saten
