// The policy `M` of core/activation.h and core/objectives for one number at a time, from the
// standard mathematical functions of host or device.
#pragma once

#include <cmath>

#include "core/host_device.h"

namespace innerloop {

template <class Real, class CellType>
struct ScalarMath {
  using V = Real;
  using Cell = CellType;

  IL_HD static V set(double x) { return static_cast<V>(x); }
  IL_HD static V select_gt(V a, V b, V yes, V no) { return a > b ? yes : no; }
  IL_HD static V select_eq(V a, V b, V yes, V no) { return a == b ? yes : no; }
  IL_HD static V max(V a, V b) { return b > a ? b : a; }
  IL_HD static V abs(V x) { return x < V(0) ? -x : x; }
  IL_HD static V fma(V a, V b, V c) { return a * b + c; }
  IL_HD static V exp(V x) { return std::exp(x); }
  IL_HD static V log(V x) { return std::log(x); }
  IL_HD static V tanh(V x) { return std::tanh(x); }
  IL_HD static V sigmoid(V x) { return V(1) / (V(1) + std::exp(-x)); }
  IL_HD static V log1p_unit(V u) { return std::log1p(u); }
  IL_HD static V normal_cdf(V x) { return V(0.5) * std::erfc(x * V(-0.70710678118654752440)); }
};

}  // namespace innerloop
