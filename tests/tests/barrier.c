/* One of the processes of a command: barrier WHAT ROUNDS.
 *   checked  behind each barrier, all have been in front of it
 *   timed    the first one tells how long a barrier takes
 *   gone     the last one ends in the middle
 *   beside   each tells where it is, and the first starts a command beside all of them
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <glu.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static int beside(int own)
{
    const char *const words[] = {"sh", "-c", "echo beside $GLU_VNN $GLU_NODE $GLU_COUNT", NULL};
    const char *const none[] = {NULL};
    int status;
    pid_t child;

    printf("own %d %s %d\n", own, getenv("GLU_NODE"), glu_count());
    fflush(stdout);
    CHECK(glu_barrier() == 0);
    if (own == 0) {
        CHECK(glu_cospawn(glu_my_npid(), none) == -1 && errno == EINVAL);
        CHECK(glu_cospawn(0, words) == -1 && errno == EINVAL);
        child = glu_cospawn(glu_my_npid(), words);
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    CHECK(glu_barrier() == 0);
    return 0;
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    int checked = !strcmp(argv[1], "checked"), timed = !strcmp(argv[1], "timed");
    int rounds = atoi(argv[2]), count = glu_count(), own = glu_my_vnn(), round, file = -1;
    char name[64];
    struct stat about;
    double start;

    CHECK(count > 1 && own >= 0 && own < count);
    if (!strcmp(argv[1], "beside"))
        return beside(own);
    if (checked) {
        snprintf(name, sizeof name, "/cluster/barrier.%d", (int)glu_my_npid());
        CHECK((file = open(name, O_WRONLY | O_APPEND | O_CREAT, 0600)) >= 0);
    }
    CHECK(glu_barrier() == 0);
    start = now_us();
    for (round = 1; round <= rounds; round++) {
        if (checked)
            CHECK(write(file, "x", 1) == 1);
        if (!checked && !timed && own == count - 1 && round == rounds / 2 + 1)
            return 0;
        CHECK(glu_barrier() == 0);
        if (checked) {
            CHECK(fstat(file, &about) == 0 && about.st_size == (off_t)count * round);
            CHECK(glu_barrier() == 0);
        }
    }
    if (timed && own == 0)
        printf("%.0f\n", (now_us() - start) / rounds);
    return 0;
}
