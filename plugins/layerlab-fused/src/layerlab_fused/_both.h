/* _kernel.h for float and for double.

   Defined by who includes it, and undefined here: KIND, what the names end in; WIDTH, ROWS and COLS as there. */

#define REAL float
#define INTEGER int32_t
#define NAME(x) JOIN(x, _float_, KIND)
#include "_kernel.h"
#undef REAL
#undef INTEGER
#undef NAME

#define REAL double
#define INTEGER int64_t
#define NAME(x) JOIN(x, _double_, KIND)
#include "_kernel.h"
#undef REAL
#undef INTEGER
#undef NAME

#undef KIND
#undef WIDTH
#undef ROWS
#undef COLS
