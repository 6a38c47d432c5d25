/* One training step for one type of number and one set of instructions; included once for each pair of them.

   Defined by who includes it: REAL, the type; INTEGER, one as wide; WIDTH, the bytes of a vector; ROWS and COLS,
   how many vectors of sums are a tile, at most 6 x 4; NAME(x), x with a suffix of its own.

   Every thread owns a span of hidden units: their rows of w1_t and of w2, and their b1. Nobody else reads or
   writes these while a step runs, and they stay in the cache of the processor that works on them. Only the
   predictions are sums over all hidden units: each thread leaves its share of them, and between the two halves
   of a step the threads wait for each other, once.

   A tile stays in registers. With 4 x 3 sums that is 12 multiply-adds for every 7 loads, which is what a processor
   with two of the one and two to three of the other in a cycle can sustain; with 6 x 4, where there are 32
   registers, it is 24 for every 10. */

#define VEC NAME(vec)
#define PART NAME(part)
#define MASK NAME(mask)
#define LANES ((ptrdiff_t)(WIDTH / sizeof(REAL)))
#define AT(p) (*(VEC *)(p))
#define READ(p) (*(const VEC *)(p))
#define EACH(i, n) _Pragma("GCC unroll 8") for (int i = 0; i < (n); i++)

typedef REAL VEC __attribute__((vector_size(WIDTH), aligned(sizeof(REAL)), may_alias));
typedef REAL PART __attribute__((vector_size(16), aligned(sizeof(REAL)), may_alias));
typedef INTEGER MASK __attribute__((vector_size(WIDTH)));

INLINE REAL NAME(total)(VEC v)
{
    const PART *parts = (const PART *)&v;
    PART part = parts[0];
    EACH(i, WIDTH / 16 - 1) part += parts[i + 1];
    REAL sum = part[0];
    EACH(i, (int)(16 / sizeof(REAL)) - 1) sum += part[i + 1];
    return sum;
}

#if COLS == 4 /* never with Clang, which shuffles by constants alone that the source spells out */
/* In each 16 bytes of the result: the sums of neighbours in those of a, and behind them the sums of those in b. */
INLINE VEC NAME(fold)(VEC a, VEC b)
{
    enum { MANY = 16 / sizeof(REAL), HALF = MANY / 2 };
    MASK even, odd;
    EACH(i, LANES) {
        even[i] = i / MANY * MANY + i % HALF * 2 + i % MANY / HALF * LANES;
        odd[i] = even[i] + 1;
    }
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
}

/* out[c] += the sum of what is in v[c], for four vectors: one by one each takes a dozen instructions. */
INLINE void NAME(totals)(const VEC *v, REAL *out)
{
    VEC sums[] = {NAME(fold)(v[0], v[1]), NAME(fold)(v[2], v[3])};
    if (sizeof(REAL) == 4) sums[0] = NAME(fold)(sums[0], sums[1]);
    EACH(j, (int)sizeof(REAL) / 4) {
        PART part = ((const PART *)&sums[j])[0];
        EACH(i, WIDTH / 16 - 1) part += ((const PART *)&sums[j])[i + 1];
        ((PART *)out)[j] += part;
    }
}
#endif

/* The last of the numbers before `end`, those that are `there`, at the places that they have, and 0 before them. */
INLINE VEC NAME(rest)(const REAL *end, MASK there)
{
    return (VEC)((MASK)READ(end - LANES) & there);
}

/* out[r, c] += a[r] . b[c], for rows of k numbers. */
INLINE void NAME(dots)(int rows, int cols, ptrdiff_t k, const REAL *a, ptrdiff_t lda, const REAL *b,
                       ptrdiff_t ldb, REAL *out, ptrdiff_t ldo)
{
    VEC sums[ROWS][COLS], from_a[ROWS];
    ptrdiff_t i = 0;
    EACH(r, rows) EACH(c, cols) sums[r][c] = (VEC){0};
    for (; i + LANES <= k; i += LANES) {
        EACH(r, rows) from_a[r] = READ(a + r * lda + i);
        EACH(c, cols) {
            const VEC from_b = READ(b + c * ldb + i);
            EACH(r, rows) sums[r][c] += from_a[r] * from_b;
        }
    }
    if (i < k && k > LANES) { /* a vector that ends where the rows do, without what was in the one before */
        MASK there = {0};
        for (ptrdiff_t lane = LANES - (k - i); lane < LANES; lane++) there[lane] = -1;
        EACH(r, rows) from_a[r] = NAME(rest)(a + r * lda + k, there);
        EACH(c, cols) {
            const VEC from_b = NAME(rest)(b + c * ldb + k, there);
            EACH(r, rows) sums[r][c] += from_a[r] * from_b;
        }
        i = k;
    }
    EACH(r, rows) {
        REAL *to = out + r * ldo;
#if COLS == 4
        if (cols == COLS) NAME(totals)(sums[r], to);
        else
#endif
            EACH(c, cols) to[c] += NAME(total)(sums[r][c]);
        EACH(c, cols)
            for (ptrdiff_t j = i; j < k; j++) to[c] += a[r * lda + j] * b[c * ldb + j];
    }
}

/* w[r] += the sum over i < n of factors[i * step + r * apart] * x[i], for rows that are so many vectors wide. */
INLINE void NAME(outer)(int rows, int vecs, ptrdiff_t n, const REAL *factors, ptrdiff_t step, ptrdiff_t apart,
                        const REAL *x, ptrdiff_t ldx, REAL *w, ptrdiff_t ldw)
{
    VEC sums[ROWS][COLS], from_x[COLS];
    EACH(r, rows) EACH(v, vecs) sums[r][v] = READ(w + r * ldw + v * LANES);
    for (ptrdiff_t i = 0; i < n; i++) {
        EACH(v, vecs) from_x[v] = READ(x + i * ldx + v * LANES);
        EACH(r, rows) {
            const REAL factor = factors[i * step + r * apart];
            EACH(v, vecs) sums[r][v] += factor * from_x[v];
        }
    }
    EACH(r, rows) EACH(v, vecs) AT(w + r * ldw + v * LANES) = sums[r][v];
}

/* Both for any width. `rows` is a constant where they are called: a compiler unrolls nothing else. */
INLINE void NAME(dots_along)(int rows, ptrdiff_t cols, ptrdiff_t k, const REAL *a, ptrdiff_t lda, const REAL *b,
                             ptrdiff_t ldb, REAL *out, ptrdiff_t ldo)
{
    ptrdiff_t c = 0;
    for (; c + COLS <= cols; c += COLS) NAME(dots)(rows, COLS, k, a, lda, b + c * ldb, ldb, out + c, ldo);
    for (; c < cols; c++) NAME(dots)(rows, 1, k, a, lda, b + c * ldb, ldb, out + c, ldo);
}

INLINE void NAME(outer_along)(int rows, ptrdiff_t vecs, ptrdiff_t n, const REAL *factors, ptrdiff_t step,
                              ptrdiff_t apart, const REAL *x, ptrdiff_t ldx, REAL *w, ptrdiff_t ldw)
{
    for (; vecs >= COLS; vecs -= COLS, x += COLS * LANES, w += COLS * LANES)
        NAME(outer)(rows, COLS, n, factors, step, apart, x, ldx, w, ldw);
    switch (vecs) {
    case 1: NAME(outer)(rows, 1, n, factors, step, apart, x, ldx, w, ldw); break;
    case 2: NAME(outer)(rows, 2, n, factors, step, apart, x, ldx, w, ldw); break;
    case 3: NAME(outer)(rows, 3, n, factors, step, apart, x, ldx, w, ldw); break;
    }
}

/* Of four rows there is no tile with more. */
#define BY_ROWS(function, rows, ...)                                   \
    switch (rows) {                                                    \
    case 1: NAME(function)(1, __VA_ARGS__); break;                     \
    case 2: NAME(function)(2, __VA_ARGS__); break;                     \
    case 3: NAME(function)(3, __VA_ARGS__); break;                     \
    case 4: NAME(function)(4, __VA_ARGS__); break;                     \
    case 5: NAME(function)(ROWS < 5 ? ROWS : 5, __VA_ARGS__); break;   \
    default: NAME(function)(ROWS, __VA_ARGS__); break;                 \
    }

/* Both for any number of rows, in tiles that differ by a row at most: one of a single row is all loads. */
static NOINLINE void NAME(dots_of)(ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t k, const REAL *a, ptrdiff_t lda,
                                   const REAL *b, ptrdiff_t ldb, REAL *out, ptrdiff_t ldo)
{
    for (ptrdiff_t tiles = (rows + ROWS - 1) / ROWS; tiles > 0; tiles--) {
        const ptrdiff_t some = (rows + tiles - 1) / tiles;
        BY_ROWS(dots_along, some, cols, k, a, lda, b, ldb, out, ldo)
        rows -= some, a += some * lda, out += some * ldo;
    }
}

static NOINLINE void NAME(outer_of)(ptrdiff_t rows, ptrdiff_t vecs, ptrdiff_t n, const REAL *factors,
                                    ptrdiff_t step, ptrdiff_t apart, const REAL *x, ptrdiff_t ldx, REAL *w,
                                    ptrdiff_t ldw)
{
    for (ptrdiff_t tiles = (rows + ROWS - 1) / ROWS; tiles > 0; tiles--) {
        const ptrdiff_t some = (rows + tiles - 1) / tiles;
        BY_ROWS(outer_along, some, vecs, n, factors, step, apart, x, ldx, w, ldw)
        rows -= some, factors += some * apart, w += some * ldw;
    }
}

/* h = relu(w1_t @ x.T + b1) of the thread's hidden units, and their share of the predictions. */
static void NAME(forward)(const Plan *p, const void *inputs, ptrdiff_t thread, ptrdiff_t threads)
{
    const ptrdiff_t d_in = p->d_in, d_out = p->d_out, n = p->n, ld = p->ld, ldw = p->ldw;
    const ptrdiff_t first = p->hidden * thread / threads, own = p->hidden * (thread + 1) / threads - first;
    const REAL *x = inputs, *w1_t = (REAL *)p->w1_t + first * ldw, *w2 = (REAL *)p->w2 + first * d_out;
    const REAL *b1 = p->b1, *b2 = p->b2;
    REAL *h = (REAL *)p->h + first * ld, *share = (REAL *)p->shares + thread * d_out * ld;

    for (ptrdiff_t i = 0; i < own; i++)
        for (ptrdiff_t j = 0; j < n; j++) h[i * ld + j] = b1 ? b1[first + i] : 0;
    for (ptrdiff_t k = 0; k < d_in; k += DEPTH)
        for (ptrdiff_t j = 0; j < n; j += BATCH)
            NAME(dots_of)(own, MIN(n - j, BATCH), MIN(d_in - k, DEPTH), w1_t + k, ldw, x + j * d_in + k, d_in,
                          h + j, ld);
    for (ptrdiff_t i = 0; i < own; i++)
        /* what is not a number stays so */
        for (ptrdiff_t j = 0; j < n; j++) h[i * ld + j] = h[i * ld + j] <= 0 ? 0 : h[i * ld + j];
    for (ptrdiff_t o = 0; o < d_out; o++)
        for (ptrdiff_t j = 0; j < ld; j++) share[o * ld + j] = b2 && thread == 0 ? b2[o] : 0;
    for (ptrdiff_t j = 0; j < ld; j += BATCH)
        NAME(outer_of)(d_out, MIN(ld - j, BATCH) / LANES, own, w2, d_out, 1, h + j, ld, share + j, ld);
}

/* diff = rate * (y_pred - y), a copy of the thread's own; the loss, and the update of b2, by the first thread. */
static double NAME(differences)(const Plan *p, const REAL *y, REAL *diff, ptrdiff_t thread, ptrdiff_t threads)
{
    const ptrdiff_t d_out = p->d_out, n = p->n, ld = p->ld;
    const REAL *shares = p->shares, rate = (REAL)p->rate;
    REAL *b2 = p->b2;
    double loss = 0;
    for (ptrdiff_t o = 0; o < d_out; o++, diff += ld) {
        VEC squares = {0}, sums = {0};
        for (ptrdiff_t j = 0; j < ld; j += LANES) {
            VEC sum = {0};
            for (ptrdiff_t t = 0; t < threads; t++) sum += READ(shares + (t * d_out + o) * ld + j);
            AT(diff + j) = sum;
        }
        for (ptrdiff_t j = 0; j < n; j++) diff[j] -= y[j * d_out + o];
        for (ptrdiff_t j = n; j < ld; j++) diff[j] = 0;
        for (ptrdiff_t j = 0; j < ld; j += LANES) {
            squares += READ(diff + j) * READ(diff + j);
            sums += AT(diff + j) *= rate;
        }
        if (thread) continue;
        loss += NAME(total)(squares);
        if (b2) b2[o] += NAME(total)(sums);
    }
    return loss;
}

/* The gradients by the thread's hidden units, and the update of all that belongs to them. */
static void NAME(backward)(const Plan *p, const void *inputs, const void *targets, ptrdiff_t thread,
                           ptrdiff_t threads, double *loss)
{
    const ptrdiff_t d_in = p->d_in, d_out = p->d_out, n = p->n, ld = p->ld, ldw = p->ldw;
    const ptrdiff_t first = p->hidden * thread / threads, own = p->hidden * (thread + 1) / threads - first;
    const REAL *x = inputs, *h = (REAL *)p->h + first * ld;
    REAL *w1_t = (REAL *)p->w1_t + first * ldw, *w2 = (REAL *)p->w2 + first * d_out, *b1 = p->b1;
    const ptrdiff_t tile = COLS * LANES, whole = d_in / tile * tile, last = d_in - whole;
    REAL *grad = (REAL *)p->grad + first * ld, *diff = (REAL *)p->diffs + thread * d_out * ld;
    REAL *end = (REAL *)p->ends + thread * BATCH * TILE;

    const double all = NAME(differences)(p, targets, diff, thread, threads);
    if (thread == 0) *loss = all;
    memset(grad, 0, (size_t)(own * ld) * sizeof(REAL));
    for (ptrdiff_t j = 0; j < ld; j += BATCH)
        NAME(outer_of)(own, MIN(ld - j, BATCH) / LANES, d_out, w2, 1, d_out, diff + j, ld, grad + j, ld);
    for (ptrdiff_t i = 0; i < own; i++) {
        VEC sums = {0};
        for (ptrdiff_t j = 0; j < ld; j += LANES) {
            const VEC zero = {0};
            AT(grad + i * ld + j) = (VEC)((MASK)READ(grad + i * ld + j) & ~(MASK)(READ(h + i * ld + j) <= zero));
            sums += READ(grad + i * ld + j);
        }
        if (b1) b1[first + i] += NAME(total)(sums);
    }
    for (ptrdiff_t j = 0; j < ld; j += DEPTH)
        NAME(dots_of)(own, d_out, MIN(ld - j, DEPTH), h + j, ld, diff + j, ld, w2, d_out);
    for (ptrdiff_t j = 0; j < n; j += BATCH) {
        const ptrdiff_t rows = MIN(n - j, BATCH);
        for (ptrdiff_t k = 0; k < whole; k += COLUMNS)
            NAME(outer_of)(own, MIN(whole - k, COLUMNS) / LANES, rows, grad + j, 1, ld, x + j * d_in + k, d_in,
                           w1_t + k, ldw);
        if (last == 0) continue;
        /* x ends where it ends; rows of w1_t have whole vectors */
        for (ptrdiff_t r = 0; r < rows; r++)
            memcpy(end + r * tile, x + (j + r) * d_in + whole, (size_t)last * sizeof(REAL));
        NAME(outer_of)(own, (last + LANES - 1) / LANES, rows, grad + j, 1, ld, end, tile, w1_t + whole, ldw);
    }
}

#undef VEC
#undef PART
#undef MASK
#undef LANES
#undef AT
#undef READ
#undef EACH
#undef BY_ROWS
