# The CUDA module, innerloop._cuda, where there is a CUDA compiler: INNERLOOP_CUDA says whether that
# is asked (AUTO), demanded (ON) or not wanted (OFF). Sets INNERLOOP_CUDA_STATE.
set(INNERLOOP_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO (if nvcc works), ON or OFF")
set_property(CACHE INNERLOOP_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT INNERLOOP_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "INNERLOOP_CUDA must be AUTO, ON or OFF (got ${INNERLOOP_CUDA})")
endif()

set(INNERLOOP_CUDA_STATE "not built: INNERLOOP_CUDA=OFF")
if(INNERLOOP_CUDA STREQUAL "OFF")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(INNERLOOP_CUDA STREQUAL "ON")
    message(FATAL_ERROR "INNERLOOP_CUDA=ON needs nvcc; put it on the PATH or set CMAKE_CUDA_COMPILER")
  endif()
  set(INNERLOOP_CUDA_STATE "not built: no nvcc found")
  return()
endif()

# Set before the language is enabled: without a list CMake takes the compiler's one default.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known)
  set(CMAKE_CUDA_ARCHITECTURES "")
  foreach(number 75 80 86 89 90 100 120)
    if(known MATCHES "sm_${number}")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${number}-real)
      set(newest ${number})
    endif()
  endforeach()
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)  # for devices still to come
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
find_package(CUDAToolkit QUIET)
if(NOT TARGET CUDA::cudart_static)
  if(INNERLOOP_CUDA STREQUAL "ON")
    message(FATAL_ERROR "INNERLOOP_CUDA=ON needs the static CUDA runtime beside nvcc (cudart-devel)")
  endif()
  set(INNERLOOP_CUDA_STATE "not built: no static CUDA runtime found")
  return()
endif()
set(INNERLOOP_CUDA_STATE "${CMAKE_CUDA_COMPILER_VERSION}")

set(cuda_warnings -Wall -Wextra -Wno-unknown-pragmas)
set(cuda_flags "")
if(INNERLOOP_WERROR)
  list(APPEND cuda_flags -Werror=all-warnings)
  list(APPEND cuda_warnings -Werror)
endif()
list(JOIN cuda_warnings "," cuda_warnings)
list(APPEND cuda_flags -Xcompiler=${cuda_warnings})
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
  list(APPEND cuda_flags --compress-mode=size)
endif()

function(innerloop_add_dtype name real)
  add_library(innerloop_cuda_${name} OBJECT csrc/cuda/kernels.cu)
  target_include_directories(innerloop_cuda_${name} PRIVATE csrc)
  target_compile_definitions(innerloop_cuda_${name} PRIVATE
    INNERLOOP_REAL=${real} INNERLOOP_TABLE=kBlocks_${name})
  target_compile_options(innerloop_cuda_${name} PRIVATE ${cuda_flags})
endfunction()
innerloop_add_dtype(float32 float)
innerloop_add_dtype(float64 double)

# The study's trials have the bits of the CPU's: none of their multiply-adds may be contracted.
add_library(innerloop_cuda_regression OBJECT csrc/cuda/regression.cu)
target_include_directories(innerloop_cuda_regression PRIVATE csrc)
target_compile_options(innerloop_cuda_regression PRIVATE ${cuda_flags} -fmad=false)

list(TRANSFORM CMAKE_CUDA_ARCHITECTURES REPLACE "-.*" "" OUTPUT_VARIABLE numbers)
list(SORT numbers COMPARE NATURAL)
list(GET numbers 0 oldest)
if(NOT oldest MATCHES "^[0-9]+$")  # native, all, all-major: the driver will tell
  set(oldest 0)
endif()
list(JOIN CMAKE_CUDA_ARCHITECTURES " " shown)

pybind11_add_module(_cuda MODULE NO_EXTRAS
  csrc/bindings/cuda_module.cpp csrc/bindings/cuda_regression.cpp csrc/bindings/cuda_backend.cpp
  csrc/cuda/device.cpp)
target_include_directories(_cuda PRIVATE csrc)
target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${INNERLOOP_WARNINGS}>)
target_compile_definitions(_cuda PRIVATE
  INNERLOOP_MODULE=_cuda INNERLOOP_OLDEST_ARCHITECTURE=${oldest}
  INNERLOOP_ARCHITECTURES="${shown}"
  INNERLOOP_CUDA_COMPILER="${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}")
target_link_libraries(_cuda PRIVATE
  innerloop_cuda_float32 innerloop_cuda_float64 innerloop_cuda_regression CUDA::cudart_static)
innerloop_hide_symbols(_cuda)
install(TARGETS _cuda DESTINATION innerloop)
