/* The processes and nodes of a Glu cluster: link with -lglu.
 *
 * Process numbers are those of /cluster/proc. Functions return -1 with errno set where something is wrong:
 *
 *   ESRCH      there is no such process
 *   EPERM      it may not be signalled by the caller
 *   EINVAL     no process, or no signal
 *   ENXIO      there is no such node
 *   EOPNOTSUPP a process cannot move: its cantmove says why
 *   EBUSY      it is moving already, or locked where it is
 *   EAGAIN     it could not be moved now, and goes on where it was
 *   ECONNREFUSED the node is closed to its user
 *   ENOEXEC    the node's processors lack instructions that it may use
 *   EHOSTDOWN  the node does not answer; whether a signal was sent is then not known
 *   ENOTCONN   there is no cluster here: the node's daemon does not run (GLU_PROC names another place than
 *              /cluster/proc)
 *
 * All of them may be called from any thread. Functions are added, those here stay as they are.
 */
#ifndef GLU_H
#define GLU_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum glu_state {
    GLU_DOWN = 0,  /* it does not answer */
    GLU_UP = 1,
    GLU_DRAIN = 2, /* it answers, and its file data is being moved away */
};

struct glu_node {
    int node;  /* its number */
    int state; /* enum glu_state; more may be added */
};

struct glu_load {
    uint64_t load;  /* 100 when one program runs on each processor of the reference speed */
    uint64_t speed; /* of one processor, 1000 for the reference */
    uint64_t cpus;
    uint64_t util;  /* percent of the processors that is used */
    uint64_t mem;   /* bytes that new processes could have */
    uint64_t tmem;  /* bytes of memory */
};

/* The version of the library. */
const char *glu_version(void);

/* Writes up to max nodes, in ascending order; returns how many there are. */
int glu_nodes(struct glu_node *nodes, size_t max);

/* The number of the node that the caller runs on. */
int glu_node(void);

/* Writes the load of a node; size is sizeof(struct glu_load), which may grow: what a library does not know is 0. */
int glu_load(int node, struct glu_load *load, size_t size);

/* The node that a process runs on. */
int glu_where_pid(pid_t pid);

/* How often it has moved. */
int glu_nmigs(pid_t pid);

/* Has the program of a job of glurun go on on another node, with all its descendants; 0 is the node that has started it, -1
 * the one where it runs best. Returns when it does; it may be the caller. */
int glu_migrate(pid_t pid, int node);

/* As kill(2), for a process of any node; pid is above 0. */
int glu_kill(pid_t pid, int signal);

/* As killpg(3), for a process group of any node; group is above 0. */
int glu_killpg(pid_t group, int signal);

/* The calling process as one of those that `glurun -n` has started: the number of the command (the pid of its glurun, to
 * which a signal is one to all of them), of this process in it, from 0, and how many there are. ESRCH: it is none. */
pid_t glu_my_npid(void);
int glu_my_vnn(void);
int glu_count(void);

/* Waits until all processes of the command are in the barrier; if one ends before, all are ended. Not for programs that
 * use an MPI library. ENOTCONN: they cannot reach each other (`glurun --fanout`, or a node of an older revision). */
int glu_barrier(void);

/* Starts a command of count processes, on some nodes ("1-3,7") or, where nodes is NULL, on any; returns its number, a
 * child to wait for. argv ends with NULL. */
pid_t glu_spawn(int count, const char *nodes, const char *const argv[]);

/* Starts a command beside another one, which may be the caller's own: a process on the node of each process of that. Returns
 * as glu_spawn; the child exits with 125 where no command of this number runs. */
pid_t glu_cospawn(pid_t npid, const char *const argv[]);

/* As execvp(3), on another node, or where node is 0 on the one where it runs best: this process becomes the glurun of that
 * program, with the same pid, descriptors and parent, and ends as it ends. Returns only with an error. */
int glu_rexec(int node, const char *const argv[]);

/* As fork(2); the child goes on on another node, or where node is 0 on that of the others where it runs best. On the caller's own
 * node it is a child as any other, as it is where there are no others. In the caller it returns, once the child runs there, the
 * number of the process that stands for it: its glurun, to be waited for and signalled as the child is. getpid() in the child
 * is another number.
 *
 * The child is a job and a session of its own, and may move on. It has a copy of all memory, also of what is shared here, and the
 * open files, each with a place of its own. Its outputs are the caller's; so is its input if that is a file, else it is empty. Of a
 * pipe it keeps the end that it has, unless that is to be closed on exec (FD_CLOEXEC): so mark the end that it is not to have.
 * It keeps no socket that is so marked. Where other threads run it may only call what is safe in a signal handler.
 *
 * Errors: ENXIO, EHOSTDOWN, ECONNREFUSED, ENOEXEC, EBUSY, EAGAIN, ENOTCONN; EOPNOTSUPP if it cannot move, or would have both ends of a
 * pipe; those of fork(2). The child has done nothing then. */
pid_t glu_rfork(int node);

#ifdef __cplusplus
}
#endif

#endif
