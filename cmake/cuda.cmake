# fastrnn_cuda_kernels: the CUDA kernels behind csrc/include/fastrnn/cuda_kernels.h; needs the CUDA toolkit alone.
# Leaves FASTRNN_HAS_CUDA true where they are built.

set(FASTRNN_HAS_CUDA FALSE)
if(NOT FASTRNN_CUDA MATCHES "^(0|1|auto)$")
    message(FATAL_ERROR "FASTRNN_CUDA is '${FASTRNN_CUDA}'; it takes 0, 1 or auto")
elseif(FASTRNN_CUDA STREQUAL "0")
    return()
endif()

# the kernels name their architectures below, where the toolkit checks them
set(CMAKE_CUDA_ARCHITECTURES OFF)
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
    if(FASTRNN_CUDA STREQUAL "1")
        message(FATAL_ERROR "FASTRNN_CUDA=1, but no CUDA compiler was found")
    endif()
    message(STATUS "CUDA kernels: left out, no CUDA compiler found")
    return()
endif()

file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
if(NOT cuda_sources)
    message(STATUS "CUDA kernels: left out, csrc/cuda has none")
    return()
endif()

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)
set(found "${CMAKE_CUDA_COMPILER}, ${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}")
if(FASTRNN_CUDA STREQUAL "auto"
        AND (NOT CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA" OR CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0))
    message(STATUS "CUDA kernels: left out, nvcc 12.0 or later is needed; found ${found}")
    return()
endif()
message(STATUS "CUDA kernels: built with ${found}")

set(architectures -gencode=arch=compute_80,code=sm_80)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
    list(APPEND architectures -gencode=arch=compute_80,code=compute_80)
else()
    list(APPEND architectures
        -gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_90,code=compute_90)
endif()

add_library(fastrnn_cuda_kernels STATIC ${cuda_sources} csrc/cuda/plan.cpp)
add_library(fastrnn::cuda_kernels ALIAS fastrnn_cuda_kernels)
target_link_libraries(fastrnn_cuda_kernels PRIVATE $<BUILD_INTERFACE:fastrnn_options>)
target_compile_options(fastrnn_cuda_kernels PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:
    ${architectures} $<$<BOOL:${FASTRNN_WERROR}>:-Werror=all-warnings> -Xcompiler=-Wall,-Wextra>)
target_include_directories(fastrnn_cuda_kernels PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/include>
    "$<BUILD_INTERFACE:${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}>"
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
set_target_properties(fastrnn_cuda_kernels PROPERTIES CUDA_RUNTIME_LIBRARY Static EXPORT_NAME cuda_kernels)
set(FASTRNN_HAS_CUDA TRUE)

install(TARGETS fastrnn_cuda_kernels EXPORT fastrnn-targets
    COMPONENT kernels ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES csrc/include/fastrnn/cuda_kernels.h csrc/include/fastrnn/cuda_plan.h
    COMPONENT kernels DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fastrnn)
