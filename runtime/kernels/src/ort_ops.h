// The operators of the domain `saten`, as ONNX Runtime sees them.
#pragma once

#include <onnxruntime_c_api.h>

// What `register_custom_ops_library` calls. Returns a status that says what to do where this ONNX Runtime is too old.
extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);
// The instruction set in use, or the error that keeps any from being used.
extern "C" __attribute__((visibility("default"))) const char* saten_kernels_isa();
extern "C" __attribute__((visibility("default"))) const char* saten_kernels_version();
