/* SPDX-License-Identifier: GPL-2.0-only */
/* The client's side of hooks and actions. */
#ifndef EVENTS_H
#define EVENTS_H

#include <sys/types.h>

#include "guest.h"

/* The next event within ms, or fails; NULL-safe: -1 with errno when there is none. */
int event_next(int fd, struct kvm_memhook_event *ev, int ms);
/* The next event must be of that type for that cookie. */
void want_event(int fd, struct kvm_memhook_event *ev, uint32_t type, uint64_t cookie);
void want_silence(int fd, int ms);
/* An action on the guest's only process, with a deadline of 20 s. */
struct kvm_memhook_action action(uint32_t type, uint64_t cookie);
int action_add(int fd, const struct kvm_memhook_action *a);
/* Returns how many were cancelled. */
uint32_t action_cancel(int fd, uint64_t cookie);

#endif
