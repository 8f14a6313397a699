/* A simulated camera. Preloaded into a process, this library answers the calls of libc on the file $SIMULATED_WEBCAM as a driver of
   video4linux does: a camera of 160x120 and 25 pictures a second, YUYV, or MJPEG if $SIMULATED_WEBCAM_JPEG names a picture.

   The luma of a picture's upper half is the low byte of its number, that of the lower half the next byte. The file is the device node:
   the camera is unplugged by removing it. The word in the file $SIMULATED_WEBCAM.mode says what is wrong with the camera (see test). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

enum { WIDTH = 160, HEIGHT = 120, SIZE = WIDTH * HEIGHT * 2, FPS = 25, BUFFERS = 8, MAX_FILES = 1024, DEVICE_MAJOR = 81 };

struct device {
    int is_open, may_block, queued;
    int queue[BUFFERS];
    ino_t node;
    char *memory[BUFFERS];
    long long began_us, taken; /* when streaming began, and how many pictures were taken or lost since */
};

static struct device devices[MAX_FILES];
static int owner = -1; /* the open file that has the buffers; drivers refuse a second one */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int fail(int error) { errno = error; return -1; }

static long long now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static int is_mode(const char *word) {
    char name[4096], mode[16] = "";
    snprintf(name, sizeof name, "%s.mode", getenv("SIMULATED_WEBCAM"));
    int file = REAL(open)(name, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    if (read(file, mode, sizeof mode - 1) < 0) mode[0] = 0;
    REAL(close)(file);
    return strcmp(mode, word) == 0;
}

/* --- the device node */

static int is_node(const struct stat *status) {
    const char *path = getenv("SIMULATED_WEBCAM");
    struct stat node;
    return path && REAL(stat)(path, &node) == 0 && node.st_dev == status->st_dev && node.st_ino == status->st_ino;
}

static int disguise(int result, struct stat *status) {
    if (result == 0 && is_node(status)) {
        status->st_mode = S_IFCHR | 0660;
        status->st_rdev = makedev(DEVICE_MAJOR, 0);
    }
    return result;
}

int stat(const char *path, struct stat *status) { return disguise(REAL(stat)(path, status), status); }
int fstat(int file, struct stat *status) { return disguise(REAL(fstat)(file, status), status); }
int stat64(const char *path, struct stat64 *status) { return stat(path, (struct stat *)status); }
int fstat64(int file, struct stat64 *status) { return fstat(file, (struct stat *)status); }

static struct device *find_device(int file) {
    return file >= 0 && file < MAX_FILES && devices[file].is_open ? &devices[file] : NULL;
}

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    int file = REAL(open)(path, flags, mode);
    struct stat status;
    if (file < 0 || file >= MAX_FILES || flags & (O_PATH | O_CREAT) || REAL(fstat)(file, &status) || !is_node(&status)) return file;
    if (is_mode("denied")) {
        REAL(close)(file);
        return fail(EACCES);
    }
    devices[file] = (struct device){.is_open = 1, .may_block = !(flags & O_NONBLOCK), .node = status.st_ino};
    return file;
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    return open(path, flags, mode);
}

int close(int file) {
    if (find_device(file)) {
        devices[file].is_open = 0;
        if (owner == file) owner = -1;
    }
    return REAL(close)(file);
}

/* --- pictures */

static void fill(char *memory, unsigned *length, long long number) {
    const char *path = getenv("SIMULATED_WEBCAM_JPEG");
    if (path) {
        FILE *picture = fopen(path, "rb");
        *length = picture ? fread(memory, 1, SIZE, picture) : 0;
        if (picture) fclose(picture);
        return;
    }
    memset(memory, 128, SIZE);
    for (int i = 0; i < SIZE; i += 2) memory[i] = i < SIZE / 2 ? number & 255 : number >> 8 & 255;
    *length = SIZE;
}

/* Take the oldest picture that still has a buffer. Pictures for which there was none are lost. */
static int dequeue(struct device *device, struct v4l2_buffer *buffer) {
    for (;;) {
        struct stat node = {.st_ino = 0};
        REAL(stat)(getenv("SIMULATED_WEBCAM"), &node);
        if (node.st_ino != device->node) return fail(ENODEV);
        long long captured = (now_us() - device->began_us) * FPS / 1000000;
        if (is_mode("silent")) device->taken = captured;
        if (captured > device->taken && device->queued) {
            if (captured - device->taken > device->queued) device->taken = captured - device->queued;
            long long number = device->taken++;
            long long at_us = is_mode("untimed") ? 0 : device->began_us + (number + 1) * 1000000 / FPS;
            buffer->index = device->queue[0];
            memmove(device->queue, device->queue + 1, --device->queued * sizeof(int));
            buffer->timestamp.tv_sec = at_us / 1000000;
            buffer->timestamp.tv_usec = at_us % 1000000;
            buffer->flags = is_mode("damaged") && number % 5 == 4 ? V4L2_BUF_FLAG_ERROR : 0;
            fill(device->memory[buffer->index], &buffer->bytesused, number);
            return 0;
        }
        if (!device->may_block) return fail(EAGAIN);
        usleep(1000);
    }
}

static void *map(void *start, size_t size, int protection, int flags, int file, off64_t offset) {
    struct device *device = find_device(file);
    if (!device) return REAL(mmap64)(start, size, protection, flags, file, offset);
    char *memory = REAL(mmap64)(start, size, protection, flags | MAP_ANONYMOUS, -1, 0);
    return device->memory[offset / SIZE] = memory;
}

void *mmap(void *start, size_t size, int protection, int flags, int file, off_t offset) {
    return map(start, size, protection, flags, file, offset);
}

void *mmap64(void *start, size_t size, int protection, int flags, int file, off64_t offset) {
    return map(start, size, protection, flags, file, offset);
}

/* --- requests */

static int set_format(struct v4l2_pix_format *format) {
    *format = (struct v4l2_pix_format){.width = WIDTH, .height = HEIGHT, .field = V4L2_FIELD_NONE, .sizeimage = SIZE};
    format->pixelformat = getenv("SIMULATED_WEBCAM_JPEG") ? V4L2_PIX_FMT_MJPEG : V4L2_PIX_FMT_YUYV;
    return 0;
}

static int request_buffers(int file, struct v4l2_requestbuffers *request) {
    pthread_mutex_lock(&lock);
    int is_busy = is_mode("busy") || (owner >= 0 && owner != file);
    if (!is_busy) owner = file;
    pthread_mutex_unlock(&lock);
    if (is_busy) return fail(EBUSY);
    if (request->count > BUFFERS) request->count = BUFFERS;
    return 0;
}

static int answer(int file, unsigned long request, void *data) {
    struct device *device = &devices[file];
    struct v4l2_buffer *buffer = data;
    switch (request) {
    case VIDIOC_QUERYCAP:
        memset(data, 0, sizeof(struct v4l2_capability));
        ((struct v4l2_capability *)data)->capabilities = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
        return 0;
    case VIDIOC_G_INPUT:
        return is_mode("metadata") ? fail(ENOTTY) : (*(int *)data = 0);
    case VIDIOC_ENUMINPUT:
        return 0;
    case VIDIOC_G_FMT:
    case VIDIOC_S_FMT:
        return set_format(&((struct v4l2_format *)data)->fmt.pix);
    case VIDIOC_G_PARM:
        ((struct v4l2_streamparm *)data)->parm.capture.timeperframe = (struct v4l2_fract){1, FPS};
        return 0;
    case VIDIOC_REQBUFS:
        return request_buffers(file, data);
    case VIDIOC_QUERYBUF:
        buffer->length = SIZE;
        buffer->m.offset = buffer->index * SIZE;
        return 0;
    case VIDIOC_QBUF:
        device->queue[device->queued++] = buffer->index;
        return 0;
    case VIDIOC_DQBUF:
        return dequeue(device, buffer);
    case VIDIOC_STREAMON:
        device->began_us = now_us();
        return 0;
    case VIDIOC_STREAMOFF:
        device->queued = 0;
        return 0;
    default:
        return fail(ENOTTY);
    }
}

int ioctl(int file, unsigned long request, ...) {
    va_list arguments;
    va_start(arguments, request);
    void *data = va_arg(arguments, void *);
    va_end(arguments);
    return find_device(file) ? answer(file, (unsigned)request, data) : REAL(ioctl)(file, request, data);
}
