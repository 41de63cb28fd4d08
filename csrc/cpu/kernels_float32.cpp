// See kernels.h.
#include "cpu/kernels.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {

extern const Kernels kFloat32;
const Kernels kFloat32 = kTable<float>;

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
