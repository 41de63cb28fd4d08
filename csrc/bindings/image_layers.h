// The layers of the batched back end in innerloop._cpu.
#pragma once

#include <pybind11/pybind11.h>

namespace innerloop {

void define_layers(pybind11::module_& m);

}  // namespace innerloop
