// The launches of the tasks' kernel (block/kernels.h), each defined in an object of its own: one
// precision, pass and call of task_kernel.cu.
#pragma once

#include "block/operations.h"

namespace innerloop {

/// Launches on a stream of the current device. Returns null, or what went wrong.
template <class Real, template <class> class Pass, class Call>
const char* launch_tasks(const Launch<Call>& launch, const Schedule& schedule, int device,
                         void* stream);

}  // namespace innerloop
