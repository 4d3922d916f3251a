# libfastrnn_ops.so: the ops, against LibTorch's stable ABI, for any program. _C.abi3.so: what Python loads them by, against
# its limited API. They serve every torch from 2.11 on and every Python from 3.10 on, so nothing here may depend on the
# versions that they happen to be built with.

if(NOT EXISTS "${FASTRNN_TORCH_DIR}/include/torch/csrc/stable/library.h")
    message(FATAL_ERROR "FASTRNN_TORCH needs FASTRNN_TORCH_DIR, the folder of a torch package from 2.11 on; "
        "it is '${FASTRNN_TORCH_DIR}'")
endif()
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "import sysconfig; print(sysconfig.get_path('include'))"
    OUTPUT_VARIABLE python_include_dir OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
include(CheckIncludeFileCXX)
set(CMAKE_REQUIRED_INCLUDES "${python_include_dir}")
check_include_file_cxx(Python.h FASTRNN_HAS_PYTHON_HEADERS)
unset(CMAKE_REQUIRED_INCLUDES)
if(NOT FASTRNN_HAS_PYTHON_HEADERS)
    unset(FASTRNN_HAS_PYTHON_HEADERS CACHE)
    message(FATAL_ERROR "Python.h is missing; on Debian, apt install python3-dev")
endif()

file(GLOB torch_sources CONFIGURE_DEPENDS csrc/torch/*.cpp)
if(NOT FASTRNN_HAS_CUDA)
    list(FILTER torch_sources EXCLUDE REGEX "_cuda\\.cpp$")
    list(APPEND torch_sources csrc/cuda/plan.cpp)  # says what a device would run
endif()

# For tests alone: the ops run the text of the CUDA kernels, emulated, on tensors of the CPU.
if(FASTRNN_EMULATED)
    file(GLOB cuda_texts CONFIGURE_DEPENDS csrc/cuda/*.cu)
    set_source_files_properties(${cuda_texts} PROPERTIES LANGUAGE CXX)
    list(APPEND torch_sources csrc/torch/ops_cuda.cpp ${cuda_texts} tests/csrc/emulation/emulation.cpp)
endif()

add_library(fastrnn_ops SHARED ${torch_sources})
if(FASTRNN_EMULATED)
    target_compile_definitions(fastrnn_ops PRIVATE FASTRNN_EMULATED FASTRNN_WITH_CUDA)
    target_include_directories(fastrnn_ops BEFORE PRIVATE tests/csrc/emulation csrc)
    target_compile_options(fastrnn_ops PRIVATE -O1 -Wno-unknown-pragmas)
    target_link_libraries(fastrnn_ops PRIVATE ${CMAKE_DL_LIBS})
endif()
target_compile_definitions(fastrnn_ops PRIVATE
    TORCH_TARGET_VERSION=0x020b000000000000
    $<$<BOOL:${FASTRNN_HAS_CUDA}>:FASTRNN_WITH_CUDA>)
target_include_directories(fastrnn_ops SYSTEM PRIVATE "${FASTRNN_TORCH_DIR}/include")
target_link_libraries(fastrnn_ops PRIVATE fastrnn_options fastrnn_kernels OpenMP::OpenMP_CXX)
if(FASTRNN_HAS_CUDA)
    target_link_libraries(fastrnn_ops PRIVATE fastrnn_cuda_kernels ${CMAKE_DL_LIBS})
endif()
# A program has loaded torch's libraries when it loads this one: their names are recorded, never their folder.
target_link_libraries(fastrnn_ops PRIVATE "${FASTRNN_TORCH_DIR}/lib/libtorch_cpu.so")

add_library(_C MODULE csrc/python/module.cpp)
target_compile_definitions(_C PRIVATE Py_LIMITED_API=0x030A0000)
target_include_directories(_C PRIVATE csrc)
target_include_directories(_C SYSTEM PRIVATE "${python_include_dir}")
target_link_libraries(_C PRIVATE fastrnn_options fastrnn_ops)

function(export_alone target map)
    target_link_options(${target} PRIVATE
        -Wl,--as-needed -Wl,--exclude-libs,ALL "-Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/${map}")
    set_target_properties(${target} PROPERTIES LINK_DEPENDS "${PROJECT_SOURCE_DIR}/cmake/${map}")
endfunction()
export_alone(fastrnn_ops ops.map)
export_alone(_C module.map)
set_target_properties(fastrnn_ops PROPERTIES SKIP_BUILD_RPATH ON)
# $ORIGIN: the two lie in one folder
set_target_properties(_C PROPERTIES
    PREFIX "" SUFFIX ".abi3.so" BUILD_WITH_INSTALL_RPATH ON INSTALL_RPATH "$ORIGIN")

install(TARGETS fastrnn_ops _C COMPONENT python LIBRARY DESTINATION .)
