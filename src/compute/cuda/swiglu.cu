// The gated activation of the FFN: silu(gate) up (cpu/swiglu.rs).
#include "common.cuh"

// cpu/swiglu.rs `swiglu`. gate_up REAL [T, 2 f] (gate, then up, in each row) to act REAL [T, f]. f: a multiple of 8.
// Grid: any (ceil(T f / 8 / block) covers all at once); block: any.
extern "C" __global__ void swiglu(const real* gate_up, real* act, int t, int f) {
    size_t n = (size_t)t * f / 8, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        size_t at = i * 8, row = at / f, column = at % f;
        float gate[8], up[8];
        load8(gate_up + row * 2 * f + column, gate);
        load8(gate_up + row * 2 * f + f + column, up);
        for (int k = 0; k < 8; k++) gate[k] = gate[k] * sigmoid(gate[k]) * up[k];
        store8(act + at, gate);
    }
}

// cpu/swiglu.rs `swiglu_backward`: replaces gate_up REAL [T, 2 f] by its gradient, given d_act REAL [T, f]. act, REAL [T, f]:
// if not null, gets the activation once more, which the backward of the down projection's weight reads (it may not be d_act).
// Grid, block: any.
extern "C" __global__ void swiglu_backward(real* gate_up, const real* d_act, real* act, int t, int f) {
    size_t n = (size_t)t * f / 8, step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        size_t at = i * 8, row = at / f, column = at % f;
        float gate[8], up[8], d[8], forward[8];
        real* gates = gate_up + row * 2 * f + column;
        load8(gates, gate);
        load8(gates + f, up);
        load8(d_act + at, d);
        for (int k = 0; k < 8; k++) {
            float s = sigmoid(gate[k]), silu = gate[k] * s;
            forward[k] = silu * up[k];
            gate[k] = d[k] * up[k] * fmaf(s, 1.0f - silu, silu);
            up[k] = d[k] * silu;
        }
        store8(gates, gate);
        store8(gates + f, up);
        if (act) store8(act + at, forward);
    }
}
