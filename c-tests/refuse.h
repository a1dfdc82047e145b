/* Makes system calls fail from now on, in this process, by a seccomp filter; needs no rights. */
#ifndef REFUSE_H
#define REFUSE_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "story.h"

static inline struct sock_filter filter_step(unsigned code, unsigned value, unsigned yes, unsigned no)
{
    struct sock_filter step;
    step.code = (unsigned short)code;
    step.jt = (unsigned char)yes;
    step.jf = (unsigned char)no;
    step.k = value;
    return step;
}

/* Each of the `count` calls answers `number` as its errno. Skips the story where the kernel has no such filters. */
static inline void refuse_calls(const long *calls, unsigned count, int number)
{
    struct sock_filter steps[40];
    struct sock_fprog program;
    unsigned at = 0;
    CHECK(count + 3 <= sizeof steps / sizeof *steps);
    /* The number of the call is the first field of struct seccomp_data. */
    steps[at++] = filter_step(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0);
    for (unsigned n = 0; n < count; n++)
        steps[at++] = filter_step(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[n], count - n, 0);
    steps[at++] = filter_step(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
    steps[at++] = filter_step(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)number, 0, 0);
    program.len = (unsigned short)at;
    program.filter = steps;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        SKIP("this kernel, or the tool that the story runs under, has no seccomp filters");
}

#endif
