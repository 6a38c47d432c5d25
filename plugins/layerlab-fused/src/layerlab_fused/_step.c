/* layerlab_fused._step: a training step of the two-layer network in one call, on the CPU.

   step(plan, x, y, threads) -> loss

   `plan` is a `Plan` as bytes, which `layerlab_fused.compiled` packs; `x` and `y` are addresses of (N, D_in)
   and (N, D_out) numbers without gaps. Whoever calls answers for it that all addresses are what they should be. */

#define PY_SSIZE_T_CLEAN
#ifdef Py_LIMITED_API /* setup.py says so where there is a stable ABI */
#undef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#include <Python.h>

#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Numbers of a dot product, and rows and columns of x, in a block: what is used again and again should be in the
   second cache (DEPTH x (BATCH + a thread's hidden units) numbers), and the smaller block, and a tile's share of the
   larger one, in the first. COLUMNS is a multiple of every tile's, of which none has more than TILE. */
enum { DEPTH = 1024, BATCH = 64, COLUMNS = 192, TILE = 64 };

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define PASTE(a, b, c) a##b##c
#define JOIN(a, b, c) PASTE(a, b, c)

typedef struct {
    ptrdiff_t d_in, hidden, d_out, n, ld; /* ld: n rounded up to whole vectors */
    ptrdiff_t ldw;                        /* the same of d_in: from a row of w1_t to the next */
    ptrdiff_t kernel;                     /* an index of `kernels` */
    double rate;                          /* what y_pred - y is multiplied by before it is carried back */
    void *w1_t, *w2, *b1, *b2;            /* (hidden, ldw), (hidden, d_out), (hidden), (d_out) or NULL */
    void *h, *grad;                       /* (hidden, ld) each; beyond n columns they are 0 */
    void *shares, *diffs;                 /* (threads, d_out, ld) each */
    void *ends;                           /* (threads, BATCH, TILE): the last columns of x */
} Plan;

#define KIND any
#define WIDTH 16
#define ROWS 4
#define COLS 3
#include "_both.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_AVX2 __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define KIND avx2
#define WIDTH 32
#define ROWS 4
#define COLS 3
#include "_both.h"
#pragma GCC pop_options

#define HAS_AVX512 HAS_AVX2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq")
#define KIND avx512
#define WIDTH 64
#define ROWS 6
#define COLS 4
#include "_both.h"
#pragma GCC pop_options
#endif

typedef struct {
    void (*forward)(const Plan *, const void *, ptrdiff_t, ptrdiff_t);
    void (*backward)(const Plan *, const void *, const void *, ptrdiff_t, ptrdiff_t, double *);
} Kernel;

/* For any processor, float and double; then for one with AVX2, and for one with AVX-512. */
static const Kernel kernels[] = {
    {forward_float_any, backward_float_any},
    {forward_double_any, backward_double_any},
#ifdef HAS_AVX2
    {forward_float_avx2, backward_float_avx2},
    {forward_double_avx2, backward_double_avx2},
    {forward_float_avx512, backward_float_avx512},
    {forward_double_avx512, backward_double_avx512},
#endif
};

static double run(const Plan *p, const void *x, const void *y, int threads)
{
    const Kernel *kernel = kernels + p->kernel;
    double loss = 0;
    if (threads < 2) {
        kernel->forward(p, x, 0, 1);
        kernel->backward(p, x, y, 0, 1, &loss);
        return loss;
    }
#pragma omp parallel num_threads(threads)
    {
        /* there may be fewer than were asked for */
        const ptrdiff_t thread = omp_get_thread_num(), all = omp_get_num_threads();
        kernel->forward(p, x, thread, all);
#pragma omp barrier
        kernel->backward(p, x, y, thread, all, &loss);
    }
    return loss;
}

static PyObject *step(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    char *bytes;
    Py_ssize_t size;
    Plan plan;
    double loss;
    (void)module;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "step(plan, x, y, threads)");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &bytes, &size)) return NULL;
    if (size != sizeof(Plan)) {
        PyErr_SetString(PyExc_ValueError, "the plan has another size");
        return NULL;
    }
    memcpy(&plan, bytes, sizeof(Plan));
    const void *x = PyLong_AsVoidPtr(args[1]), *y = PyLong_AsVoidPtr(args[2]);
    const long threads = PyLong_AsLong(args[3]);
    if (PyErr_Occurred()) return NULL;
    if (plan.kernel < 0 || plan.kernel >= (ptrdiff_t)(sizeof(kernels) / sizeof(*kernels))) {
        PyErr_SetString(PyExc_ValueError, "there is no such kernel");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    loss = run(&plan, x, y, (int)threads);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(loss);
}

static PyMethodDef methods[] = {
    {"step", (PyCFunction)(void (*)(void))step, METH_FASTCALL, "step(plan, x, y, threads) -> loss"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_step", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__step(void)
{
    PyObject *module = PyModule_Create(&definition);
    int widest = 0;
#ifdef HAS_AVX2
    if (HAS_AVX2) widest = 2;
    if (HAS_AVX512) widest = 4;
#endif
    if (module
        && (PyModule_AddIntConstant(module, "WIDEST", widest) || PyModule_AddIntConstant(module, "BATCH", BATCH)
            || PyModule_AddIntConstant(module, "TILE", TILE))) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
