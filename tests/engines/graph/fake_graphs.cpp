// A CUDA driver that builds and runs graphs on the processor, written against the real cuda.h: what it is given is laid
// out as the real driver wants it, or it complains. Graphs that PyTorch would have captured are callbacks of the tests;
// the kernels of the WHILE node are those of condition.cu. Nodes that nothing holds back run last one first, so that a
// missing dependency shows. Work is done when it is asked about, or waited for.
#include <cuda.h>

#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

using cudaGraphConditionalHandle = unsigned long long;
static void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value);
#define __global__
#include "condition.cu"

namespace {

using Callback = void (*)();

struct Graph;

struct Node {
    CUgraphNodeType type{};
    std::vector<Node*> before;
    std::string kernel;
    std::vector<unsigned long long> values;
    std::unique_ptr<Graph> inside;
    CUgraph inside_handle{};
    unsigned long long condition = 0;
};

struct Graph {
    std::vector<std::unique_ptr<Node>> nodes;
    Callback callback = nullptr;
    bool is_body = false;
};

struct Condition {
    const Graph* graph;
    unsigned value, initial, flags;
    bool used;
};

struct Function {
    std::string name;
    std::size_t arguments;
};

struct Event {
    long long after;
};

enum { GRAPHS, GRAPHS_DESTROYED, EXECUTABLES, EXECUTABLES_DESTROYED, MODULES, LAUNCHES, COMPLETED, STEPS, SYNCHRONIZED,
       EVENTS, EVENTS_DESTROYED, COUNTS };
constexpr long long kEndless = 100000;
constexpr std::uintptr_t kStream = 0x51;

long long counts[COUNTS], slow, asked_about, fails_in, fails_with;
int version;
std::uintptr_t context;
std::string log_of_calls, failing, complaint, image_of_module;
std::map<unsigned long long, Condition> conditions;
std::map<const void*, const Graph*> executables;
std::deque<const Graph*> queue;
Function functions[] = {{"vapo_fast_enter", 4}, {"vapo_fast_again", 3}, {"vapo_fast_leave", 3}};
CUresult running_failed;
CUstreamCaptureMode capture_mode;

CUresult complain(const char* what) {
    complaint = what;
    return CUDA_ERROR_INVALID_VALUE;
}

CUresult begin(const char* function) {
    log_of_calls += std::string(function) + "\n";
    if (failing == function && fails_in-- <= 0) return static_cast<CUresult>(fails_with);
    return CUDA_SUCCESS;
}

// Calls that a capture of some thread would not survive.
CUresult begin_unsafe(const char* function) {
    const CUresult code = begin(function);
    return code == CUDA_SUCCESS && capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED
               ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
               : code;
}

bool has_conditional(const Graph& graph) {
    for (const auto& node : graph.nodes)
        if (node->type == CU_GRAPH_NODE_TYPE_CONDITIONAL || (node->inside && has_conditional(*node->inside))) return true;
    return false;
}

bool fits_a_body(const Graph& graph) {
    for (const auto& node : graph.nodes) {
        switch (node->type) {
            case CU_GRAPH_NODE_TYPE_KERNEL:
            case CU_GRAPH_NODE_TYPE_MEMCPY:
            case CU_GRAPH_NODE_TYPE_MEMSET:
            case CU_GRAPH_NODE_TYPE_EMPTY: break;
            case CU_GRAPH_NODE_TYPE_GRAPH:
            case CU_GRAPH_NODE_TYPE_CONDITIONAL:
                if (!fits_a_body(*node->inside)) return false;
                break;
            default: return false;
        }
    }
    return true;
}

bool bodies_fit(const Graph& graph) {
    for (const auto& node : graph.nodes)
        if (node->type == CU_GRAPH_NODE_TYPE_CONDITIONAL && !fits_a_body(*node->inside)) return false;
    return true;
}

// A child graph is a copy: what becomes of the original afterwards does not matter.
std::unique_ptr<Graph> copy_of(const Graph& graph) {
    auto copy = std::make_unique<Graph>();
    copy->callback = graph.callback;
    for (const auto& node : graph.nodes) {
        auto one = std::make_unique<Node>();
        one->type = node->type;
        if (node->inside) one->inside = copy_of(*node->inside);
        copy->nodes.push_back(std::move(one));
    }
    return copy;
}

bool all_zero(const void* begin, const void* end) {
    for (auto p = static_cast<const char*>(begin); p != end; ++p)
        if (*p != 0) return false;
    return true;
}

template <class T>
T* address(unsigned long long value) {
    return reinterpret_cast<T*>(static_cast<std::uintptr_t>(value));
}

void run(const Graph& graph);

void run_node(const Node& node) {
    const auto& v = node.values;
    if (node.type == CU_GRAPH_NODE_TYPE_KERNEL && node.kernel == "vapo_fast_enter") {
        vapo_fast_enter(v[0], address<const long long>(v[1]), address<long long>(v[2]), address<const long long>(v[3]));
    } else if (node.type == CU_GRAPH_NODE_TYPE_KERNEL && node.kernel == "vapo_fast_again") {
        vapo_fast_again(v[0], address<long long>(v[1]), address<const long long>(v[2]));
    } else if (node.type == CU_GRAPH_NODE_TYPE_KERNEL && node.kernel == "vapo_fast_leave") {
        vapo_fast_leave(address<long long>(v[0]), address<const long long>(v[1]), address<const long long>(v[2]));
    } else if (node.type == CU_GRAPH_NODE_TYPE_GRAPH) {
        run(*node.inside);
    } else if (node.type == CU_GRAPH_NODE_TYPE_CONDITIONAL) {
        long long rounds = 0;
        while (conditions[node.condition].value != 0) {
            run(*node.inside);
            if (running_failed != CUDA_SUCCESS) return;
            if (++rounds > kEndless) {
                running_failed = CUDA_ERROR_LAUNCH_FAILED;
                return;
            }
        }
    }
}

void run(const Graph& graph) {
    if (graph.callback != nullptr) {
        ++counts[STEPS];
        graph.callback();
        return;
    }
    std::vector<const Node*> done, left;
    for (const auto& node : graph.nodes) left.push_back(node.get());
    const auto is_ready = [&](const Node* node) {
        for (const Node* before : node->before) {
            bool found = false;
            for (const Node* one : done) found = found || one == before;
            if (!found) return false;
        }
        return true;
    };
    while (!left.empty()) {
        std::size_t chosen = left.size() - 1;
        while (!is_ready(left[chosen])) --chosen;  // no cycles: a node's dependencies are there before it
        const Node* node = left[chosen];
        left.erase(left.begin() + static_cast<std::ptrdiff_t>(chosen));
        run_node(*node);
        done.push_back(node);
    }
}

void complete() {
    const Graph* graph = queue.front();
    queue.pop_front();
    for (auto& [handle, condition] : conditions)
        if (condition.graph == graph && (condition.flags & CU_GRAPH_COND_ASSIGN_DEFAULT) != 0)
            condition.value = condition.initial;
    run(*graph);
    ++counts[COMPLETED];
}

CUresult add_kernel(Node& node, const CUgraphNodeParams& params) {
    const auto& kernel = params.kernel;
    if (!all_zero(reinterpret_cast<const char*>(&kernel) + sizeof kernel, &params + 1)) return complain("kernel: not zero");
    const Function* function = reinterpret_cast<const Function*>(kernel.func);
    if (function == nullptr || function < functions || function > functions + 2) return complain("kernel: no function");
    if (kernel.gridDimX * kernel.gridDimY * kernel.gridDimZ != 1) return complain("kernel: grid");
    if (kernel.blockDimX * kernel.blockDimY * kernel.blockDimZ != 1) return complain("kernel: block");
    if (kernel.sharedMemBytes != 0 || kernel.extra != nullptr || kernel.kern != nullptr) return complain("kernel: more");
    if (kernel.ctx != nullptr && kernel.ctx != reinterpret_cast<CUcontext>(context)) return complain("kernel: context");
    if (kernel.kernelParams == nullptr) return complain("kernel: no arguments");
    node.kernel = function->name;
    for (std::size_t i = 0; i < function->arguments; ++i)
        node.values.push_back(*static_cast<const unsigned long long*>(kernel.kernelParams[i]));
    return CUDA_SUCCESS;
}

CUresult add_child(Node& node, const CUgraphNodeParams& params) {
    if (!all_zero(&params.graph.graph + 1, &params + 1)) return complain("child: not zero, or not a copy");
    if (params.graph.graph == nullptr) return complain("child: no graph");
    const Graph& child = *reinterpret_cast<const Graph*>(params.graph.graph);
    if (has_conditional(child)) return complain("child: conditional inside");
    node.inside = copy_of(child);
    return CUDA_SUCCESS;
}

CUresult add_conditional(Node& node, CUgraphNodeParams& params) {
    auto& conditional = params.conditional;
    if (!all_zero(&conditional + 1, &params + 1)) return complain("conditional: not zero");
    const auto found = conditions.find(conditional.handle);
    if (found == conditions.end() || found->second.used) return complain("conditional: handle");
    if (conditional.type != CU_GRAPH_COND_TYPE_WHILE || conditional.size != 1) return complain("conditional: type, size");
    if (conditional.ctx != reinterpret_cast<CUcontext>(context)) return complain("conditional: context");
    if (conditional.phGraph_out != nullptr) return complain("conditional: out");
    found->second.used = true;
    node.condition = conditional.handle;
    node.inside = std::make_unique<Graph>();
    node.inside->is_body = true;
    node.inside_handle = reinterpret_cast<CUgraph>(node.inside.get());
    conditional.phGraph_out = &node.inside_handle;
    return CUDA_SUCCESS;
}

}  // namespace

static void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
    const auto found = conditions.find(handle);
    if (found == conditions.end())
        running_failed = CUDA_ERROR_ILLEGAL_ADDRESS;
    else
        found->second.value = value;
}

extern "C" {

// ---- for the tests ----

void fake_reset(int of_version, unsigned long long current, long long queries) {
    std::memset(counts, 0, sizeof counts);
    log_of_calls.clear(), failing.clear(), complaint.clear();
    conditions.clear(), executables.clear(), queue.clear();
    version = of_version;
    context = static_cast<std::uintptr_t>(current);
    slow = queries, asked_about = 0;
    running_failed = CUDA_SUCCESS;
    capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
}

int fake_capture_mode() { return capture_mode; }

void fake_fail(const char* function, long long call, long long code) {
    failing = function, fails_in = call, fails_with = code;
}

const long long* fake_counts() { return counts; }
const char* fake_log() { return log_of_calls.c_str(); }
const char* fake_complaint() { return complaint.c_str(); }
void fake_queries(long long queries) { slow = queries; }

// What a capture leaves: nodes of these types, the last of which has nodes of its own if it is a child graph.
void* fake_captured(Callback callback, const int* types, int n, const int* inner, int inner_n) {
    auto* graph = new Graph;
    graph->callback = callback;
    for (int i = 0; i < n; ++i) {
        graph->nodes.push_back(std::make_unique<Node>());
        graph->nodes.back()->type = static_cast<CUgraphNodeType>(types[i]);
        if (types[i] == CU_GRAPH_NODE_TYPE_GRAPH) {
            graph->nodes.back()->inside = std::make_unique<Graph>();
            for (int k = 0; k < inner_n; ++k) {
                graph->nodes.back()->inside->nodes.push_back(std::make_unique<Node>());
                graph->nodes.back()->inside->nodes.back()->type = static_cast<CUgraphNodeType>(inner[k]);
            }
        }
    }
    return graph;
}

void fake_release(void* graph) { delete static_cast<Graph*>(graph); }

// ---- the driver ----

CUresult cuDriverGetVersion(int* found) {
    *found = version;
    return begin("cuDriverGetVersion");
}

CUresult cuCtxGetCurrent(CUcontext* current) {
    *current = reinterpret_cast<CUcontext>(context);
    return begin("cuCtxGetCurrent");
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    const CUresult code = begin("cuThreadExchangeStreamCaptureMode");
    if (code == CUDA_SUCCESS) std::swap(*mode, capture_mode);
    return code;
}

CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned n, CUjit_option* options, void** values) {
    const CUresult code = begin_unsafe("cuModuleLoadDataEx");
    if (n != 2 || options[0] != CU_JIT_ERROR_LOG_BUFFER || options[1] != CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
        return complain("module: options");
    if (code != CUDA_SUCCESS) {
        const std::size_t room = reinterpret_cast<std::size_t>(values[1]);
        std::strncpy(static_cast<char*>(values[0]), "ptxas fatal: no such instruction\n", room - 1);
        return code;
    }
    image_of_module = static_cast<const char*>(image);
    ++counts[MODULES];
    *module = reinterpret_cast<CUmodule>(&image_of_module);
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    const CUresult code = begin("cuModuleGetFunction");
    if (code != CUDA_SUCCESS) return code;
    const auto& image = *reinterpret_cast<const std::string*>(module);
    if (image.find(".visible .entry " + std::string(name) + "(") == std::string::npos) return CUDA_ERROR_NOT_FOUND;
    for (Function& one : functions)
        if (one.name == name) {
            *function = reinterpret_cast<CUfunction>(&one);
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_NOT_FOUND;
}

CUresult cuGraphCreate(CUgraph* graph, unsigned flags) {
    const CUresult code = begin_unsafe("cuGraphCreate");
    if (code != CUDA_SUCCESS) return code;
    if (flags != 0) return complain("graph: flags");
    *graph = reinterpret_cast<CUgraph>(new Graph);
    ++counts[GRAPHS];
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(CUgraph graph) {
    const CUresult code = begin_unsafe("cuGraphDestroy");
    if (code != CUDA_SUCCESS) return code;
    for (const auto& [handle, executable] : executables)
        if (executable == reinterpret_cast<Graph*>(graph)) return complain("destroyed before its executable");
    delete reinterpret_cast<Graph*>(graph);
    ++counts[GRAPHS_DESTROYED];
    return code;
}

CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode* nodes, size_t* n) {
    const CUresult code = begin("cuGraphGetNodes");
    if (code != CUDA_SUCCESS) return code;
    const auto& all = reinterpret_cast<const Graph*>(graph)->nodes;
    if (nodes != nullptr)
        for (std::size_t i = 0; i < *n; ++i) nodes[i] = reinterpret_cast<CUgraphNode>(all[i].get());
    *n = all.size();
    return CUDA_SUCCESS;
}

CUresult cuGraphNodeGetType(CUgraphNode node, CUgraphNodeType* type) {
    const CUresult code = begin("cuGraphNodeGetType");
    if (code == CUDA_SUCCESS) *type = reinterpret_cast<const Node*>(node)->type;
    return code;
}

CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode node, CUgraph* graph) {
    const CUresult code = begin("cuGraphChildGraphNodeGetGraph");
    if (code == CUDA_SUCCESS) *graph = reinterpret_cast<CUgraph>(reinterpret_cast<const Node*>(node)->inside.get());
    return code;
}

CUresult cuGraphConditionalHandleCreate(
    CUgraphConditionalHandle* handle, CUgraph graph, CUcontext of, unsigned initial, unsigned flags) {
    const CUresult code = begin("cuGraphConditionalHandleCreate");
    if (code != CUDA_SUCCESS) return code;
    if (of != reinterpret_cast<CUcontext>(context)) return complain("handle: context");
    *handle = 0xabc0000000000000ULL + conditions.size();
    // Without a default a handle has any value at first.
    conditions[*handle] = {reinterpret_cast<Graph*>(graph), 1, initial, flags, false};
    return CUDA_SUCCESS;
}

CUresult cuGraphAddNode_v2(CUgraphNode* added, CUgraph graph, const CUgraphNode* before, const CUgraphEdgeData* edges,
                           size_t n, CUgraphNodeParams* params) {
    const CUresult code = begin("cuGraphAddNode_v2");
    if (code != CUDA_SUCCESS) return code;
    auto& all = reinterpret_cast<Graph*>(graph)->nodes;
    auto node = std::make_unique<Node>();
    node->type = params->type;
    if (edges != nullptr || (n > 0) != (before != nullptr)) return complain("node: edges");
    for (std::size_t i = 0; i < n; ++i) {
        bool found = false;
        for (const auto& one : all) found = found || one.get() == reinterpret_cast<Node*>(before[i]);
        if (!found) return complain("node: depends on one of another graph");
        node->before.push_back(reinterpret_cast<Node*>(before[i]));
    }
    if (params->reserved0[0] != 0 || params->reserved0[1] != 0 || params->reserved0[2] != 0 || params->reserved2 != 0)
        return complain("node: reserved");
    CUresult result = complain("node: type");
    if (params->type == CU_GRAPH_NODE_TYPE_KERNEL) result = add_kernel(*node, *params);
    if (params->type == CU_GRAPH_NODE_TYPE_GRAPH) result = add_child(*node, *params);
    if (params->type == CU_GRAPH_NODE_TYPE_CONDITIONAL) result = add_conditional(*node, *params);
    if (result != CUDA_SUCCESS) return result;
    complaint.clear();
    *added = reinterpret_cast<CUgraphNode>(node.get());
    all.push_back(std::move(node));
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithParams(CUgraphExec* executable, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
    const CUresult code = begin_unsafe("cuGraphInstantiateWithParams");
    params->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
    if (code != CUDA_SUCCESS) {
        params->result_out = CUDA_GRAPH_INSTANTIATE_NODE_OPERATION_NOT_SUPPORTED;
        return code;
    }
    const auto* one = reinterpret_cast<const Graph*>(graph);
    if (params->flags != 0 || params->hUploadStream != nullptr) return complain("instantiate: flags");
    for (const auto& [handle, condition] : conditions)
        if (condition.graph == one && !condition.used) {
            params->result_out = CUDA_GRAPH_INSTANTIATE_CONDITIONAL_HANDLE_UNUSED;
            return CUDA_ERROR_INVALID_VALUE;
        }
    if (!bodies_fit(*one)) {
        params->result_out = CUDA_GRAPH_INSTANTIATE_INVALID_STRUCTURE;
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    *executable = reinterpret_cast<CUgraphExec>(new char);
    executables[*executable] = one;
    ++counts[EXECUTABLES];
    return CUDA_SUCCESS;
}

CUresult cuGraphExecDestroy(CUgraphExec executable) {
    const CUresult code = begin_unsafe("cuGraphExecDestroy");
    if (code != CUDA_SUCCESS) return code;
    if (executables.erase(executable) == 0) return complain("no such executable");
    if (!queue.empty()) return complain("destroyed under way");
    delete reinterpret_cast<char*>(executable);
    ++counts[EXECUTABLES_DESTROYED];
    return code;
}

CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    const CUresult code = begin("cuGraphLaunch");
    if (code != CUDA_SUCCESS) return code;
    const auto found = executables.find(executable);
    if (found == executables.end() || stream != reinterpret_cast<CUstream>(kStream)) return CUDA_ERROR_INVALID_HANDLE;
    queue.push_back(found->second);
    ++counts[LAUNCHES];
    return CUDA_SUCCESS;
}

CUresult cuEventCreate(CUevent* event, unsigned) {
    *event = reinterpret_cast<CUevent>(new Event{0});
    ++counts[EVENTS];
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(CUevent event) {
    delete reinterpret_cast<Event*>(event);
    ++counts[EVENTS_DESTROYED];
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(CUevent event, CUstream) {
    reinterpret_cast<Event*>(event)->after = counts[LAUNCHES];
    return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent event) {
    if (!queue.empty() && ++asked_about >= slow) {
        asked_about = 0;
        complete();
    }
    if (running_failed != CUDA_SUCCESS) return running_failed;
    return counts[COMPLETED] >= reinterpret_cast<Event*>(event)->after ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

CUresult cuStreamSynchronize(CUstream) {
    ++counts[SYNCHRONIZED];
    while (!queue.empty()) complete();
    return running_failed;
}

CUresult cuGetErrorName(CUresult code, const char** name) {
    switch (code) {
        case CUDA_ERROR_INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; return CUDA_SUCCESS;
        case CUDA_ERROR_OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return CUDA_SUCCESS;
        case CUDA_ERROR_INVALID_PTX: *name = "CUDA_ERROR_INVALID_PTX"; return CUDA_SUCCESS;
        case CUDA_ERROR_LAUNCH_FAILED: *name = "CUDA_ERROR_LAUNCH_FAILED"; return CUDA_SUCCESS;
        case CUDA_ERROR_NOT_SUPPORTED: *name = "CUDA_ERROR_NOT_SUPPORTED"; return CUDA_SUCCESS;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
}

}  // extern "C"
