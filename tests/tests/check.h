/* Ends the function that it is in if something is not so, and says where. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define CHECK(what)                                                                  \
    do {                                                                             \
        if (!(what)) {                                                               \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, strerror(errno)); \
            return 1;                                                                \
        }                                                                            \
    } while (0)
