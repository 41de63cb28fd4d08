// See kernels.h.
#include "cpu/kernels.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

extern const Kernels kFloat64;
const Kernels kFloat64 = kTable<double>;

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
