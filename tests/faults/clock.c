/* Moves the wall clock of one program, while it runs: to be preloaded (clocks.py builds it). Monotonic clocks are untouched.
 *
 * The program's clock is a file of the folder VIDFLOW_CLOCKS, named by VIDFLOW_CLOCK or else as the program itself: two
 * numbers, by how many nanoseconds it is moved, and how often a moved time was given out. Without the file nothing moves.
 *
 * The kernel's clock stands where it was, so waits until a moment of the wall clock are answered here, in slices: a moved
 * clock moves their ends, as a real one's jump does. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define SLICE (SECOND / 10)
#define COND_IS_MONOTONIC 2 /* glibc's bit for pthread_condattr_setclock */

struct clock {
    long long moved, felt;
};
static struct clock *mine;

__attribute__((constructor)) static void find_clock(void) {
    const char *folder = getenv("VIDFLOW_CLOCKS"), *name = getenv("VIDFLOW_CLOCK");
    char path[4096];
    if (!folder)
        return;
    snprintf(path, sizeof path, "%s/%s", folder, name ? name : program_invocation_short_name);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return;
    void *found = mmap(NULL, sizeof *mine, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED)
        mine = found;
}

static void of(long long ns, struct timespec *to) {
    to->tv_sec = ns / SECOND;
    to->tv_nsec = ns % SECOND;
}

static long long in_ns(const struct timespec *from) { return from->tv_sec * SECOND + from->tv_nsec; }

int clock_gettime(clockid_t id, struct timespec *to) {
    int failed = syscall(SYS_clock_gettime, id, to); /* neither the vDSO nor dlsym: nothing that calls back here */
    long long moved = mine ? __atomic_load_n(&mine->moved, __ATOMIC_RELAXED) : 0;
    if (!failed && moved && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        of(in_ns(to) + moved, to);
        __atomic_add_fetch(&mine->felt, 1, __ATOMIC_RELAXED);
    }
    return failed;
}

int gettimeofday(struct timeval *restrict to, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    *to = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to)
        *to = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *to, int base) {
    return base == TIME_UTC && !clock_gettime(CLOCK_REALTIME, to) ? base : 0;
}

/* How long there is until a moment of the wall clock, at most a slice; then the end of that on the monotonic clock. */
static long long until(const struct timespec *moment, struct timespec *end) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long long left = in_ns(moment) - in_ns(&now);
    clock_gettime(CLOCK_MONOTONIC, end);
    of(in_ns(end) + (left < 0 ? 0 : left < SLICE ? left : SLICE), end);
    return left;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict moment) {
    struct timespec end;
    if (cond->__data.__wrefs & COND_IS_MONOTONIC)
        return pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, moment);
    long long left = until(moment, &end);
    int said = pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, &end);
    return said == ETIMEDOUT && left > SLICE ? 0 : said; /* woken for nothing, as a wait may be: the caller looks and waits on */
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict moment) {
    int said = pthread_cond_timedwait((pthread_cond_t *)cond, (pthread_mutex_t *)mutex, moment);
    return said == 0 ? thrd_success : said == ETIMEDOUT ? thrd_timedout : thrd_error;
}

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict moment) {
    struct timespec end;
    for (;;) {
        long long left = until(moment, &end);
        if (!sem_clockwait(sem, CLOCK_MONOTONIC, &end))
            return 0;
        if (errno != ETIMEDOUT || left <= SLICE)
            return -1;
    }
}
