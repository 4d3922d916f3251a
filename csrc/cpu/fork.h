// Where a parallel region may begin.
//
// libgomp keeps its waiting threads by the thread that began the region. fork() copies that thread and none of the
// others, so a region begun on the child's copy waits forever for threads that do not exist.
#pragma once

namespace fastrnn {

// Calls function(argument) on a thread whose regions work in this process: the calling one or, where fork() made its
// copy, another one, for which it waits. False, without a call: no thread is to be had.
bool call_where_regions_begin(void (*function)(const void*), const void* argument);

}  // namespace fastrnn
