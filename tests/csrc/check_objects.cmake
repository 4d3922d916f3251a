# cmake -DNM=... -DOBJECTS=a.o|b.o -P check_objects.cmake: an instruction set's object may offer the linker its table and
# nothing else. A weak symbol in it (an inline function, a template of the standard library) could be picked for every
# caller in the program, and run instructions there that the CPU lacks.

string(REPLACE "|" ";" objects "${OBJECTS}")
list(FILTER objects INCLUDE REGEX "/target_[a-z0-9]+\\.cpp\\.o$")
if(NOT objects)
    message(FATAL_ERROR "no objects to check in ${OBJECTS}")
endif()
foreach(object ${objects})
    string(REGEX REPLACE ".*/target_([a-z0-9]+)\\.cpp\\.o$" "\\1" name "${object}")
    execute_process(COMMAND "${NM}" --extern-only --defined-only "${object}"
        OUTPUT_VARIABLE output COMMAND_ERROR_IS_FATAL ANY)
    string(STRIP "${output}" output)
    string(REPLACE "\n" ";" symbols "${output}")
    if(NOT symbols MATCHES "^[0-9a-f]+ [RD] _ZN7fastrnn[0-9]+(passes|unit)_${name}E$")
        message(SEND_ERROR "${name} must define its table alone, but defines:\n${output}")
    endif()
endforeach()
