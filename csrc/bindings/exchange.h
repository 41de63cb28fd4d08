// DLPack's function table for tensors of Python (`__dlpack_c_exchange_api__` of a class,
// DLPack 1.3), as far as it is used here: what a tensor is, in one call that makes no Python
// object.
#pragma once

#include <Python.h>

#include <cstdint>

namespace innerloop::exchange {

// The layouts below are fixed by the standard for every version with the same major number.

struct Device {
  int32_t type;
  int32_t id;
};
struct Dtype {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
/// A tensor in memory; strides count elements.
struct Tensor {
  void* data;
  Device device;
  int32_t dimensions;
  Dtype dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct Table {
  uint32_t major;
  uint32_t minor;
  const Table* older;  // a table of another major number, if there is one
  void* allocate;
  void* to_managed;
  void* from_managed;
  int (*describe)(void* object, Tensor* tensor);  // 0, or -1 and a Python error; may be absent
  void* current_stream;
};

/// The table of torch.Tensor that we can read; null where torch has none (before 2.10).
inline const Table* table() {
  static const Table* const found = []() -> const Table* {
    constexpr const char* name = "dlpack_exchange_api";
    const Table* at = nullptr;
    if (PyObject* const torch = PyImport_ImportModule("torch")) {
      if (PyObject* const tensor = PyObject_GetAttrString(torch, "Tensor")) {
        if (PyObject* const told = PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__")) {
          if (PyCapsule_IsValid(told, name)) {
            at = static_cast<const Table*>(PyCapsule_GetPointer(told, name));
          }
          Py_DECREF(told);
        }
        Py_DECREF(tensor);
      }
      Py_DECREF(torch);
    }
    PyErr_Clear();
    while (at != nullptr && at->major != 1) at = at->older;
    return at != nullptr && at->describe != nullptr ? at : nullptr;
  }();
  return found;
}

/// Fills in what a torch.Tensor or torch.nn.Parameter is; false if torch does not say so, as for
/// one whose numbers are not in memory. What is lent lives as long as the tensor keeps its sizes.
inline bool describe(PyObject* tensor, Tensor* to) {
  const Table* const known = table();
  if (known == nullptr) return false;
  if (known->describe(tensor, to) == 0 && to->data != nullptr && to->strides != nullptr)
    return true;
  PyErr_Clear();
  *to = {};
  return false;
}

}  // namespace innerloop::exchange
