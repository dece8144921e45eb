#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__) || defined(EMU_UCONTEXT)
#include <ucontext.h>
#endif

namespace emu {

Fiber::Fiber() {
    void* memory = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fputs("the emulator cannot map a stack\n", stderr);
        abort();
    }
    stack = static_cast<char*>(memory);
}

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)

// Saves what the System V ABI asks a callee to keep; the rest is dead across a call.
asm(R"(
.text
.type emu_switch, @function
.hidden emu_switch
.globl emu_switch
emu_switch:
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
.size emu_switch, .-emu_switch
)");
extern "C" __attribute__((visibility("hidden"))) void emu_switch(void** save, void* load);

namespace {
thread_local void* scheduler;
}

Fiber::~Fiber() { munmap(stack, kStack); }

void Fiber::prepare(void (*body)()) {
    // Six registers, the entry, and a null return address: at entry the stack is 8 past a multiple of 16, as after a call.
    uintptr_t* top = reinterpret_cast<uintptr_t*>(stack + kStack);
    *--top = 0;
    *--top = reinterpret_cast<uintptr_t>(body);
    for (int at = 0; at < 6; at++) *--top = 0;
    stack_pointer = top;
}

void Fiber::resume() { emu_switch(&scheduler, stack_pointer); }
void Fiber::suspend() { emu_switch(&stack_pointer, scheduler); }

#else

namespace {
thread_local ucontext_t scheduler;
}

Fiber::~Fiber() {
    delete static_cast<ucontext_t*>(context);
    munmap(stack, kStack);
}

void Fiber::prepare(void (*body)()) {
    if (context == nullptr) context = new ucontext_t;
    ucontext_t* own = static_cast<ucontext_t*>(context);
    getcontext(own);
    own->uc_stack.ss_sp = stack;
    own->uc_stack.ss_size = kStack;
    own->uc_link = nullptr;
    makecontext(own, body, 0);
}

void Fiber::resume() { swapcontext(&scheduler, static_cast<ucontext_t*>(context)); }
void Fiber::suspend() { swapcontext(static_cast<ucontext_t*>(context), &scheduler); }

#endif

}  // namespace emu
