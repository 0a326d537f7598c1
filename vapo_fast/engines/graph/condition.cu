// The kernels of a WHILE node of a CUDA graph (vapo_fast/graph/while_graph.py): one before it, one at the end of its
// body, one behind it. What is shipped is condition.ptx, made of this file by `python tests/graph/condition_ptx.py --write`;
// the driver compiles it for the device at hand and resolves cudaGraphSetConditional, which is in no library.
//
// asked (pinned memory, 5 numbers): written by the host, how many rows may run at the end and how many steps are
//     allowed; written back, how many steps were made, how many rows run and how many of these are far from their end.
// loop (device memory, 3 numbers): the first two of asked, and the steps so far. The body reads no host memory.
// flags (device memory, 2 numbers): written by each step, rows that run and rows that are far.

extern "C" __global__ void vapo_fast_enter(
    cudaGraphConditionalHandle handle, const long long* asked, long long* loop, const long long* flags) {
    const long long stop_at = asked[0], most = asked[1];
    loop[0] = stop_at;
    loop[1] = most;
    loop[2] = 0;
    cudaGraphSetConditional(handle, flags[0] > stop_at && most > 0);
}

extern "C" __global__ void vapo_fast_again(
    cudaGraphConditionalHandle handle, long long* loop, const long long* flags) {
    const long long steps = loop[2] + 1;
    loop[2] = steps;
    cudaGraphSetConditional(handle, flags[0] > loop[0] && steps < loop[1]);
}

extern "C" __global__ void vapo_fast_leave(long long* asked, const long long* loop, const long long* flags) {
    asked[2] = loop[2];
    asked[3] = flags[0];
    asked[4] = flags[1];
}
