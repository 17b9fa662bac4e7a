// Kernels by name, called with arguments as cuLaunchKernel takes them.
#pragma once
#include <tuple>
#include <utility>

struct Kernel {
    const char* name;
    void (*call)(void** args);
};

// Null if there is none of that name.
const Kernel* find_kernel(const char* name);

template <auto function>
struct Unpack;

template <class... Args, void (*function)(Args...)>
struct Unpack<function> {
    static void call(void** args) { with(args, std::index_sequence_for<Args...>()); }
    template <size_t... i>
    static void with(void** args, std::index_sequence<i...>) {
        function(*(Args*)args[i]...);
    }
};
