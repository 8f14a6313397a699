/* A preload library that moves the wall clock of a running program. clocks.py builds it. Monotonic clocks are not affected.
 *
 * The clock is a file in the folder VIDFLOW_CLOCKS. Its name is VIDFLOW_CLOCK, or the name of the program. It holds two
 * numbers: the offset in nanoseconds, and how often a moved time was returned. Without the file the clock is not moved.
 *
 * The kernel's clock does not move, so waits until a wall-clock time are replaced by waits in slices on the monotonic
 * clock. They end when the moved clock reaches that time, as they do when a kernel's clock jumps. */
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
    long long offset, reads;
};
static struct clock *program_clock;

__attribute__((constructor)) static void find_clock(void) {
    const char *folder = getenv("VIDFLOW_CLOCKS"), *name = getenv("VIDFLOW_CLOCK");
    char path[4096];
    if (!folder)
        return;
    snprintf(path, sizeof path, "%s/%s", folder, name ? name : program_invocation_short_name);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return;
    void *memory = mmap(NULL, sizeof *program_clock, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory != MAP_FAILED)
        program_clock = memory;
}

static void to_timespec(long long ns, struct timespec *to) {
    to->tv_sec = ns / SECOND;
    to->tv_nsec = ns % SECOND;
}

static long long to_ns(const struct timespec *from) { return from->tv_sec * SECOND + from->tv_nsec; }

int clock_gettime(clockid_t id, struct timespec *to) {
    int failed = syscall(SYS_clock_gettime, id, to); /* not through the vDSO or dlsym, which could call this function */
    long long offset = program_clock ? __atomic_load_n(&program_clock->offset, __ATOMIC_RELAXED) : 0;
    if (!failed && offset && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        to_timespec(to_ns(to) + offset, to);
        __atomic_add_fetch(&program_clock->reads, 1, __ATOMIC_RELAXED);
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

/* Return the nanoseconds left until a wall-clock time. `end` is that time on the monotonic clock, at most a slice from now. */
static long long time_left(const struct timespec *deadline, struct timespec *end) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long long left = to_ns(deadline) - to_ns(&now);
    clock_gettime(CLOCK_MONOTONIC, end);
    to_timespec(to_ns(end) + (left < 0 ? 0 : left < SLICE ? left : SLICE), end);
    return left;
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict deadline) {
    struct timespec end;
    if (cond->__data.__wrefs & COND_IS_MONOTONIC)
        return pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, deadline);
    long long left = time_left(deadline, &end);
    int result = pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, &end);
    /* After a slice, return a spurious wakeup, which POSIX allows: the caller checks its condition and waits again. */
    return result == ETIMEDOUT && left > SLICE ? 0 : result;
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict deadline) {
    int result = pthread_cond_timedwait((pthread_cond_t *)cond, (pthread_mutex_t *)mutex, deadline);
    return result == 0 ? thrd_success : result == ETIMEDOUT ? thrd_timedout : thrd_error;
}

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict deadline) {
    struct timespec end;
    for (;;) {
        long long left = time_left(deadline, &end);
        if (!sem_clockwait(sem, CLOCK_MONOTONIC, &end))
            return 0;
        if (errno != ETIMEDOUT || left <= SLICE)
            return -1;
    }
}
