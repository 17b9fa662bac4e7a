// Kernels by name, called with arguments as cuLaunchKernel takes them.
#pragma once
#include <tuple>
#include <type_traits>
#include <utility>

struct Kernel {
    const char* name;
    void (*call)(void** args);
    const char* kinds;  // of its parameters, a letter each
};

// Null if there is none of that name.
const Kernel* find_kernel(const char* name);

// p a pointer, f float, d double, i an integer of 4 bytes, l of 8.
template <class T>
constexpr char kind() {
    if (std::is_pointer<T>::value) return 'p';
    if (std::is_same<T, float>::value) return 'f';
    if (std::is_same<T, double>::value) return 'd';
    static_assert(std::is_pointer<T>::value || std::is_arithmetic<T>::value, "no kind of argument");
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "no kind of argument");
    return sizeof(T) == 4 ? 'i' : 'l';
}

template <auto function>
struct Unpack;

template <class... Args, void (*function)(Args...)>
struct Unpack<function> {
    static constexpr char kinds[] = {kind<Args>()..., 0};
    static void call(void** args) { with(args, std::index_sequence_for<Args...>()); }
    template <size_t... i>
    static void with(void** args, std::index_sequence<i...>) {
        function(*(Args*)args[i]...);
    }
};
