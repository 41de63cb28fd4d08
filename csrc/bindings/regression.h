// The part of innerloop._cpu that belongs to the linear-regression study.
#pragma once

#include <pybind11/pybind11.h>

namespace innerloop {

void define_regression(pybind11::module_& m);

}  // namespace innerloop
