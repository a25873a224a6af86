/* What only a program in C has: traveller memory MIB, traveller signals. Each line of input is answered by one. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "check.h"

enum { SIGNALS = 5 };

/* Writes all of the memory anew for each line, and says whether all of it was as it was written before. */
static int memory(size_t mib)
{
    size_t words = (mib << 20) / sizeof(uint64_t), word;
    uint64_t *all = malloc(words * sizeof *all), round = 0, wrong = 0;
    char line[256];

    CHECK(all);
    for (word = 0; word < words; word++)
        all[word] = word * 0x9e3779b97f4a7c15u;
    while (fgets(line, sizeof line, stdin)) {
        for (word = 0; word < words; word++) {
            wrong += all[word] != word * 0x9e3779b97f4a7c15u + round;
            all[word]++;
        }
        round++;
        printf("%d %llu %llu\n", getpid(), (unsigned long long)round, (unsigned long long)wrong);
        fflush(stdout);
    }
    free(all);
    return 0;
}

/* Real-time signals with values that are pending, and a timer that has run out: both must come along, in their order. */
static int signals(void)
{
    struct itimerspec soon = {.it_interval = {0, 1000000}, .it_value = {0, 1000000}};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), from, value;
    struct signalfd_siginfo info;
    uint64_t ticks;
    char line[256];
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    from = signalfd(-1, &set, SFD_NONBLOCK);
    CHECK(from >= 0 && timer >= 0 && timerfd_settime(timer, 0, &soon, NULL) == 0);
    for (;;) {
        for (value = 0; value < SIGNALS; value++)
            CHECK(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = value}) == 0);
        CHECK(raise(SIGUSR1) == 0);
        if (!fgets(line, sizeof line, stdin))
            return 0;
        CHECK(read(from, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1);
        for (value = 0; value < SIGNALS; value++) {
            CHECK(read(from, &info, sizeof info) == sizeof info);
            CHECK(info.ssi_signo == (uint32_t)SIGRTMIN && info.ssi_int == value);
        }
        CHECK(read(from, &info, sizeof info) == -1 && errno == EAGAIN);
        CHECK(read(timer, &ticks, sizeof ticks) == sizeof ticks && ticks > 0);
        printf("%d well\n", getpid());
        fflush(stdout);
    }
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "memory"))
        return memory(strtoul(argv[2], NULL, 10));
    CHECK(argc == 2 && !strcmp(argv[1], "signals"));
    return signals();
}
