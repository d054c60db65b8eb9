// One node of one session: its layer, and one call of it.
#pragma once

#include "build.h"
#include "ort_api.h"

namespace saten {

class Node {
 public:
  // Throws Refusal: weights that are not constant or cannot be used.
  Node(const Form& form, const OrtApi* api, const OrtKernelInfo* info);
  ~Node();
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // Throws Refusal: an x that does not fit the weights.
  void compute(OrtKernelContext* context) const;

  const Form& form;
  const Api ort;

 private:
  const Kernels& kernels_;
  const Layer layer_;
  OrtAllocator* allocator_ = nullptr;  // the session's own
};

}  // namespace saten
