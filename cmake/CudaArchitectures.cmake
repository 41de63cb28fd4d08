# Which architectures the CUDA kernels are compiled for.

# Sets `found` to the capabilities of the GPUs of this machine (such as 90), sorted, or to an empty
# list and `reason` to why there are none.
function(innerloop_find_gpus found reason)
  set(${found} "" PARENT_SCOPE)
  if(CMAKE_CROSSCOMPILING)
    set(${reason} "cross-compiling" PARENT_SCOPE)
    return()
  endif()
  unset(INNERLOOP_GPUS_STATUS CACHE)  # a GPU may come with the next configuration
  unset(INNERLOOP_GPUS_COMPILED CACHE)
  try_run(INNERLOOP_GPUS_STATUS INNERLOOP_GPUS_COMPILED
    ${CMAKE_BINARY_DIR}/find_gpus ${CMAKE_CURRENT_SOURCE_DIR}/cmake/find_gpus.cpp
    LINK_LIBRARIES ${CMAKE_DL_LIBS} RUN_OUTPUT_VARIABLE output)
  if(NOT INNERLOOP_GPUS_COMPILED)
    set(${reason} "the driver cannot be asked: cmake/find_gpus.cpp does not compile" PARENT_SCOPE)
    return()
  endif()
  string(STRIP "${output}" output)
  if(NOT INNERLOOP_GPUS_STATUS STREQUAL "0")
    if(output MATCHES "^[^\n;]+$")  # it may have crashed inside the driver
      set(${reason} "${output}" PARENT_SCOPE)
    else()
      set(${reason} "the NVIDIA driver cannot be asked" PARENT_SCOPE)
    endif()
    return()
  endif()
  string(REGEX MATCHALL "[0-9]+" numbers "${output}")
  list(REMOVE_DUPLICATES numbers)
  list(SORT numbers COMPARE NATURAL)
  set(${found} "${numbers}" PARENT_SCOPE)
endfunction()

# The numbers of the architectures that nvcc has, sorted.
function(innerloop_known_architectures known)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE output)
  string(REGEX MATCHALL "sm_[0-9]+" numbers "${output}")
  list(TRANSFORM numbers REPLACE "sm_" "")
  list(REMOVE_DUPLICATES numbers)
  list(SORT numbers COMPARE NATURAL)
  set(${known} "${numbers}" PARENT_SCOPE)
endfunction()

# For GPUs of these capabilities, sorted: native code of each that nvcc knows, and of one that it is
# too old to know PTX of its newest. Empty if all are older than what nvcc compiles for.
function(innerloop_architectures_for gpus architectures)
  innerloop_known_architectures(known)
  set(chosen "")
  foreach(gpu IN LISTS gpus)
    list(GET known -1 newest)
    if(gpu IN_LIST known)
      list(APPEND chosen ${gpu}-real)
    elseif(gpu GREATER newest)
      list(APPEND chosen ${newest}-virtual)
    endif()
  endforeach()
  list(REMOVE_DUPLICATES chosen)
  set(${architectures} "${chosen}" PARENT_SCOPE)
endfunction()

# For releases: native code that covers every GPU of a generation, and PTX for what has none. PTX of
# 100, which comes before all newer ones, serves 110 and whatever is still to come.
function(innerloop_release_architectures architectures)
  innerloop_known_architectures(known)
  set(chosen "")
  foreach(number 75 80 86 89 90 100 120)
    if(number IN_LIST known)
      list(APPEND chosen ${number}-real)
      if(number LESS_EQUAL 100)
        set(last ${number})
      endif()
    endif()
  endforeach()
  list(APPEND chosen ${last}-virtual)
  set(${architectures} "${chosen}" PARENT_SCOPE)
endfunction()

# Ends with an error unless every entry is one that the module can later compare with a GPU.
function(innerloop_check_architectures)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES is empty or off: name some, such as 90, or leave it out")
  endif()
  foreach(entry IN LISTS CMAKE_CUDA_ARCHITECTURES)
    if(NOT entry MATCHES "^[0-9]+[af]?(-real|-virtual)?$")
      message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES must be numbers, such as 90 or 80-real, or native "
                          "(got ${entry}). INNERLOOP_CUDA=ON builds for all")
    endif()
  endforeach()
endfunction()
