# One object library per instruction level, all from the same sources. Only these objects carry wide
# instructions; everything else is compiled for the platform's baseline.
include(CheckCXXCompilerFlag)

function(innerloop_add_level name)
  add_library(innerloop_${name} OBJECT
    csrc/cpu/kernels_float32.cpp csrc/cpu/kernels_float64.cpp csrc/cpu/image_layers.cpp
    csrc/cpu/regression.cpp)
  target_include_directories(innerloop_${name} PRIVATE csrc)
  target_compile_definitions(innerloop_${name} PRIVATE INNERLOOP_LEVEL=${name})
  # Multiply-adds are fused where the source says so (Simd::fma) and nowhere else; NaN, infinities
  # and the order of sums stay as written.
  target_compile_options(innerloop_${name} PRIVATE
    ${INNERLOOP_WARNINGS} -ffp-contract=off -fno-math-errno -fno-trapping-math ${ARGN})
  set_property(GLOBAL APPEND PROPERTY INNERLOOP_LEVELS ${name})
endfunction()

innerloop_add_level(baseline)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
  set(avx2_flags -mavx2 -mfma)
  set(avx512_flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512)
  foreach(level avx2 avx512)
    string(REPLACE ";" " " joined "${${level}_flags}")
    check_cxx_compiler_flag("${joined}" INNERLOOP_COMPILES_${level})
    if(INNERLOOP_COMPILES_${level})
      innerloop_add_level(${level} ${${level}_flags})
    endif()
  endforeach()
endif()
