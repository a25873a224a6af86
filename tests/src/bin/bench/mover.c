/* mover MIB idle|busy: has so much memory, which is left alone or written all the time, and says after a line of input for how
 * many microseconds it stood still at most since the line before. */
#define _GNU_SOURCE
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES_AT_A_TIME = 64 };

static uint64_t micros(void)
{
    struct timespec now;

    /* A copy's monotonic clock goes on where that of the original stood still: it shows no more than a part of the pause. */
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
    size_t size = argc == 3 ? strtoul(argv[1], NULL, 10) << 20 : 0, at = 0, page;
    int busy = argc == 3 && !strcmp(argv[2], "busy");
    uint64_t seen = micros(), now, longest = 0;
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char *memory = malloc(size), line[64];

    if (!size || !memory)
        return 1;
    /* Nothing that could be told in fewer bytes. */
    for (page = 0; page < size; page += sizeof(uint64_t))
        *(uint64_t *)(memory + page) = page * 0x9e3779b97f4a7c15u;
    for (;;) {
        for (page = 0; busy && page < PAGES_AT_A_TIME; page++) {
            memory[at]++;
            at = (at + PAGE) % size;
        }
        if (poll(&input, 1, busy ? 0 : 1) > 0) {
            if (read(0, line, sizeof line) <= 0)
                return 0;
            printf("%llu\n", (unsigned long long)longest);
            fflush(stdout);
            longest = 0;
        }
        now = micros();
        if (now - seen > longest)
            longest = now - seen;
        seen = now;
    }
}
