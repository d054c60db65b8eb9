// ONNX Runtime's C API with exceptions inside and statuses outside.
#pragma once

#include <onnxruntime_c_api.h>

#include <stdexcept>
#include <string>

#include "matrices.h"

namespace saten {

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Api {
 public:
  explicit Api(const OrtApi* api) : api(*api) {}
  // Throws Failure, with the status's words.
  void check(OrtStatus* status) const {
    if (!status) return;
    const std::string words = api.GetErrorMessage(status);
    api.ReleaseStatus(status);
    throw Failure(words);
  }
  const OrtApi& api;
};

// Runs what may throw and hands the words over: no exception leaves this library.
template <class Body>
OrtStatus* guarded(const OrtApi& api, const std::string& where, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Refusal& cause) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, (where + ": " + cause.what()).c_str());
  } catch (const std::exception& cause) {
    return api.CreateStatus(ORT_FAIL, (where + ": " + cause.what()).c_str());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "saten-kernels: unknown failure");
  }
}

}  // namespace saten
