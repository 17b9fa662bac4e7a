// The fibers behind emulator.h, and the one entry point through which a test launches a kernel.
#include "emulator.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "launch.h"

namespace emulator {
namespace {

struct Copy {
    void* to;
    unsigned char bytes[16];
};

enum class State { Ready, AtBarrier, AtCollective, Done };

struct Fiber {
    Context context;
    std::unique_ptr<unsigned char[]> stack;
    dim3 index;
    State state;
    int waits_for;  // the generation that the barrier or the warp must leave behind
    const char* file;
    int line;
    std::deque<std::vector<Copy>> commits;  // the last one is open
};

struct Warp {
    Slots slots[2];
    int arrived, generation;
    const char* file;
    int line;
};

constexpr size_t STACK = 256 << 10;
constexpr size_t GUARD = 256;

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Warp> warps;
std::vector<unsigned char> shared_storage;
unsigned char* shared_base;
size_t shared_size;
Context scheduler;
Fiber* now;
int barrier_generation, barrier_arrived;
const char* barrier_file;
int barrier_line;
std::string message;
const Kernel* kernel;
void** arguments;
unsigned threads;
bool copies_are_eager;

void fail(const std::string& what) {
    if (message.empty()) {
        char place[128];
        snprintf(place, sizeof place, " (block %u %u %u, thread %u)", block_index.x, block_index.y, block_index.z,
                 now ? now->index.x : 0);
        message = std::string(kernel->name) + ": " + what + place;
    }
    if (now) switch_context(&now->context, &scheduler);  // never resumed
}

std::string at(const char* file, int line) { return std::string(file) + ":" + std::to_string(line); }

bool same_place(const char* file, int line, const char* other_file, int other_line) {
    return line == other_line && (file == other_file || !strcmp(file, other_file));
}

void wait(State state, int generation) {
    now->state = state;
    now->waits_for = generation;
    switch_context(&now->context, &scheduler);
}

void enter() {
    kernel->call(arguments);
    now->state = State::Done;
    switch_context(&now->context, &scheduler);
}

bool runnable(const Fiber& f, unsigned index) {
    switch (f.state) {
        case State::Ready: return true;
        case State::AtBarrier: return barrier_generation != f.waits_for;
        case State::AtCollective: return warps[index / 32].generation != f.waits_for;
        default: return false;
    }
}

// Who stands where, once nobody can go on.
void report_deadlock() {
    unsigned done = 0, waiting = 0;
    const Fiber* one = nullptr;
    for (unsigned i = 0; i < threads; i++) {
        if (fibers[i]->state == State::Done) done++;
        else waiting++, one = fibers[i].get();
    }
    const char* what = one->state == State::AtBarrier ? "barrier" : "warp collective";
    now = nullptr;
    fail(std::to_string(waiting) + " threads wait at a " + what + " at " + at(one->file, one->line) + " that others never reach (" +
         std::to_string(done) + " have ended)");
}

void run_block(int order) {
    barrier_generation = barrier_arrived = 0;
    for (auto& w : warps) w.arrived = w.generation = 0;
    for (unsigned i = 0; i < threads; i++) {
        Fiber& f = *fibers[i];
        begin_context(&f.context, f.stack.get(), STACK, enter);
        f.index = {i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
        f.state = State::Ready;
        f.commits.clear();
        f.commits.emplace_back();
    }
    unsigned left = threads, count = threads / 32;
    uint32_t random = 12345 + block_index.x;
    while (left > 0) {
        bool moved = false;
        unsigned first = 0;
        if (order == 2) random = random * 1664525 + 1013904223, first = random >> 8;
        for (unsigned n = 0; n < count; n++) {
            unsigned warp = order == 1 ? count - 1 - n : (first + n) % count;
            // In order, all warps keep step. Otherwise a warp goes as far ahead of the others as barriers let it.
            bool again = true;
            while (again) {
                again = false;
                for (unsigned l = 0; l < 32; l++) {
                    unsigned i = warp * 32 + (order == 1 ? 31 - l : order == 2 ? (first + 5 * l) % 32 : l);
                    Fiber& f = *fibers[i];
                    if (!runnable(f, i)) continue;
                    moved = again = true;
                    f.state = State::Ready;
                    now = &f;
                    switch_context(&scheduler, &f.context);
                    now = nullptr;
                    if (!message.empty()) return;
                    if (f.state == State::Done) left--;
                }
                if (order == 0) break;
            }
        }
        if (!moved) return report_deadlock();
    }
    for (size_t i = 0; i < GUARD; i++) {
        if (shared_base[shared_size + i] != 0xff) return fail("a write past the dynamic shared memory");
    }
}

}  // namespace

dim3 block_index, block_size, grid_size;

const dim3& thread_index() { return now->index; }
unsigned char* dynamic_shared() { return shared_base; }

void barrier(const char* file, int line) {
    if (barrier_arrived == 0) barrier_file = file, barrier_line = line;
    if (!same_place(file, line, barrier_file, barrier_line))
        fail("threads at different barriers: " + at(file, line) + " and " + at(barrier_file, barrier_line));
    now->file = file, now->line = line;
    int generation = barrier_generation;
    if (++barrier_arrived == (int)threads) {
        barrier_arrived = 0;
        barrier_generation++;
    } else {
        wait(State::AtBarrier, generation);
    }
}

const Slots& collect(const void* mine, int bytes, const char* file, int line) {
    unsigned index = now->index.x + block_size.x * (now->index.y + block_size.y * now->index.z);
    Warp& w = warps[index / 32];
    if (w.arrived == 0) w.file = file, w.line = line;
    if (!same_place(file, line, w.file, w.line))
        fail("lanes of a warp at different collectives: " + at(file, line) + " and " + at(w.file, w.line));
    now->file = file, now->line = line;
    int generation = w.generation;
    // Two sets of slots: nobody can be two collectives ahead of a lane that still reads.
    Slots& slots = w.slots[generation & 1];
    memcpy(slots[index % 32], mine, bytes);
    if (++w.arrived == 32) {
        w.arrived = 0;
        w.generation++;
    } else {
        wait(State::AtCollective, generation);
    }
    return slots;
}

void copy_async(void* to, const void* from, bool valid) {
    if ((uintptr_t)to % 16 || (valid && (uintptr_t)from % 16)) fail("an asynchronous copy that is not aligned to 16 bytes");
    Copy copy = {to, {}};
    if (valid) memcpy(copy.bytes, from, 16);
    if (copies_are_eager) memcpy(to, copy.bytes, 16);
    else now->commits.back().push_back(copy);
}

void copies_commit() { now->commits.emplace_back(); }

void copies_wait(int pending) {
    while ((int)now->commits.size() - 1 > pending) {
        for (const Copy& copy : now->commits.front()) memcpy(copy.to, copy.bytes, 16);
        now->commits.pop_front();
    }
}

void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line) {
    unsigned mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const Slots& slots = collect(mine, sizeof mine, "mma", line);
    auto element = [&](int lane, int reg, int high) {
        unsigned pair;
        memcpy(&pair, slots[lane] + 4 * reg, 4);
        return bf16_value((unsigned short)(high ? pair >> 16 : pair));
    };
    // A[row][k]: lane 4 (row % 8) + (k % 8) / 2, register (row / 8) + 2 (k / 8). B[k][n]: lane 4 n + (k % 8) / 2, register k / 8.
    int g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; i++) {
        int row = g + 8 * (i / 2), n = 2 * t + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; k++) {
            float x = element(4 * (row % 8) + k % 8 / 2, row / 8 + 2 * (k / 8), k % 2);
            float y = element(4 * n + k % 8 / 2, 4 + k / 8, k % 2);
            sum += x * y;
        }
        c[i] = sum;
    }
}

void load_matrices(unsigned (&to)[4], const void* row, bool transposed, int line) {
    if ((uintptr_t)row % 16) fail("ldmatrix of a row that is not aligned to 16 bytes");
    const Slots& slots = collect(&row, sizeof row, transposed ? "ldmatrix.trans" : "ldmatrix", line);
    int g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; i++) {
        auto element = [&](int r, int column) -> unsigned {
            const unsigned short* p;
            memcpy(&p, slots[8 * i + r], sizeof p);
            return p[column];
        };
        to[i] = transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16 : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
    }
}

}  // namespace emulator

using namespace emulator;

// Runs a kernel. grid and block: x, y, z; args as cuLaunchKernel takes them, kinds: what they are, as launch.h has it. order: 0 as threads count, warps in step; 1
// backwards, 2 shuffled, both with warps that run ahead. Asynchronous copies happen at once in order 1, as late as they may in 0 and 2.
// Returns null, or what was wrong (valid until the next launch).
extern "C" __attribute__((visibility("default"))) const char* emulated_launch(const char* name, const unsigned* grid,
                                                                              const unsigned* block, unsigned shared_bytes,
                                                                              void** args, const char* kinds, int order) {
    message.clear();
    now = nullptr;
    kernel = find_kernel(name);
    if (!kernel) {
        message = std::string("no kernel of the name ") + name;
        return message.c_str();
    }
    if (strcmp(kinds, kernel->kinds)) {
        message = std::string(name) + ": arguments " + kinds + ", expected " + kernel->kinds +
                  " (p a pointer, f float, d double, i an integer of 4 bytes, l of 8)";
        return message.c_str();
    }
    arguments = args;
    copies_are_eager = order == 1;
    grid_size = {grid[0], grid[1], grid[2]};
    block_size = {block[0], block[1], block[2]};
    threads = block[0] * block[1] * block[2];
    block_index = {0, 0, 0};
    if (threads == 0 || threads > 1024 || threads % 32) {
        fail("a block of " + std::to_string(threads) + " threads: expected whole warps, 1024 threads at most");
        return message.c_str();
    }
    while (fibers.size() < threads) {
        fibers.emplace_back(new Fiber());
        fibers.back()->stack.reset(new unsigned char[STACK]);
    }
    warps.resize(threads / 32);
    shared_size = shared_bytes;
    shared_storage.resize(shared_size + GUARD + 16);
    shared_base = (unsigned char*)(((uintptr_t)shared_storage.data() + 15) & ~(uintptr_t)15);
    uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    for (uint64_t n = 0; n < blocks; n++) {
        uint64_t b = order == 1 ? blocks - 1 - n : n;
        block_index = {(unsigned)(b % grid[0]), (unsigned)(b / grid[0] % grid[1]), (unsigned)(b / grid[0] / grid[1])};
        memset(shared_base, 0xff, shared_size + GUARD);
        run_block(order);
        if (!message.empty()) return message.c_str();
    }
    return nullptr;
}
