#include "ort_ops.h"

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <variant>

#include "layers.h"

namespace saten {
namespace {

// The oldest that has ParallelFor; ONNX Runtime 1.17 brought it, and every later one still offers it.
constexpr uint32_t kApiVersion = 17;
constexpr char kOldest[] = "1.23";
constexpr size_t kMostInputs = 11;

// A layer is a train, a residual, or the sum of both: the forms of saten_exporters, with their inputs in order.
struct Part {
  const char* stem;
  const char* floats[5];
  const char* codes[5];
};
constexpr Part kNothing{"", {}, {}};
constexpr Part kLowRank{"LowRank", {"a", "b"}, {"a", "a_scale", "b", "b_scale"}};
constexpr Part kLinearResiduals[] = {
    kNothing,
    {"Grouped", {"indices", "blocks"}, {"indices", "codes", "scale"}},
    {"Csr", {"indptr", "indices", "stored", "shape"}, {"indptr", "indices", "stored", "scale", "shape"}},
};
constexpr Part kEmbeddingResiduals[] = {
    kNothing,
    {"Rows", {"slots", "rows"}, {"slots", "codes", "scale"}},
    {"Sparse", {"columns", "entries", "width"}, {"columns", "codes", "scale", "width"}},
};

// What a node does with its weights. A head multiplies by the transpose of a table that an embedding looks up.
enum class Kind { linear, embedding, head };
constexpr const char* kKindNames[] = {"Linear", "Embedding", "Head"};

// What may follow a linear layer in the same node.
struct EndingOfName {
  const char* suffix;
  bool with_bias;
  Activation activation;
};
constexpr EndingOfName kEndings[] = {
    {"", false, Activation::none},
    {"Bias", true, Activation::none},
    {"BiasGelu", true, Activation::gelu},
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Frees what the C API allocates.
class Api {
 public:
  explicit Api(const OrtApi* api) : api(*api) {}
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

Type type_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return Type::f32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return Type::f16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8: return Type::s8;
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

// One operator: its name and inputs, and how its kernel is made.
struct Op : OrtCustomOp {
  Op(const Part& train, const Part& residual, Kind kind, bool quantized, const EndingOfName& ending);

  const Part* train;
  const Part* residual;
  const EndingOfName* ending;
  Kind kind;
  bool quantized;
  std::string name;
  std::array<const char*, kMostInputs> inputs{};
  size_t input_count = 0;
};

// The weights of a node by name, all of them constant.
class Weights {
 public:
  Weights(const Op& op, const Api& ort, const OrtKernelInfo* info) {
    for (size_t k = 1; k < op.input_count; ++k) {
      int constant = 0;
      const OrtValue* value = nullptr;
      ort.check(ort.api.KernelInfoGetConstantInput_tensor(info, k, &constant, &value));
      if (!constant || !value) throw Refusal(std::string(op.inputs[k]) + " is not constant; weights must be");
      tensors_.push_back(tensor_of(ort, op.inputs[k], value));
    }
  }
  const Tensor& operator[](const char* name) const {
    for (const Tensor& each : tensors_)
      if (std::strcmp(each.name, name) == 0) return each;
    throw Failure(std::string("no input ") + name);
  }

 private:
  std::vector<Tensor> tensors_;
};

std::optional<LowRank> make_train(const Op& op, const Weights& w) {
  if (op.train == &kNothing) return {};
  if (op.quantized) return LowRank{Factor(w["a"], w["a_scale"]), Factor(w["b"], w["b_scale"])};
  return LowRank{Factor(w["a"]), Factor(w["b"])};
}

std::optional<BlockMatrix> make_residual(const Op& op, const Weights& w) {
  if (op.residual == &kNothing) return {};
  const Tensor* scale = op.quantized ? &w["scale"] : nullptr;
  if (op.residual == &kLinearResiduals[1])
    return BlockMatrix::from_groups(kernels(), w["indices"], w[op.quantized ? "codes" : "blocks"], scale);
  const Tensor& shape = w["shape"];
  shape.expect_type({Type::s64});
  shape.expect_size(2, "outputs and inputs");
  const int64_t outputs = shape.integer(0), inputs = shape.integer(1);
  if (outputs < 0 || inputs < 0 || inputs > INT32_MAX || outputs > INT32_MAX) throw Refusal("shape is out of range");
  return BlockMatrix::from_rows(kernels(), w["indptr"], w["indices"], w["stored"], scale, static_cast<size_t>(inputs),
                                static_cast<size_t>(outputs));
}

Ending make_ending(const Op& op, const Weights& w) {
  if (!op.ending->with_bias) return {};
  const Tensor& bias = w["bias"];
  bias.expect_axes(1);
  bias.expect_type({Type::f32});
  const float* const values = static_cast<const float*>(bias.data);
  return {{values, values + bias.size()}, op.ending->activation};
}

size_t table_width(const Op& op, const Weights& w) {
  if (op.train != &kNothing) {
    w["b"].expect_axes(2);
    return w["b"].axis(1);
  }
  if (op.residual == &kEmbeddingResiduals[2]) {
    w["width"].expect_type({Type::s64});
    w["width"].expect_size(1, "the width of the table");
    const int64_t width = w["width"].integer(0);
    if (width < 0 || width > INT32_MAX) throw Refusal("width is out of range");
    return static_cast<size_t>(width);
  }
  const Tensor& rows = w[op.quantized ? "codes" : "rows"];
  rows.expect_axes(2);
  return rows.axis(1);
}

// Every table must hold what `Table` says, as lookups trust it.
Embedding make_embedding(const Op& op, const Weights& w) {
  const Type stored_type = op.quantized ? Type::s8 : Type::f32;
  const size_t width = table_width(op, w);
  std::optional<Factor> b;
  std::optional<Tensor> slots, columns;
  size_t rows = 0, stored = 0;
  if (op.train != &kNothing) {
    const Tensor& a = w["a"];
    a.expect_axes(2);
    a.expect_type({stored_type});
    rows = a.axis(0);
    if (op.quantized) {
      w["a_scale"].expect_type({Type::f32});
      w["a_scale"].expect_size(rows, "one for each row of the table");
      b.emplace(w["b"], w["b_scale"]);
    } else {
      b.emplace(w["b"]);
    }
    if (b->inputs() != a.axis(1)) throw Refusal("a and b differ in rank");
  }
  if (op.residual == &kEmbeddingResiduals[1]) {
    slots = w["slots"];
    if (op.train == &kNothing) rows = slots->size();
    const Tensor& values = w[op.quantized ? "codes" : "rows"];
    values.expect_axes(2);
    values.expect_type({stored_type});
    stored = values.axis(0);
    values.expect_size(stored * width, "rows as wide as the table");
    if (op.quantized) {
      w["scale"].expect_type({Type::f32});
      w["scale"].expect_size(stored, "one for each stored row");
    }
  }
  if (op.residual == &kEmbeddingResiduals[2]) {
    columns = w["columns"];
    columns->expect_axes(2);
    if (op.train == &kNothing) rows = columns->axis(0);
    const Tensor& values = w[op.quantized ? "codes" : "entries"];
    values.expect_type({stored_type});
    values.expect_size(columns->size(), "one for each column number");
    w["width"].expect_type({Type::s64});
    w["width"].expect_size(1, "the width of the table");
    if (w["width"].integer(0) != static_cast<int64_t>(width)) throw Refusal("width is not that of b");
    if (op.quantized) {
      w["scale"].expect_type({Type::f32});
      w["scale"].expect_size(rows, "one for each row of the table");
    }
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

// x (A B + S)ᵀ = (x Bᵀ) Aᵀ + x Sᵀ. The scales of B lie along the inputs of Bᵀ, which is small: it becomes floats.
std::optional<LowRank> make_turned_train(const Op& op, const Weights& w) {
  if (op.train == &kNothing) return {};
  const Tensor &a = w["a"], &b = w["b"];
  a.expect_axes(2);
  b.expect_axes(2);
  for (const Tensor* each : {&a, &b}) each->expect_type({op.quantized ? Type::s8 : Type::f32});
  const size_t rows = a.axis(0), rank = a.axis(1), width = b.axis(1);
  if (b.axis(0) != rank) throw Refusal("a and b differ in rank");
  Tensor first, second;
  first.name = "b", second.name = "a";
  first.type = Type::f32, second.type = a.type;
  first.shape = {static_cast<int64_t>(width), static_cast<int64_t>(rank)};
  second.shape = {static_cast<int64_t>(rank), static_cast<int64_t>(rows)};
  if (!op.quantized) {
    const auto b_turned = turned(static_cast<const float*>(b.data), rank, width);
    const auto a_turned = turned(static_cast<const float*>(a.data), rows, rank);
    first.data = b_turned.data(), second.data = a_turned.data();
    return LowRank{Factor(first), Factor(second)};
  }
  const Tensor& scale = w["b_scale"];
  scale.expect_type({Type::f32});
  scale.expect_size(width, "one for each column of the table");
  std::vector<float> numbers(rank * width);
  for (size_t k = 0; k < numbers.size(); ++k)
    numbers[k] = static_cast<const int8_t*>(b.data)[k] * static_cast<const float*>(scale.data)[k % width];
  const auto b_turned = turned(numbers.data(), rank, width);
  const auto a_turned = turned(static_cast<const int8_t*>(a.data), rows, rank);
  first.data = b_turned.data(), second.data = a_turned.data();
  return LowRank{Factor(first), Factor(second, w["a_scale"])};
}

// The entries of each row of the table are those of one output.
std::optional<BlockMatrix> make_turned_residual(const Op& op, const Weights& w) {
  if (op.residual == &kNothing) return {};
  const Tensor& columns = w["columns"];
  columns.expect_axes(2);
  const size_t rows = columns.axis(0), kept = columns.axis(1), width = table_width(op, w);
  if (columns.size() > INT32_MAX) throw Refusal("columns has more than 2^31 elements");
  std::vector<int32_t> starts(rows + 1);
  for (size_t row = 0; row <= rows; ++row) starts[row] = static_cast<int32_t>(row * kept);
  Tensor at;
  at.name = "starts";
  at.type = Type::s32;
  at.shape = {static_cast<int64_t>(starts.size())};
  at.data = starts.data();
  const Tensor& stored = w[op.quantized ? "codes" : "entries"];
  return BlockMatrix::from_rows(kernels(), at, columns, stored, op.quantized ? &w["scale"] : nullptr, width, rows);
}

// One node of one session.
struct Kernel {
  Kernel(const Op& op, const OrtApi* c_api, const OrtKernelInfo* info) : op(op), ort(c_api), isa(kernels()) {
    const Weights weights(op, ort, info);
    if (op.kind == Kind::head)
      layer.emplace<Linear>(make_turned_train(op, weights), make_turned_residual(op, weights));
    else if (op.kind == Kind::linear)
      layer.emplace<Linear>(make_train(op, weights), make_residual(op, weights), make_ending(op, weights));
    else
      layer.emplace<Embedding>(make_embedding(op, weights));
    ort.check(ort.api.KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator));
  }
  ~Kernel() {
    if (allocator) ort.api.ReleaseAllocator(allocator);
  }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  void compute(OrtKernelContext* context) const;

  const Op& op;
  const Api ort;
  const Kernels& isa;
  std::variant<std::monostate, Linear, Embedding> layer;
  OrtAllocator* allocator = nullptr;  // the session's own
};

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

void Kernel::compute(OrtKernelContext* context) const {
  const auto input = [&](size_t k) {
    const OrtValue* value = nullptr;
    ort.check(ort.api.KernelContext_GetInput(context, k, &value));
    return tensor_of(ort, op.inputs[k], value);
  };
  const auto output = [&](const std::vector<int64_t>& shape) {
    OrtValue* value = nullptr;
    void* data = nullptr;
    ort.check(ort.api.KernelContext_GetOutput(context, 0, shape.data(), shape.size(), &value));
    ort.check(ort.api.GetTensorMutableData(value, &data));
    return static_cast<float*>(data);
  };
  ScratchMemory memory_of_call(allocator);
  const Scratch scratch = [&](size_t bytes) { return memory_of_call.take(bytes); };
  const ParallelFor parallel = [&](size_t count, const std::function<void(size_t)>& task) {
    if (count == 1) return task(0);
    using Task = const std::function<void(size_t)>;
    ort.check(ort.api.KernelContext_ParallelFor(
        context, [](void* user, size_t k) { (*static_cast<Task*>(user))(k); }, count, 0, const_cast<std::function<void(size_t)>*>(&task)));
  };

  Tensor x = input(0);
  const size_t size = x.size();
  std::vector<int64_t> shape = std::move(x.shape);
  if (const Linear* linear = std::get_if<Linear>(&layer)) {
    if (shape.empty()) throw Refusal("x has no axes");
    const size_t columns = static_cast<size_t>(shape.back());
    linear->expect_inputs(columns);
    shape.back() = static_cast<int64_t>(linear->outputs());
    size_t rows = 1;
    for (size_t k = 0; k + 1 < shape.size(); ++k) rows *= static_cast<size_t>(shape[k]);
    float* y = output(shape);
    linear->run(isa, static_cast<const float*>(x.data), rows, columns, y, scratch, parallel);
    return;
  }
  const Embedding& embedding = std::get<Embedding>(layer);
  shape.push_back(static_cast<int64_t>(embedding.width()));
  Table table;
  for (size_t k = 1; k < op.input_count; ++k) {
    const bool of_train = k <= (op.train == &kNothing ? 0u : op.quantized ? 4u : 2u);
    const void* data = input(k).data;
    const std::string name = op.inputs[k];
    if (name == "a") (op.quantized ? (void)(table.a_codes = static_cast<const int8_t*>(data)) : (void)(table.a = static_cast<const float*>(data)));
    if (name == "a_scale") table.a_scale = static_cast<const float*>(data);
    if (name == "rows") table.rows = static_cast<const float*>(data);
    if (name == "entries") table.entries = static_cast<const float*>(data);
    const bool sparse = op.residual == &kEmbeddingResiduals[2];
    if (!of_train && name == "codes") (sparse ? table.entry_codes : table.row_codes) = static_cast<const int8_t*>(data);
    if (!of_train && name == "scale") (sparse ? table.entry_scale : table.row_scale) = static_cast<const float*>(data);
  }
  embedding.run(isa, table, static_cast<const int64_t*>(x.data), size, output(shape), scratch, parallel);
}

Op::Op(const Part& train, const Part& residual, Kind kind, bool quantized, const EndingOfName& ending)
    : OrtCustomOp{}, train(&train), residual(&residual), ending(&ending), kind(kind), quantized(quantized) {
  name = std::string(train.stem) + residual.stem + kKindNames[int(kind)] + (quantized ? "Int8" : "") + ending.suffix;
  inputs[input_count++] = "x";
  for (const Part* part : {&train, &residual})
    for (const char* input : quantized ? part->codes : part->floats)
      if (input) inputs[input_count++] = input;
  if (ending.with_bias) inputs[input_count++] = "bias";

  version = kApiVersion;
  GetName = [](const OrtCustomOp* op) { return static_cast<const Op*>(op)->name.c_str(); };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  GetInputTypeCount = [](const OrtCustomOp* op) { return static_cast<const Op*>(op)->input_count; };
  // Weights may come in several types; the kernel checks them when it is made.
  GetInputType = [](const OrtCustomOp* op, size_t index) {
    if (index > 0) return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    const bool ids = static_cast<const Op*>(op)->kind == Kind::embedding;
    return ids ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
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
    return guarded(*api, own.name, [&] { *kernel = new Kernel(own, api, info); });
  };
  KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const Kernel& own = *static_cast<const Kernel*>(kernel);
    return guarded(own.ort.api, own.op.name, [&] { own.compute(context); });
  };
  KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
}

// Kept for as long as the library: sessions point to them.
struct Ops {
  std::vector<std::unique_ptr<Op>> all;
  Ops() {
    for (bool quantized : {false, true})
      for (Kind kind : {Kind::linear, Kind::embedding, Kind::head})
        for (const Part* train : {&kNothing, &kLowRank})
          for (const Part& residual : kind == Kind::linear ? kLinearResiduals : kEmbeddingResiduals) {
            const Part& own = *residual.stem ? residual : kNothing;
            // Whole rows of a table are dense: their function body multiplies them as fast.
            if (kind == Kind::head && &own == &kEmbeddingResiduals[1]) continue;
            if (!*train->stem && !*own.stem) continue;
            for (const EndingOfName& ending : kEndings)
              if (kind == Kind::linear || !ending.with_bias)
                all.push_back(std::make_unique<Op>(*train, own, kind, quantized, ending));
          }
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
