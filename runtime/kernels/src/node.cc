#include "node.h"

#include <cstring>
#include <memory>

namespace saten {
namespace {

Type type_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return Type::f32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return Type::f16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: return Type::s8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return Type::u8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16: return Type::u16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return Type::s32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return Type::s64;
    default: return Type::other;
  }
}

Tensor tensor_of(const Api& ort, const char* name, const OrtValue* value) {
  Tensor tensor;
  tensor.name = name;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ort.check(ort.api.GetTensorTypeAndShape(value, &info));
  const auto release = [&](OrtTensorTypeAndShapeInfo* p) { ort.api.ReleaseTensorTypeAndShapeInfo(p); };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> owned(info, release);
  ONNXTensorElementDataType type;
  ort.check(ort.api.GetTensorElementType(info, &type));
  tensor.type = type_of(type);
  size_t axes = 0;
  ort.check(ort.api.GetDimensionsCount(info, &axes));
  tensor.shape.resize(axes);
  ort.check(ort.api.GetDimensions(info, tensor.shape.data(), axes));
  void* data = nullptr;
  ort.check(ort.api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

Weights weights_of(const Form& form, const Api& ort, const OrtKernelInfo* info) {
  Weights weights;
  for (size_t k = form.given(); k < form.input_count; ++k) {
    int constant = 0;
    const OrtValue* value = nullptr;
    ort.check(ort.api.KernelInfoGetConstantInput_tensor(info, k, &constant, &value));
    if (!constant || !value) throw Refusal(std::string(form.inputs[k]) + " is not constant; weights must be");
    weights.add(tensor_of(ort, form.inputs[k], value));
  }
  return weights;
}

Layer layer_of(const Form& form, const Api& ort, const OrtKernelInfo* info) {
  if (form.kind != Kind::attention) return build(form, weights_of(form, ort, info));
  int64_t heads = 0;
  float scale = 0;
  ort.check(ort.api.KernelInfoGetAttribute_int64(info, "heads", &heads));
  ort.check(ort.api.KernelInfoGetAttribute_float(info, "scale", &scale));
  return Attention(heads, scale, form.narrow);
}

// Memory for one call: what a row or two need lies on the stack, as asking the allocator costs as much as a small layer.
class ScratchMemory {
 public:
  explicit ScratchMemory(OrtAllocator* allocator) : allocator_(allocator) {}
  ~ScratchMemory() {
    if (taken_) allocator_->Free(allocator_, taken_);
  }
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;

  void* take(size_t bytes) {
    if (bytes <= sizeof near_) return near_;
    taken_ = allocator_->Alloc(allocator_, bytes + kCacheLine);
    if (!taken_) throw std::bad_alloc();
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(taken_) + kCacheLine - 1) & ~(kCacheLine - 1));
  }

 private:
  static constexpr uintptr_t kCacheLine = 64;

  OrtAllocator* const allocator_;
  void* taken_ = nullptr;
  alignas(kCacheLine) char near_[1 << 14];
};

// What one call reads and writes.
class Context {
 public:
  Context(const Form& form, const Api& ort, OrtKernelContext* context) : form_(form), ort_(ort), context_(context) {}

  const OrtValue* input(size_t k) const {
    const OrtValue* value = nullptr;
    ort_.check(ort_.api.KernelContext_GetInput(context_, k, &value));
    return value;
  }
  float* output(const std::vector<int64_t>& shape) const {
    OrtValue* value = nullptr;
    void* data = nullptr;
    ort_.check(ort_.api.KernelContext_GetOutput(context_, 0, shape.data(), shape.size(), &value));
    ort_.check(ort_.api.GetTensorMutableData(value, &data));
    return static_cast<float*>(data);
  }
  void parallel(size_t count, const std::function<void(size_t)>& task) const {
    if (count == 1) return task(0);
    using Task = std::function<void(size_t)>;
    const auto one = [](void* user, size_t k) { (*static_cast<const Task*>(user))(k); };
    ort_.check(ort_.api.KernelContext_ParallelFor(context_, one, count, 0, const_cast<Task*>(&task)));
  }
  Stored stored(const char* floats, const char* codes, const char* scale) const {
    if (!form_.quantized) return {static_cast<const float*>(data(floats)), nullptr, nullptr};
    return {nullptr, static_cast<const int8_t*>(data(codes)), static_cast<const float*>(data(scale))};
  }
  // The weights are read where the session keeps them: a table is too large to be copied.
  Table table() const {
    Table table;
    if (form_.has_train()) table.a = stored("a", "a", "a_scale");
    if (form_.has(kRows)) table.rows = stored("rows", "codes", "scale");
    if (form_.has(kSparse)) table.entries = stored("entries", "codes", "scale");
    return table;
  }

 private:
  const void* data(const char* name) const {
    size_t k = 1;
    while (std::strcmp(form_.inputs[k], name) != 0) ++k;
    void* data = nullptr;
    ort_.check(ort_.api.GetTensorMutableData(const_cast<OrtValue*>(input(k)), &data));
    return data;
  }

  const Form& form_;
  const Api& ort_;
  OrtKernelContext* const context_;
};

}  // namespace

Node::Node(const Form& form, const OrtApi* api, const OrtKernelInfo* info)
    : form(form), ort(api), kernels_(kernels()), layer_(layer_of(form, ort, info)) {
  ort.check(ort.api.KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator_));
}

Node::~Node() {
  if (allocator_) ort.api.ReleaseAllocator(allocator_);
}

void Node::compute(OrtKernelContext* c_context) const {
  const Context context(form, ort, c_context);
  ScratchMemory memory(allocator_);
  const Scratch scratch = [&](size_t bytes) { return memory.take(bytes); };
  const ParallelFor parallel = [&](size_t count, const std::function<void(size_t)>& task) { context.parallel(count, task); };

  const auto input = [&](size_t k) { return tensor_of(ort, form.inputs[k], context.input(k)); };
  if (const Attention* attention = std::get_if<Attention>(&layer_)) {
    std::vector<Tensor> given;
    for (size_t k = 0; k < form.given(); ++k) given.push_back(input(k));
    const Attended attended(*attention, given[0], given[1], given[2], given.size() > 3 ? &given[3] : nullptr);
    attention->run(kernels_, attended, context.output(attended.shape()), scratch, parallel);
    return;
  }
  Tensor x = input(0);
  const size_t size = x.size();
  std::vector<int64_t> shape = std::move(x.shape);
  if (const Linear* linear = std::get_if<Linear>(&layer_)) {
    if (shape.empty()) throw Refusal("x has no axes");
    const size_t columns = static_cast<size_t>(shape.back());
    linear->expect_inputs(columns);
    shape.back() = static_cast<int64_t>(linear->outputs());
    size_t rows = 1;
    for (size_t k = 0; k + 1 < shape.size(); ++k) rows *= static_cast<size_t>(shape[k]);
    linear->run(kernels_, static_cast<const float*>(x.data), rows, columns, context.output(shape), scratch, parallel);
    return;
  }
  const Embedding& embedding = std::get<Embedding>(layer_);
  shape.push_back(static_cast<int64_t>(embedding.width()));
  embedding.run(kernels_, context.table(), static_cast<const int64_t*>(x.data), size, context.output(shape), scratch,
                parallel);
}

}  // namespace saten
