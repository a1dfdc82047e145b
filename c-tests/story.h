/*
 * What a story is made of.
 *
 * A story is one C program that tells one thing about libqbm: `int main(void)`, everything else `static`. It works in
 * a folder of its own (`enter_folder`), checks with the macros below, and returns
 *
 *     0          what it tells is true
 *     1          a check failed: the file, the line and libqbm's own words are on stderr
 *     SKIPPED    this machine cannot show it; the reason is on stderr (`SKIP`)
 *
 * The same file is compiled into a Rust test with another name for `main`, and as a program of its own against the
 * shared and the static library: see tests/c_stories.rs and tests/c_programs.rs.
 */
#ifndef STORY_H
#define STORY_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qbm.h"

#define SKIPPED 77

/* Ends the story as failed unless `condition` holds. */
#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: this does not hold: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

/* Ends the story as failed unless the call answers `expected` (0, or a negative errno). */
#define CHECK_RESULT(expected, call)                                                           \
    do {                                                                                       \
        int want_ = (expected);                                                                \
        int got_ = (call);                                                                     \
        if (got_ != want_) {                                                                   \
            const char *words_ = qbm_error_message();                                          \
            fprintf(stderr, "%s:%d: %s\n    answered %d (%s), not %d; its words: %s\n",        \
                    __FILE__, __LINE__, #call, got_, got_ < 0 ? strerror(-got_) : "no error", \
                    want_, words_ ? words_ : "none");                                          \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

/* Ends the story as failed unless the call succeeds. */
#define CHECK_OK(call) CHECK_RESULT(0, call)

/* Ends the story as failed unless the two strings are equal. */
#define CHECK_STRING(expected, actual)                                                         \
    do {                                                                                       \
        const char *want_ = (expected);                                                        \
        const char *got_ = (actual);                                                           \
        if (!got_ || strcmp(want_, got_) != 0) {                                               \
            fprintf(stderr, "%s:%d: %s is \"%s\", not \"%s\"\n", __FILE__, __LINE__, #actual,  \
                    got_ ? got_ : "(null)", want_);                                            \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

/* Ends the story as failed unless the text holds the part. */
#define CHECK_MENTIONS(part, text)                                                             \
    do {                                                                                       \
        const char *part_ = (part);                                                            \
        const char *text_ = (text);                                                            \
        if (!text_ || !strstr(text_, part_)) {                                                 \
            fprintf(stderr, "%s:%d: %s is \"%s\", without \"%s\"\n", __FILE__, __LINE__, #text, \
                    text_ ? text_ : "(null)", part_);                                          \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

/* Ends the story as one that this machine cannot tell. */
#define SKIP(reason)                                                                           \
    do {                                                                                       \
        fprintf(stderr, "%s\n", (reason));                                                     \
        exit(SKIPPED);                                                                         \
    } while (0)

/* Makes the story's folder the current one: the one that the harness made, or else a new one. */
static inline void enter_folder(void)
{
    static char own[] = "/tmp/qbm-story-XXXXXX";
    const char *folder = getenv("QBM_STORY_DIR");
    if (!folder) {
        folder = mkdtemp(own);
        CHECK(folder);
        fprintf(stderr, "working in %s\n", folder);
    }
    CHECK(chdir(folder) == 0);
}

#endif
