// What innerloop._cuda tells of itself and of the driver, and its tables of operations.
#include <cuda_runtime_api.h>

#include <string>

#include "bindings/arguments.h"
#include "cuda/device.h"

namespace innerloop {

extern const BlockKernels kBlocks_float32, kBlocks_float64;

const BlockKernels& block_kernels(bool is_float64) {
  return is_float64 ? kBlocks_float64 : kBlocks_float32;
}

void define_backend(py::module_& m) {
  m.def("toolkit_version", [] { return CUDART_VERSION; });
  m.def("driver_version", [] {
    int version = 0;
    const cudaError_t error = cudaDriverGetVersion(&version);
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
    return version;
  });
  m.def("oldest_architecture", [] { return INNERLOOP_OLDEST_ARCHITECTURE; });
  m.def("device_facts", [](int device) {
    DeviceFacts facts{};
    const DeviceGuard guard(device);
    const char* error = guard.error();
    if (!error) error = device_facts(device, &facts);
    if (error) throw std::runtime_error(error);
    return py::make_tuple(facts.multiprocessors, facts.shared_per_block,
                          facts.shared_per_multiprocessor, facts.most_in_cluster);
  });
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = INNERLOOP_CUDA_COMPILER;
    info["architectures"] = INNERLOOP_ARCHITECTURES;
    return info;
  });
}

}  // namespace innerloop
