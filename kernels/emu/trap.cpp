// What would end the process in a kernel's thread is a fault of the kernel: a division by zero, or an address that the
// plain build did not look at. Signals of other threads go where they went before.
#include <signal.h>

#include "machine.h"

namespace emu {

namespace {

constexpr int kSignals[] = {SIGFPE, SIGSEGV, SIGBUS};
struct sigaction previous[3];

void handle(int signal, siginfo_t* info, void* context) {
    if (machine != nullptr && machine->current != nullptr) {
        // The signal is the thread's own and comes from the kernel's code: leaving the handler for good is safe.
        if (signal == SIGFPE) machine->fail("divides by zero");
        machine->fail("accesses %s", machine->place(info->si_addr).c_str());
    }
    for (int at = 0; at < 3; at++) {
        if (kSignals[at] != signal) continue;
        if (previous[at].sa_flags & SA_SIGINFO) return previous[at].sa_sigaction(signal, info, context);
        // Not ours and nobody's: the instruction runs again and ends the process.
        sigaction(signal, &previous[at], nullptr);
    }
}

}  // namespace

void catch_signals() {
    static bool done = false;
    if (done) return;
    done = true;
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (int at = 0; at < 3; at++) sigaction(kSignals[at], &action, &previous[at]);
}

}  // namespace emu
