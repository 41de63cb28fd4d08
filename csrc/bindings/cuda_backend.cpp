// What innerloop._cuda tells of itself and of the driver.
#include <string>

#include "bindings/arguments.h"
#include "cuda/device.h"
#include "cuda/runtime_error.h"

namespace innerloop {

void define_backend(py::module_& m) {
  m.def("toolkit_version", [] { return CUDART_VERSION; });
  m.def("driver_version", [] {
    int version = 0;
    if (const char* error = taken(cudaDriverGetVersion(&version))) throw std::runtime_error(error);
    return version;
  });
  m.def("device_facts", [](int device) {
    DeviceFacts facts{};
    const DeviceGuard guard(device);
    const char* error = guard.error();
    if (!error) error = device_facts(device, &facts);
    if (error) throw std::runtime_error(error);
    return py::make_tuple(facts.multiprocessors, facts.shared_per_block,
                          facts.shared_per_multiprocessor);
  });
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = INNERLOOP_CUDA_COMPILER;
    info["architectures"] = INNERLOOP_ARCHITECTURES;
    return info;
  });
}

}  // namespace innerloop
