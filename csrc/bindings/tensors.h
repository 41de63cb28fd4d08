// Reads torch tensors through their Python attributes, so that the extension links to no torch and
// fits every version of it.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

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
    static const TensorMember is_neg("is_neg"), is_contiguous("is_contiguous"),
        resolve_neg("resolve_neg"), contiguous("contiguous");
    check_size(tensor, bytes, what);
    if (bytes == 0) return nothing();
    const bool dense = is_contiguous.call_flag(tensor);
    // before torch reads it to make a copy
    void* const first = start(tensor, what, dense ? bytes : extent(tensor, bytes));
    const bool negated = is_neg.call_flag(tensor);
    if (dense && !negated) return first;
    py::object ready = py::reinterpret_borrow<py::object>(tensor);
    if (negated) ready = resolve_neg.call(ready);
    if (!is_contiguous.call_flag(ready)) ready = contiguous.call(ready);
    copies_.push_back(ready);
    return start(ready, what, bytes);
  }

  /// The address of a tensor that was allocated for results of this call, so that nothing else lies
  /// in its storage; null for None.
  void* result(py::handle tensor, uint64_t bytes, const Argument& what) const {
    if (tensor.is_none()) return nullptr;
    if (!reads_) return nothing();
    static const TensorMember is_contiguous("is_contiguous"), data_ptr("data_ptr");
    check_size(tensor, bytes, what);
    if (bytes == 0) return nothing();
    void* const first = PyLong_AsVoidPtr(data_ptr.call(tensor).ptr());
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (first == nullptr || !is_contiguous.call_flag(tensor)) {
      throw py::buffer_error(what.text() + " must have its numbers in memory, one by one");
    }
    return first;
  }

  static int64_t dimensions(py::handle tensor) {
    static const TensorMember ndim("ndim");
    const int64_t found = PyLong_AsLongLong(ndim.read(tensor).ptr());
    if (found == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return found;
  }

 private:
  static void check_size(py::handle tensor, uint64_t bytes, const Argument& what) {
    if (!is_plain(tensor)) {
      throw py::buffer_error(what.text() + " must be a plain tensor (got " +
                             std::string(py::str(py::type::handle_of(tensor))) + ")");
    }
    static const TensorMember nbytes("nbytes");
    const uint64_t held = PyLong_AsUnsignedLongLong(nbytes.read(tensor).ptr());
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (held != bytes) {
      throw std::invalid_argument(what.text() + " must hold " + std::to_string(bytes) +
                                  " bytes (got " + std::to_string(held) +
                                  "); its size may not change during the call");
    }
  }

  /// How many bytes lie between the first number and the end of the last, of a tensor of `bytes`
  /// bytes that is not contiguous (its strides are not negative).
  static uint64_t extent(py::handle tensor, uint64_t bytes) {
    static const TensorMember shape("shape"), stride("stride");
    const py::tuple sizes(shape.read(tensor)), strides(stride.call(tensor));
    uint64_t numbers = 1, last = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const auto size = sizes[i].cast<uint64_t>();
      numbers *= size;
      last += (size - 1) * strides[i].cast<uint64_t>();
    }
    return (last + 1) * (bytes / numbers);
  }

  /// Where a tensor's numbers begin, `extent` bytes of which its storage must hold. Without storage
  /// torch says null, or raises; with one that was shrunk it says nothing.
  static void* start(py::handle tensor, const Argument& what, uint64_t extent) {
    static const TensorMember data_ptr("data_ptr"), untyped_storage("untyped_storage"),
        nbytes("nbytes");
    std::string got = "a tensor whose storage is empty";
    try {
      auto* const found = static_cast<char*>(PyLong_AsVoidPtr(data_ptr.call(tensor).ptr()));
      if (found != nullptr) {
        const py::object storage = untyped_storage.call(tensor);
        auto* const base = static_cast<char*>(PyLong_AsVoidPtr(data_ptr.call(storage).ptr()));
        const uint64_t held = PyLong_AsUnsignedLongLong(nbytes.call(storage).ptr());
        if (PyErr_Occurred() != nullptr) throw py::error_already_set();
        const uint64_t needed = static_cast<uint64_t>(found - base) + extent;
        if (needed <= held) return found;
        got = "a tensor whose storage holds " + std::to_string(held) + " bytes of " +
              std::to_string(needed);
      }
      if (PyErr_Occurred() != nullptr) throw py::error_already_set();
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
/// neither None nor a plain tensor (exactly one of `types`): such a call must be checked anew.
inline py::object tensor_key(const py::tuple& types, const py::list& values) {
  static const TensorMember shape("shape"), dtype("dtype"), layout("layout"), is_cpu("is_cpu"),
      device("device"), requires_grad("requires_grad");
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
      bool plain = false;
      for (py::handle type : types) plain = plain || py::type::handle_of(value).is(type);
      if (!plain) return py::none();
      const py::object sizes = shape.read(value);
      const Py_ssize_t count = PyTuple_Size(sizes.ptr());
      if (count < 0) throw py::error_already_set();
      put(count);
      for (Py_ssize_t i = 0; i < count; ++i) {
        const int64_t size = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), i));
        if (size == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
        put(size);
      }
      put(identity(dtype.read(value)));   // dtypes and layouts are objects that
      put(identity(layout.read(value)));  // torch never frees
      const bool on_cpu = is_cpu.read_flag(value);
      put(2 * int64_t{on_cpu} + int64_t{requires_grad.read_flag(value)});
      if (!on_cpu) {
        const py::bytes name(py::str(device.read(value)));
        put(static_cast<int64_t>(py::len(name)));
        key.append(PyBytes_AS_STRING(name.ptr()), static_cast<size_t>(py::len(name)));
      }
    }
  } catch (py::error_already_set&) {
    return py::none();  // a tensor without sizes, such as a nested one
  }
  return py::bytes(key);
}

}  // namespace innerloop
