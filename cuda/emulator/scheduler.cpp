// The threads of a block as fibers, which take turns where they wait.
#include "launch.hpp"

#include <algorithm>
#include <random>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

thread_local Thread* thread;
Counts counts;
void (*body)(void*);
void* body_argument;

namespace {

constexpr size_t STACK = 64 << 10;

#ifdef __x86_64__
void* scheduler;
extern "C" void emulator_switch(void** save, void* to);
asm(".text\n.globl emulator_switch\nemulator_switch:\n"
    "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp, (%rdi); mov %rsi, %rsp\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret\n");
void leave() { emulator_switch(&thread->stack_pointer, scheduler); }
void enter(Thread& t) { emulator_switch(&scheduler, t.stack_pointer); }
#else
ucontext_t scheduler;
void leave() { swapcontext((ucontext_t*)thread->stack_pointer, &scheduler); }
void enter(Thread& t) { swapcontext(&scheduler, (ucontext_t*)t.stack_pointer); }
#endif

void start() {
    body(body_argument);
    for (auto& group : thread->groups)
        if (!group.empty()) fail("a thread ends before its asynchronous copies");
    if (!thread->open.empty()) fail("a thread ends before its asynchronous copies");
    thread->done = true;
    leave();
}

void make_fiber(Thread& t, u8* stack) {
#ifdef __x86_64__
    void** top = (void**)(stack + STACK);
    *--top = nullptr;
    *--top = (void*)start;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    t.stack_pointer = top;
#else
    static thread_local std::vector<ucontext_t> contexts(1024);
    ucontext_t* context = &contexts[t.index];
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = STACK;
    makecontext(context, start, 0);
    t.stack_pointer = context;
#endif
}

// The i-th vector loads of a warp's lanes were one instruction, if all lanes made as many.
void count_conflicts(Block& b) {
    for (size_t w = 0; w < b.warps.size(); w++) {
        Thread* lanes = &b.threads[w * 32];
        size_t loads = lanes[0].loads.size();
        if (std::any_of(lanes, lanes + 32, [&](Thread& t) { return t.loads.size() != loads; })) continue;
        for (size_t i = 0; i < loads; i++) {
            const int size = (int)(lanes[0].loads[i] & 31), together = size == 16 ? 8 : size == 8 ? 16 : 32;
            for (int first = 0; first < 32; first += together) {
                std::vector<u32> words;
                for (int l = first; l < first + together; l++)
                    for (int byte = 0; byte < size; byte += 4) words.push_back(((lanes[l].loads[i] >> 5) + byte) / 4);
                std::sort(words.begin(), words.end());
                words.erase(std::unique(words.begin(), words.end()), words.end());
                int of_bank[32] = {}, most = 1;
                for (u32 word : words) most = std::max(most, ++of_bank[word % 32]);
                counts.phases++;
                counts.conflicts += most - 1;
            }
        }
    }
}

}  // namespace

// `order`: 0 forward, 1 backward, else the seed of a random order each round.
void run_block(Block& b, u64 order) {
    u8* stacks = (u8*)aligned_alloc(64, STACK * b.threads.size());
    std::vector<Thread*> queue;
    for (Thread& t : b.threads) {
        make_fiber(t, stacks + STACK * t.index);
        queue.push_back(&t);
    }
    if (order == 1) std::reverse(queue.begin(), queue.end());
    std::mt19937_64 random(order);
    for (size_t left = queue.size(); left;) {
        if (order > 1) std::shuffle(queue.begin(), queue.end(), random);
        bool ran = false;
        for (Thread* t : queue) {
            if (t->done || (t->until && *t->until == t->was)) continue;
            ran = true;
            t->until = nullptr;
            thread = t;
            enter(*t);
            left -= t->done;
        }
        if (!ran) {
            thread = *std::find_if(queue.begin(), queue.end(), [](Thread* t) { return !t->done; });
            fail("threads wait for others that never come");
        }
    }
    count_conflicts(b);
    free(stacks);
}

void wait_until_changed(const u64* value) {
    thread->until = value;
    thread->was = *value;
    leave();
}

std::map<std::string, Launcher>& kernels() {
    static std::map<std::string, Launcher> all;
    return all;
}

}  // namespace emulator
