# fastrnn_kernels: the CPU kernels behind csrc/include/fastrnn/kernels.h, with no dependency but OpenMP.

# The arithmetic must be the same whatever the optimiser does with it: no contraction, no reassociation.
set(target_flags -O3 -fno-math-errno -fno-trapping-math -ffp-contract=off -fno-exceptions)
if(FASTRNN_SANITIZE)
    # Instrumented in the smallest form that still checks everything: with messages, and with what the address sanitizer
    # finds by itself checked twice, an instruction set takes over twice as long to compile (107 s against 44 s). A fault of
    # undefined behaviour stops the test with SIGILL; a debugger shows the line.
    list(REMOVE_ITEM target_flags -O3)
    list(APPEND target_flags -fsanitize-undefined-trap-on-error -fno-sanitize=null,vptr,object-size
        --param=asan-instrumentation-with-call-threshold=0)
endif()

set(instruction_sets generic)
set(flags_of_generic "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT FASTRNN_EMULATED)
    list(APPEND instruction_sets avx2 avx512)
    set(flags_of_avx2 -mavx2 -mfma)
    set(flags_of_avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma)
endif()

# what goes beside an instruction set, where the compiler and its assembler know it
set(units "")
if(avx512 IN_LIST instruction_sets)
    include(CheckCXXSourceCompiles)
    set(flags_of_amx ${flags_of_avx512} -mavx512bf16)
    string(JOIN " " CMAKE_REQUIRED_FLAGS ${flags_of_amx})
    check_cxx_source_compiles("
        #include <immintrin.h>
        int main() {
            volatile __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_setzero_ps(), _mm512_setzero_ps());
            __asm__ volatile(\"tdpbf16ps %tmm1, %tmm2, %tmm3\");
            return (void)rounded, 0;
        }" FASTRNN_COMPILES_AMX)
    unset(CMAKE_REQUIRED_FLAGS)
    if(FASTRNN_COMPILES_AMX)
        list(APPEND units amx)
    endif()
endif()

foreach(name ${instruction_sets} ${units})
    # no link-time optimisation: it would merge code across the instruction sets
    set_source_files_properties(csrc/cpu/target_${name}.cpp PROPERTIES
        COMPILE_OPTIONS "${target_flags};-fno-lto;${flags_of_${name}}")
endforeach()

# a library of the kernels for every instruction set
function(add_kernels library)
    add_library(${library} csrc/cpu/cores.cpp csrc/cpu/dispatch.cpp csrc/cpu/fork.cpp)
    foreach(name ${instruction_sets} ${units})
        target_sources(${library} PRIVATE csrc/cpu/target_${name}.cpp)
    endforeach()
    if(avx2 IN_LIST instruction_sets)
        target_compile_definitions(${library} PRIVATE FASTRNN_X86)
    endif()
    if(amx IN_LIST units)
        target_compile_definitions(${library} PRIVATE FASTRNN_AMX)
    endif()
    target_include_directories(${library} PUBLIC
        $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/include>
        $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    target_compile_features(${library} PUBLIC cxx_std_17)
    target_link_libraries(${library} PRIVATE $<BUILD_INTERFACE:fastrnn_options> OpenMP::OpenMP_CXX)
endfunction()

add_kernels(fastrnn_kernels)
add_library(fastrnn::kernels ALIAS fastrnn_kernels)
set_target_properties(fastrnn_kernels PROPERTIES EXPORT_NAME kernels)

# a cell that the tests add, as a new cell would be added; it runs on the CPU
function(add_toy library)
    target_include_directories(${library} PUBLIC
        $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc> $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/tests/csrc>)
    target_compile_definitions(${library} PUBLIC
        FASTRNN_TEST_CELLS="toy/cells.def" FASTRNN_TEST_CELL_HEADER="toy/masked_indrnn.h")
endfunction()
if(FASTRNN_TESTS)
    add_kernels(fastrnn_kernels_toy)
    add_toy(fastrnn_kernels_toy)
endif()
if(FASTRNN_EMULATED)
    add_toy(fastrnn_kernels)
endif()

install(TARGETS fastrnn_kernels EXPORT fastrnn-targets
    COMPONENT kernels
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES csrc/include/fastrnn/kernels.h csrc/include/fastrnn/cores.h csrc/include/fastrnn/cells.def
    COMPONENT kernels DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fastrnn)

include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fastrnn)
configure_package_config_file(cmake/fastrnn-config.cmake.in fastrnn-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(fastrnn-config-version.cmake COMPATIBILITY SameMinorVersion)
install(EXPORT fastrnn-targets NAMESPACE fastrnn:: COMPONENT kernels DESTINATION ${package_dir})
install(FILES ${PROJECT_BINARY_DIR}/fastrnn-config.cmake ${PROJECT_BINARY_DIR}/fastrnn-config-version.cmake
    COMPONENT kernels DESTINATION ${package_dir})
