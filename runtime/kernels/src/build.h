// Layers from the weights of a node, which are checked and repacked here.
#pragma once

#include <variant>
#include <vector>

#include "forms.h"
#include "layers.h"

namespace saten {

// The weights of a node by name.
class Weights {
 public:
  void add(Tensor tensor) { tensors_.push_back(std::move(tensor)); }
  // Throws std::logic_error: there is none of that name.
  const Tensor& operator[](const char* name) const;

 private:
  std::vector<Tensor> tensors_;
};

using Layer = std::variant<Linear, Embedding, Attention>;

// Of any form but an attention. Throws Refusal: weights of a wrong type or size, or with an index out of range.
Layer build(const Form& form, const Weights& weights);

}  // namespace saten
