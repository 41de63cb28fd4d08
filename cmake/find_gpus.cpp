// Prints the compute capability of every GPU that the NVIDIA driver shows, as 90 for 9.0, one a
// line; or, with exit status 1, why there is none. Needs no CUDA to compile: CMake runs it to learn
// what to build the kernels for (CudaArchitectures.cmake).
#include <dlfcn.h>

#include <cstdio>

namespace {

int none(const char* why) {
  std::puts(why);
  return 1;
}

template <class F>
F* function(void* library, const char* name) {
  return reinterpret_cast<F*>(dlsym(library, name));
}

}  // namespace

int main() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (!driver) return none("this machine has no NVIDIA driver");
  auto* start = function<int(unsigned)>(driver, "cuInit");
  auto* count = function<int(int*)>(driver, "cuDeviceGetCount");
  auto* ask = function<int(int*, int, int)>(driver, "cuDeviceGetAttribute");
  if (!start || !count || !ask) return none("the NVIDIA driver lacks what every one has");
  constexpr int kNoDevice = 100, kMajor = 75, kMinor = 76;  // of cuda.h
  int status = start(0), devices = 0;
  if (status == kNoDevice) return none("the NVIDIA driver sees no GPU");
  if (status == 0) status = count(&devices);
  if (status == 0 && devices == 0) return none("the NVIDIA driver sees no GPU");
  for (int device = 0; status == 0 && device < devices; ++device) {
    int major = 0, minor = 0;
    status = ask(&major, kMajor, device);
    if (status == 0) status = ask(&minor, kMinor, device);
    if (status == 0) std::printf("%d%d\n", major, minor);
  }
  if (status == 0) return 0;
  std::printf("the NVIDIA driver fails with error %d\n", status);
  return 1;
}
