#include "ort_ops.h"

#include <memory>

#include "node.h"

namespace saten {
namespace {

// The oldest that has ParallelFor; ONNX Runtime 1.17 brought it, and every later one still offers it.
constexpr uint32_t kApiVersion = 17;
constexpr char kOldest[] = "1.23";

// A form as ONNX Runtime wants it described.
struct Op : OrtCustomOp {
  explicit Op(Form form);

  const Form form;
};

Op::Op(Form of) : OrtCustomOp{}, form(std::move(of)) {
  version = kApiVersion;
  GetName = [](const OrtCustomOp* op) { return static_cast<const Op*>(op)->form.name.c_str(); };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  GetInputTypeCount = [](const OrtCustomOp* op) { return static_cast<const Op*>(op)->form.input_count; };
  // Weights may come in several types; the kernel checks them when it is made.
  GetInputType = [](const OrtCustomOp* op, size_t index) {
    const Form& form = static_cast<const Op*>(op)->form;
    if (index >= form.given()) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    return form.kind == Kind::embedding ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  };
  GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  GetVariadicInputMinArity = GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetVariadicOutputMinArity = GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  GetStartVersion = [](const OrtCustomOp*) { return 1; };
  GetEndVersion = [](const OrtCustomOp*) { return 1; };
  CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    const Op& own = *static_cast<const Op*>(op);
    return guarded(*api, own.form.name, [&] { *kernel = new Node(own.form, api, info); });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const Node& own = *static_cast<const Node*>(kernel);
    return guarded(own.ort.api, own.form.name, [&] { own.compute(context); });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
}

// Kept for as long as the library: sessions point to them.
struct Ops {
  std::vector<std::unique_ptr<Op>> all;
  Ops() {
    for (Form& form : all_forms()) all.push_back(std::make_unique<Op>(std::move(form)));
  }
};

}  // namespace
}  // namespace saten

OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace saten;
  const OrtApi* c_api = base->GetApi(kApiVersion);
  if (!c_api) {
    // Every ONNX Runtime has the first version, whose beginning holds all that an error needs.
    const std::string words = std::string("saten-kernels ") + saten_kernels_version() + " needs onnxruntime " + kOldest +
                              " or newer, found " + base->GetVersionString();
    return base->GetApi(1)->CreateStatus(ORT_FAIL, words.c_str());
  }
  return guarded(*c_api, "saten-kernels", [&] {
    static const Ops ops;
    const Api ort(c_api);
    kernels();  // says now what SATEN_KERNELS_ISA has wrong
    OrtCustomOpDomain* domain = nullptr;
    ort.check(ort.api.CreateCustomOpDomain("saten", &domain));
    for (const auto& op : ops.all) ort.check(ort.api.CustomOpDomain_Add(domain, op.get()));
    ort.check(ort.api.AddCustomOpDomain(options, domain));
  });
}

const char* saten_kernels_isa() {
  try {
    return saten::kernels().isa;
  } catch (const std::exception& cause) {
    static thread_local std::string words;
    words = cause.what();
    return words.c_str();
  }
}

const char* saten_kernels_version() { return SATEN_KERNELS_VERSION; }
