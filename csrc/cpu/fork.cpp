#include "fork.h"

#include <pthread.h>
#include <semaphore.h>

#include <atomic>
#include <cstdlib>

namespace fastrnn {
namespace {

thread_local bool forked = false;  // whether this thread is a copy that fork() made

// Serves the one copy that a process can have: of all threads only the one that called fork() lives on.
struct Helper {
    bool exists;
    std::atomic<bool> ends;
    pthread_t thread;
    sem_t called, returned;
    void (*function)(const void*);
    const void* argument;
};
Helper helper;

void wait_for(sem_t& semaphore) {
    while (sem_wait(&semaphore) != 0) {  // a signal came
    }
}

void* serve(void*) {
    for (;;) {
        wait_for(helper.called);
        if (helper.ends) return nullptr;  // its regions' threads end with it
        helper.function(helper.argument);
        sem_post(&helper.returned);
    }
}

// At exit torch joins threads that it had in the parent. The helper and those of its regions may have been given their
// memory, and with it their identity.
void end_helper() {
    if (!helper.exists) return;
    helper.exists = false;
    helper.ends = true;
    sem_post(&helper.called);
    pthread_join(helper.thread, nullptr);
}

bool start_helper() {
    helper.ends = false;
    sem_init(&helper.called, 0, 0);
    sem_init(&helper.returned, 0, 0);
    if (pthread_create(&helper.thread, nullptr, serve, nullptr) != 0) return false;
    std::atexit(end_helper);
    return true;
}

const bool watches_fork = [] {
    pthread_atfork(nullptr, nullptr, [] {
        forked = true;
        helper.exists = false;  // it stayed in the parent
    });
    return true;
}();

}  // namespace

bool call_where_regions_begin(void (*function)(const void*), const void* argument) {
    if (!forked) {
        function(argument);
        return true;
    }
    if (!helper.exists) helper.exists = start_helper();
    if (!helper.exists) return false;
    helper.function = function;
    helper.argument = argument;
    sem_post(&helper.called);
    wait_for(helper.returned);
    return true;
}

}  // namespace fastrnn
