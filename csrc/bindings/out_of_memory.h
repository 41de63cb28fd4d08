// What Python hears when the CPU kernels could not have their scratch memory: MemoryError, with how
// much it was.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cpu/parallel.h"

namespace innerloop {

[[noreturn]] inline void throw_out_of_memory() {
  const int64_t bytes = refused_bytes();
  const std::string size = bytes > 0 ? std::to_string(bytes) : "more than 2^63";
  const std::string text = "scratch memory of " + size + " bytes cannot be allocated";
  PyErr_SetString(PyExc_MemoryError, text.c_str());
  throw pybind11::error_already_set();
}

}  // namespace innerloop
