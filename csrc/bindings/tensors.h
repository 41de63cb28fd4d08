// Reads torch tensors through the function table that torch publishes for it (bindings/exchange.h),
// and through their Python attributes where that does not answer, so that the extension links to no
// torch and fits every version of it.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/exchange.h"

namespace innerloop {

namespace py = pybind11;

/// A tensor attribute or method, its name interned once.
class TensorMember {
 public:
  explicit TensorMember(const char* name) : name_(PyUnicode_InternFromString(name)) {
    if (name_ == nullptr) throw py::error_already_set();
  }
  py::object read(py::handle tensor) const { return owned(PyObject_GetAttr(tensor.ptr(), name_)); }
  py::object call(py::handle tensor) const {
    return owned(PyObject_CallMethodNoArgs(tensor.ptr(), name_));
  }
  bool read_flag(py::handle tensor) const { return read(tensor).ptr() == Py_True; }
  bool call_flag(py::handle tensor) const { return call(tensor).ptr() == Py_True; }

 private:
  static py::object owned(PyObject* result) {
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
  }
  PyObject* name_;  // lives as long as the process
};

/// Which argument a tensor is, for messages: "task_weight", "support x" or "params[2]".
struct Argument {
  const char* name;
  const char* member = nullptr;
  int leaf = -1;

  std::string text() const {
    std::string found = name;
    if (member != nullptr) found += std::string(" ") + member;
    if (leaf >= 0) found += "[" + std::to_string(leaf) + "]";
    return found;
  }
};

/// Says whether a value is exactly a torch.Tensor or torch.nn.Parameter, whose attributes are
/// torch's own. The types are found at the first call: a module can be imported without torch.
inline bool is_plain(py::handle value) {
  static std::atomic<PyObject*> tensor{nullptr}, parameter{nullptr};
  if (parameter.load() == nullptr) {
    const py::module_ torch = py::module_::import("torch");
    tensor.store(py::object(torch.attr("Tensor")).release().ptr());
    parameter.store(py::object(torch.attr("nn").attr("Parameter")).release().ptr());
  }
  auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(value.ptr()));
  return type == tensor.load() || type == parameter.load();
}

/// What a tensor is and where its numbers begin, as long as nothing changes it.
class TensorView {
 public:
  explicit TensorView(py::handle tensor) {
    // a table fits the tensors whose class published it, and torch's own attributes alone are true
    if (is_plain(tensor) && exchange::describe(tensor.ptr(), &described_)) {
      start_ = described_.byte_offset + static_cast<char*>(described_.data);
      itemsize_ = uint64_t{described_.dtype.bits} * described_.dtype.lanes / 8;
      return;
    }
    static const TensorMember shape("shape"), stride("stride"), itemsize("itemsize");
    const py::object found = shape.read(tensor);
    if (!PyTuple_Check(found.ptr())) throw std::invalid_argument("a tensor has no shape");
    read(found, &sizes_);
    try {
      read(stride.call(tensor), &strides_);
    } catch (py::error_already_set&) {  // a tensor without strides has none that matter
      strides_.assign(sizes_.size(), 0);
    }
    itemsize_ = static_cast<uint64_t>(PyLong_AsLongLong(itemsize.read(tensor).ptr()));
    described_.dimensions = static_cast<int32_t>(sizes_.size());
    described_.shape = sizes_.data();
    described_.strides = strides_.data();
  }
  TensorView(const TensorView&) = delete;

  int64_t dimensions() const { return described_.dimensions; }
  int64_t size(int axis) const {
    if (axis >= described_.dimensions) {
      throw std::invalid_argument("a tensor of data must have a task axis and a row axis");
    }
    return described_.shape[axis];
  }
  uint64_t itemsize() const { return itemsize_; }
  uint64_t bytes() const {
    uint64_t found = itemsize_;
    for (int i = 0; i < described_.dimensions; ++i) {
      found *= static_cast<uint64_t>(described_.shape[i]);
    }
    return found;
  }
  /// Whether its numbers lie one by one, which those of an empty tensor do.
  bool is_contiguous() const {
    int64_t expected = 1;
    for (int i = described_.dimensions - 1; i >= 0; --i) {
      if (described_.shape[i] != 1 && described_.strides[i] != expected) return bytes() == 0;
      expected *= described_.shape[i];
    }
    return true;
  }
  /// How many bytes lie between the first number and the end of the last, of a tensor that has
  /// numbers (its strides are not negative).
  uint64_t extent() const {
    uint64_t last = 0;
    for (int i = 0; i < described_.dimensions; ++i) {
      last += static_cast<uint64_t>((described_.shape[i] - 1) * described_.strides[i]);
    }
    return (last + 1) * itemsize_;
  }
  /// Where the first number lies; null if torch did not say.
  char* start() const { return start_; }
  /// What torch's table said; nothing else than sizes if it said nothing.
  const exchange::Tensor& described() const { return described_; }

 private:
  static void read(const py::object& numbers, std::vector<int64_t>* to) {
    for (const py::handle each : py::tuple(numbers)) to->push_back(each.cast<int64_t>());
  }

  exchange::Tensor described_{};
  std::vector<int64_t> sizes_, strides_;  // where torch's table does not lend them
  uint64_t itemsize_ = 0;
  char* start_ = nullptr;
};

/// Addresses of tensors as the kernels want them (contiguous, not lazily negated), alive as long as
/// this object. Absence is None, and null says nothing else: an empty tensor has an address, and
/// one whose numbers are not in memory (subclasses, tensors without storage) raises BufferError.
class TensorReader {
 public:
  /// `reads` is false where no kernel will run: every tensor then has the address of an empty one.
  explicit TensorReader(bool reads = true) : reads_(reads) {}

  /// The address of `bytes` bytes of numbers; null for None.
  void* address(py::handle tensor, uint64_t bytes, const Argument& what) {
    if (tensor.is_none()) return nullptr;
    if (!reads_) return nothing();
    return address(tensor, TensorView(tensor), bytes, what);
  }
  /// The same of a tensor that was looked at before.
  void* address(py::handle tensor, const TensorView& view, uint64_t bytes, const Argument& what) {
    if (!reads_) return nothing();
    check_plain(tensor, what);
    static const TensorMember is_neg("is_neg"), resolve_neg("resolve_neg"),
        contiguous("contiguous");
    check_size(view, bytes, what);
    if (bytes == 0) return nothing();
    const bool dense = view.is_contiguous();
    // before torch reads it to make a copy
    void* const first = start(tensor, view, what, dense ? bytes : view.extent());
    const bool negated = is_neg.call_flag(tensor);
    if (dense && !negated) return first;
    py::object ready = py::reinterpret_borrow<py::object>(tensor);
    if (negated) ready = resolve_neg.call(ready);
    if (!TensorView(ready).is_contiguous()) ready = contiguous.call(ready);
    copies_.push_back(ready);
    return start(ready, TensorView(ready), what, bytes);
  }

  /// The address of a tensor that was allocated for results of this call, so that nothing else lies
  /// in its storage; null for None.
  void* result(py::handle tensor, uint64_t bytes, const Argument& what) const {
    if (tensor.is_none()) return nullptr;
    if (!reads_) return nothing();
    check_plain(tensor, what);
    const TensorView view(tensor);
    check_size(view, bytes, what);
    if (bytes == 0) return nothing();
    char* const first = view.start() != nullptr ? view.start() : address_of(tensor);
    if (first == nullptr || !view.is_contiguous()) {
      throw py::buffer_error(what.text() + " must have its numbers in memory, one by one");
    }
    return first;
  }

 private:
  static void check_plain(py::handle tensor, const Argument& what) {
    if (is_plain(tensor)) return;
    throw py::buffer_error(what.text() + " must be a plain tensor (got " +
                           std::string(py::str(py::type::handle_of(tensor))) + ")");
  }
  static void check_size(const TensorView& view, uint64_t bytes, const Argument& what) {
    if (view.bytes() == bytes) return;
    throw std::invalid_argument(what.text() + " must hold " + std::to_string(bytes) +
                                " bytes (got " + std::to_string(view.bytes()) +
                                "); its size may not change during the call");
  }
  /// What a tensor or storage says of its address.
  static char* address_of(py::handle memory) {
    static const TensorMember data_ptr("data_ptr");
    auto* const found = static_cast<char*>(PyLong_AsVoidPtr(data_ptr.call(memory).ptr()));
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    return found;
  }

  /// Where a tensor's numbers begin, `extent` bytes of which its storage must hold. Without storage
  /// torch says null, or raises; with one that was shrunk it says nothing.
  static void* start(py::handle tensor, const TensorView& view, const Argument& what,
                     uint64_t extent) {
    static const TensorMember untyped_storage("untyped_storage"), nbytes("nbytes");
    std::string got = "a tensor whose storage is empty";
    try {
      char* const found = view.start() != nullptr ? view.start() : address_of(tensor);
      if (found != nullptr) {
        const py::object storage = untyped_storage.call(tensor);
        const uint64_t held = PyLong_AsUnsignedLongLong(nbytes.call(storage).ptr());
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
        const uint64_t needed = static_cast<uint64_t>(found - address_of(storage)) + extent;
        if (needed <= held) return found;
        got = "a tensor whose storage holds " + std::to_string(held) + " bytes of " +
              std::to_string(needed);
      }
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_RuntimeError)) throw;
      got = py::str(error.value());
    }
    throw py::buffer_error(what.text() + " must have its numbers in memory (got: " + got + ")");
  }
  /// The address of an array without elements.
  static void* nothing() {
    alignas(64) static char place[64];
    return place;
  }

  std::vector<py::object> copies_;
  bool reads_;
};

/// Everything that argument checks read of some values, as bytes: for each its shape, dtype,
/// layout, device and whether it requires a gradient, or that it is None. None itself if a value is
/// neither None nor a plain tensor: such a call must be checked anew.
inline py::object tensor_key(const py::list& values) {
  static const TensorMember shape("shape"), dtype("dtype"), layout("layout"), device("device"),
      requires_grad("requires_grad");
  std::string key;
  key.reserve(48 * values.size());
  const auto put = [&key](int64_t fact) {
    key.append(reinterpret_cast<const char*>(&fact), sizeof fact);
  };
  const auto identity = [](const py::object& o) { return reinterpret_cast<int64_t>(o.ptr()); };
  try {
    for (py::handle value : values) {
      if (value.is_none()) {
        put(-1);
        continue;
      }
      if (!is_plain(value)) return py::none();
      const TensorView view(value);
      put(view.dimensions());
      for (int i = 0; i < view.dimensions(); ++i) put(view.size(i));
      put(int64_t{requires_grad.read_flag(value)});
      if (view.start() != nullptr) {  // a dense tensor
        const exchange::Tensor& told = view.described();
        put(int64_t{told.dtype.lanes} << 16 | int64_t{told.dtype.bits} << 8 | told.dtype.code);
        put(int64_t{told.device.id} << 32 | int64_t{told.device.type});
        continue;
      }
      put(identity(dtype.read(value)));   // dtypes and layouts are objects that
      put(identity(layout.read(value)));  // torch never frees
      const py::bytes name(py::str(device.read(value)));
      put(static_cast<int64_t>(py::len(name)));
      key.append(PyBytes_AS_STRING(name.ptr()), static_cast<size_t>(py::len(name)));
    }
  } catch (py::error_already_set&) {
    return py::none();  // a tensor without sizes, such as a nested one
  }
  return py::bytes(key);
}

}  // namespace innerloop
