# _C.abi3.so: the ops, against LibTorch's stable ABI and Python's limited API. One file serves every torch from 2.11 on
# and every Python from 3.10 on, so nothing here may depend on the versions that it happens to be built with.

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

add_library(_C MODULE ${torch_sources})
if(FASTRNN_EMULATED)
    target_compile_definitions(_C PRIVATE FASTRNN_EMULATED FASTRNN_WITH_CUDA)
    target_include_directories(_C BEFORE PRIVATE tests/csrc/emulation csrc)
    target_compile_options(_C PRIVATE -O1 -Wno-unknown-pragmas)
    target_link_libraries(_C PRIVATE ${CMAKE_DL_LIBS})
endif()
target_compile_definitions(_C PRIVATE
    Py_LIMITED_API=0x030A0000
    TORCH_TARGET_VERSION=0x020b000000000000
    $<$<BOOL:${FASTRNN_HAS_CUDA}>:FASTRNN_WITH_CUDA>)
target_include_directories(_C SYSTEM PRIVATE "${FASTRNN_TORCH_DIR}/include" "${python_include_dir}")
target_link_libraries(_C PRIVATE fastrnn_options fastrnn_kernels OpenMP::OpenMP_CXX)
if(FASTRNN_HAS_CUDA)
    target_link_libraries(_C PRIVATE fastrnn_cuda_kernels ${CMAKE_DL_LIBS})
endif()

# Python has loaded torch's libraries when it loads this one: their names are recorded, never their folder.
target_link_libraries(_C PRIVATE "${FASTRNN_TORCH_DIR}/lib/libtorch_cpu.so")
target_link_options(_C PRIVATE
    -Wl,--as-needed -Wl,--exclude-libs,ALL
    "-Wl,--version-script=${PROJECT_SOURCE_DIR}/cmake/exports.map")
set_target_properties(_C PROPERTIES
    PREFIX "" SUFFIX ".abi3.so"
    SKIP_BUILD_RPATH ON
    LINK_DEPENDS "${PROJECT_SOURCE_DIR}/cmake/exports.map")

install(TARGETS _C COMPONENT python LIBRARY DESTINATION .)
