/* Calls each function of glu.h: library OWN OTHER PID GROUP GONE, where OWN and OTHER are nodes, PID and GROUP run on OTHER. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <glu.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define FAILS(call, error) CHECK((errno = 0, (call) == -1 && errno == (error)))

/* Moves PID, the program of a job of node 1, to node 2 and back. */
static int move(pid_t pid)
{
    CHECK(glu_migrate(pid, 2) == 0);
    CHECK(glu_where_pid(pid) == 2 && glu_nmigs(pid) == 1);
    CHECK(glu_migrate(pid, 2) == 0 && glu_nmigs(pid) == 1);
    CHECK(glu_migrate(pid, 0) == 0);
    CHECK(glu_where_pid(pid) == 1 && glu_nmigs(pid) == 2);
    FAILS(glu_migrate(pid, 9), ENXIO);
    FAILS(glu_migrate(pid, -2), ENXIO);
    FAILS(glu_migrate(getpid(), 2), EOPNOTSUPP);
    FAILS(glu_migrate(196000, 2), ESRCH);
    FAILS(glu_nmigs(0), EINVAL);
    return 0;
}

/* A job of node 1 that moves itself to node 2 and back. */
static int move_itself(void)
{
    const pid_t own = getpid();

    CHECK(glu_where_pid(own) == 1);
    CHECK(glu_migrate(own, 2) == 0);
    CHECK(glu_where_pid(own) == 2 && glu_nmigs(own) == 1);
    CHECK(glu_migrate(own, 0) == 0);
    CHECK(glu_where_pid(own) == 1 && glu_nmigs(own) == 2);
    FAILS(glu_migrate(own, 9), ENXIO);
    /* Node 2 cannot make it again: the file is on node 1 only. */
    CHECK(open("/mnt/here", O_RDONLY) >= 0);
    FAILS(glu_migrate(own, 2), EAGAIN);
    CHECK(glu_where_pid(own) == 1 && glu_nmigs(own) == 2);
    return 9;
}

/* Goes on as a program that says on which node it is, and ends with status 7. */
static int rexec(void)
{
    const char *const words[] = {"sh", "-c", "cat /cluster/proc/self/where; exit 7", NULL};
    const char *const none[] = {NULL};

    FAILS(glu_rexec(2, none), EINVAL);
    FAILS(glu_rexec(9, words), ENXIO);
    glu_rexec(2, words);
    return 1;
}

/* Leaves what those who run the tests have open: it is of another machine than the node. */
static void alone(void)
{
    int fd;

    for (fd = 3; fd < 1024; fd++)
        close(fd);
}

/* Waits for a child of glu_rfork; returns its status. */
static int waited(pid_t pid)
{
    int status;

    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

/* Talks to a child on another node by pipes, of which each has one end. */
static int ask(void)
{
    char byte, text[4096], back[4096];
    int asked[2], told[2], others[2][2], round;
    ssize_t len, got;
    pid_t pid;

    CHECK(pipe(asked) == 0 && pipe(told) == 0 && pipe(others[0]) == 0 && pipe(others[1]) == 0);
    CHECK(fcntl(asked[1], F_SETFD, FD_CLOEXEC) == 0 && fcntl(told[0], F_SETFD, FD_CLOEXEC) == 0);
    for (round = 0; round < 2; round++)
        CHECK(fcntl(others[round][0], F_SETFD, FD_CLOEXEC) == 0);
    CHECK((pid = glu_rfork(2)) >= 0);
    if (pid == 0) {
        CHECK(write(asked[1], "x", 1) == -1 && errno == EBADF);
        for (round = 0; (len = read(asked[0], text, sizeof text)) > 0; round++) {
            if (round % 20 == 10)
                CHECK(glu_migrate(getpid(), round % 40 == 10 ? 0 : 2) == 0);
            CHECK(write(told[1], text, len) == len);
        }
        CHECK(len == 0 && write(others[0][1], "0", 1) == 1 && write(others[1][1], "1", 1) == 1);
        _exit(0);
    }
    CHECK(close(asked[0]) == 0 && close(told[1]) == 0);
    CHECK(close(others[0][1]) == 0 && close(others[1][1]) == 0);
    for (round = 0; round < 100; round++) {
        memset(text, round, sizeof text);
        CHECK(write(asked[1], text, sizeof text) == sizeof text);
        for (len = 0; len < (ssize_t)sizeof back; len += got)
            CHECK((got = read(told[0], back + len, sizeof back - len)) > 0);
        CHECK(!memcmp(text, back, sizeof text));
    }
    CHECK(close(asked[1]) == 0 && read(told[0], &byte, 1) == 0 && waited(pid) == 0);
    CHECK(read(others[0][0], &byte, 1) == 1 && byte == '0' && read(others[0][0], &byte, 1) == 0);
    CHECK(read(others[1][0], &byte, 1) == 1 && byte == '1' && read(others[1][0], &byte, 1) == 0);
    CHECK(close(told[0]) == 0 && close(others[0][0]) == 0 && close(others[1][0]) == 0);
    return 0;
}

/* Has a child go on on another node; the caller is on node 1. */
static int rfork_(void)
{
    const pid_t own = getpid();
    int status, file, value = 1, place[2];
    char text[7] = "";
    pid_t pid;

    alone();
    file = open("/cluster/forked", O_RDWR | O_CREAT | O_TRUNC, 0600);
    FAILS(glu_rfork(9), ENXIO);
    FAILS(glu_rfork(-1), ENXIO);
    CHECK(write(file, "abc", 3) == 3);
    pid = glu_rfork(2);
    if (pid == 0) {
        CHECK(glu_node() == 2 && getpid() != own && glu_where_pid(getpid()) == 2);
        CHECK(value++ == 1 && write(file, "def", 3) == 3);
        /* It has no input of its own, and moves as any job. */
        CHECK(read(0, text, 1) == 0);
        CHECK(glu_migrate(getpid(), 0) == 0 && glu_node() == 1);
        CHECK(glu_migrate(getpid(), 2) == 0 && glu_node() == 2 && glu_nmigs(getpid()) == 3);
        CHECK(write(1, "out\n", 4) == 4 && write(2, "err\n", 4) == 4);
        _exit(5);
    }
    CHECK(pid > 0);
    status = waited(pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    CHECK(value == 1 && lseek(file, 0, SEEK_CUR) == 3);
    CHECK(read(file, text, 6) == 3 && !strcmp(text, "def"));

    CHECK((pid = glu_rfork(2)) >= 0);
    if (pid == 0)
        for (;;)
            pause();
    CHECK(kill(pid, SIGUSR1) == 0);
    status = waited(pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1);

    CHECK((pid = glu_rfork(0)) >= 0);
    if (pid == 0)
        _exit(glu_node());
    CHECK(WEXITSTATUS(waited(pid)) == 2);

    CHECK((pid = glu_rfork(1)) >= 0);
    if (pid == 0)
        _exit(getppid() == own && glu_node() == 1 ? 3 : 4);
    CHECK(WEXITSTATUS(waited(pid)) == 3);

    CHECK(ask() == 0);
    /* Of this it would have both ends. */
    CHECK(pipe(place) == 0);
    FAILS(glu_rfork(2), EOPNOTSUPP);
    CHECK(close(place[0]) == 0 && close(place[1]) == 0);
    /* And this is a file of one node. */
    value = open("/tmp/forked", O_WRONLY | O_CREAT, 0600);
    CHECK(value >= 0);
    FAILS(glu_rfork(2), EOPNOTSUPP);
    CHECK(close(value) == 0 && unlink("/tmp/forked") == 0);
    CHECK(wait(NULL) == -1 && errno == ECHILD);
    return 6;
}

/* Has a child on another node, and waits. */
static int leave(void)
{
    alone();
    CHECK(glu_rfork(2) >= 0);
    for (;;)
        pause();
}

/* One of four processes on two nodes: after the barrier all have done what comes before it. */
static int barrier(void)
{
    struct stat about;
    int round, file = open("/cluster/barrier", O_WRONLY | O_APPEND | O_CREAT, 0600);

    CHECK(file >= 0 && glu_count() == 4 && glu_my_npid() > 0);
    CHECK(glu_my_vnn() >= 0 && glu_my_vnn() < 4);
    for (round = 1; round <= 20; round++) {
        CHECK(write(file, "x", 1) == 1);
        CHECK(glu_barrier() == 0);
        CHECK(fstat(file, &about) == 0 && about.st_size == 4 * round);
        CHECK(glu_barrier() == 0);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "barrier"))
        return barrier();
    if (argc == 3 && !strcmp(argv[1], "move"))
        return move(atoi(argv[2]));
    if (argc == 2 && !strcmp(argv[1], "move-itself"))
        return move_itself();
    if (argc == 2 && !strcmp(argv[1], "rexec"))
        return rexec();
    if (argc == 2 && !strcmp(argv[1], "rfork"))
        return rfork_();
    if (argc == 2 && !strcmp(argv[1], "leave"))
        return leave();
    CHECK(argc == 6);
    int own = atoi(argv[1]), other = atoi(argv[2]);
    pid_t pid = atoi(argv[3]), group = atoi(argv[4]), gone = atoi(argv[5]);
    struct glu_node nodes[8];
    const char *const words[] = {argv[0], "barrier", NULL};
    const char *const none[] = {NULL};
    int status;
    struct glu_load load;
    /* What a caller of tomorrow has more room for. */
    struct { struct glu_load load; uint64_t more; } larger;

    if (getenv("GLU_PROC")) {
        FAILS(glu_nodes(nodes, 8), ENOTCONN);
        FAILS(glu_node(), ENOTCONN);
        FAILS(glu_where_pid(pid), ENOTCONN);
        FAILS(glu_kill(pid, 0), ENOTCONN);
        return 0;
    }
    CHECK(strlen(glu_version()) > 0);
    CHECK(glu_nodes(NULL, 0) == 2);
    CHECK(glu_nodes(nodes, 8) == 2);
    CHECK(nodes[0].node == 1 && nodes[1].node == 2);
    CHECK(nodes[0].state == GLU_UP && nodes[1].state == GLU_UP);
    CHECK(glu_node() == own);

    CHECK(glu_load(other, &load, sizeof load) == 0);
    CHECK(load.cpus > 0 && load.speed > 0 && load.tmem >= load.mem && load.mem > 0 && load.util <= 100);
    larger.more = 7;
    CHECK(glu_load(other, &larger.load, sizeof larger) == 0);
    CHECK(larger.more == 0 && larger.load.tmem == load.tmem);
    FAILS(glu_load(3, &load, sizeof load), ENXIO);
    FAILS(glu_load(-1, &load, sizeof load), ENXIO);

    CHECK(glu_where_pid(pid) == other);
    FAILS(glu_where_pid(gone), ESRCH);
    FAILS(glu_where_pid(0), EINVAL);
    CHECK(glu_kill(pid, 0) == 0);
    FAILS(glu_kill(gone, SIGTERM), ESRCH);
    FAILS(glu_kill(pid, 65), EINVAL);
    FAILS(glu_kill(-pid, SIGTERM), EINVAL);
    CHECK(glu_kill(pid, SIGKILL) == 0);
    CHECK(glu_killpg(group, 0) == 0);
    CHECK(glu_killpg(group, SIGTERM) == 0);
    FAILS(glu_killpg(gone, SIGTERM), ESRCH);

    FAILS(glu_my_vnn(), ESRCH);
    FAILS(glu_barrier(), ESRCH);
    FAILS(glu_spawn(0, NULL, words), EINVAL);
    FAILS(glu_spawn(1, NULL, none), EINVAL);
    pid = glu_spawn(4, "1-2", words);
    CHECK(pid > 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}
