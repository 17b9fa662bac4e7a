// A stack of its own for each thread of a block, and the switch between them.
//
// On x86-64 it is written out: ucontext's swapcontext asks the kernel for the signal mask each time, and a warp product is dozens of
// switches. Elsewhere ucontext does it.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)

typedef void* Context;

// Saves the registers that a call must keep, and the stack pointer in *from; goes on where `to` was saved.
extern "C" void emulator_switch(Context* from, Context to);
asm(R"(
    .text
    .globl emulator_switch
    .hidden emulator_switch
    .type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emulator_switch, . - emulator_switch
)");

inline void switch_context(Context* from, Context* to) { emulator_switch(from, *to); }

inline void begin_context(Context* context, void* stack, size_t bytes, void (*enter)()) {
    // Six registers, the address to return to, and what makes the stack aligned as after a call.
    uintptr_t* top = (uintptr_t*)(((uintptr_t)stack + bytes) & ~(uintptr_t)15);
    *--top = 0;
    *--top = (uintptr_t)enter;
    for (int i = 0; i < 6; i++) *--top = 0;
    *context = top;
}

#else

#include <ucontext.h>

typedef ucontext_t Context;

inline void switch_context(Context* from, Context* to) { swapcontext(from, to); }

inline void begin_context(Context* context, void* stack, size_t bytes, void (*enter)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = bytes;
    context->uc_link = nullptr;
    makecontext(context, enter, 0);
}

#endif
