# fastrnn_kernels: the CPU kernels behind csrc/include/fastrnn/kernels.h, with no dependency but OpenMP.

add_library(fastrnn_kernels csrc/cpu/dispatch.cpp)
add_library(fastrnn::kernels ALIAS fastrnn_kernels)
target_include_directories(fastrnn_kernels PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/include>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(fastrnn_kernels PUBLIC cxx_std_17)
target_link_libraries(fastrnn_kernels PRIVATE $<BUILD_INTERFACE:fastrnn_options> OpenMP::OpenMP_CXX)
set_target_properties(fastrnn_kernels PROPERTIES EXPORT_NAME kernels)

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

function(add_instruction_set name)
    set(source csrc/cpu/target_${name}.cpp)
    target_sources(fastrnn_kernels PRIVATE ${source})
    # no link-time optimisation: it would merge code across the instruction sets
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${target_flags};-fno-lto;${ARGN}")
endfunction()

add_instruction_set(generic)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT FASTRNN_EMULATED)
    target_compile_definitions(fastrnn_kernels PRIVATE FASTRNN_X86)
    add_instruction_set(avx2 -mavx2 -mfma -mf16c)
    add_instruction_set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma)
endif()

install(TARGETS fastrnn_kernels EXPORT fastrnn-targets
    COMPONENT kernels
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES csrc/include/fastrnn/kernels.h csrc/include/fastrnn/cells.def
    COMPONENT kernels DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fastrnn)

include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fastrnn)
configure_package_config_file(cmake/fastrnn-config.cmake.in fastrnn-config.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(fastrnn-config-version.cmake COMPATIBILITY SameMinorVersion)
install(EXPORT fastrnn-targets NAMESPACE fastrnn:: COMPONENT kernels DESTINATION ${package_dir})
install(FILES ${PROJECT_BINARY_DIR}/fastrnn-config.cmake ${PROJECT_BINARY_DIR}/fastrnn-config-version.cmake
    COMPONENT kernels DESTINATION ${package_dir})
