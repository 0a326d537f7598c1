/* A CUDA driver of seven functions whose replays end when they are asked about: tests script what each replay leaves in
   the flags, how long it takes in queries, and which call fails with what; it keeps count of everything. */
#include <stdlib.h>
#include <string.h>

typedef long long number;

enum { LAUNCHES, COMPLETED, CREATED, DESTROYED, RECORDS, QUERIES, SYNCHRONIZED, MOST_UNDER_WAY, RAN_DRY, COUNTS };

static number counts[COUNTS];
static volatile number *flags;
static number running[4096], far[4096], length, slow, asked;
static char failing[64];
static number failing_call, failing_code;

typedef struct {
    number after;
} Event;

void fake_reset(number *to, const number *script_running, const number *script_far, number n, number queries) {
    memset(counts, 0, sizeof counts);
    flags = to;
    length = n;
    slow = queries;
    asked = 0;
    memcpy(running, script_running, n * sizeof(number));
    memcpy(far, script_far, n * sizeof(number));
    failing[0] = 0;
}

void fake_fail(const char *function, number call, number code) {
    strncpy(failing, function, sizeof failing - 1);
    failing_call = call;
    failing_code = code;
}

const number *fake_counts(void) { return counts; }

static int fails(const char *function) {
    return strcmp(failing, function) == 0 && failing_call-- <= 0 ? (int)failing_code : 0;
}

static void complete(void) {
    number i = counts[COMPLETED] < length ? counts[COMPLETED] : length - 1;
    flags[0] = running[i];
    flags[1] = far[i];
    ++counts[COMPLETED];
}

int cuEventCreate(void **event, unsigned settings) {
    int code = fails("cuEventCreate");
    if (code) return code;
    if (settings != 2) return 1;
    *event = calloc(1, sizeof(Event));
    ++counts[CREATED];
    return 0;
}

int cuEventDestroy_v2(void *event) {
    free(event);
    ++counts[DESTROYED];
    return 0;
}

int cuEventRecord(void *event, void *stream) {
    int code = fails("cuEventRecord");
    if (code) return code;
    if (stream != (void *)0x51) return 400;
    ((Event *)event)->after = counts[LAUNCHES];
    ++counts[RECORDS];
    return 0;
}

int cuEventQuery(void *event) {
    int code = fails("cuEventQuery");
    if (code) return code;
    ++counts[QUERIES];
    if (counts[COMPLETED] < counts[LAUNCHES] && ++asked >= slow) {
        asked = 0;
        complete();
    }
    return counts[COMPLETED] >= ((Event *)event)->after ? 0 : 600;
}

int cuGraphLaunch(void *graph, void *stream) {
    int code = fails("cuGraphLaunch");
    if (code) return code;
    if (graph != (void *)0x6a || stream != (void *)0x51) return 400;
    if (counts[LAUNCHES] > 0 && counts[LAUNCHES] == counts[COMPLETED]) ++counts[RAN_DRY];
    ++counts[LAUNCHES];
    if (counts[LAUNCHES] - counts[COMPLETED] > counts[MOST_UNDER_WAY])
        counts[MOST_UNDER_WAY] = counts[LAUNCHES] - counts[COMPLETED];
    return 0;
}

int cuStreamSynchronize(void *stream) {
    ++counts[SYNCHRONIZED];
    if (stream != (void *)0x51) return 400;
    while (counts[COMPLETED] < counts[LAUNCHES]) complete();
    return 0;
}

int cuGetErrorName(int code, const char **name) {
    switch (code) {
        case 2: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return 0;
        case 400: *name = "CUDA_ERROR_INVALID_HANDLE"; return 0;
        case 719: *name = "CUDA_ERROR_LAUNCH_FAILED"; return 0;
        default: return 1;
    }
}
