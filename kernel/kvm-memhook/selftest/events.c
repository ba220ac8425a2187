// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <poll.h>
#include <sys/ioctl.h>

#include "events.h"
#include "harness.h"

int event_next(int fd, struct kvm_memhook_event *ev, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	if (poll(&p, 1, ms) <= 0) {
		errno = ETIMEDOUT;
		return -1;
	}
	return read(fd, ev, sizeof(*ev)) == sizeof(*ev) ? 0 : -1;
}

void want_event(int fd, struct kvm_memhook_event *ev, uint32_t type, uint64_t cookie)
{
	memset(ev, 0, sizeof(*ev));
	if (event_next(fd, ev, 60000))
		FAIL("no event, want type %u of action %llu: %s", type, (unsigned long long)cookie, strerror(errno));
	if (ev->type != type || ev->cookie != cookie)
		FAIL("event of type %u (reason %u) for action %llu, want type %u for %llu", ev->type, ev->reason,
		     (unsigned long long)ev->cookie, type, (unsigned long long)cookie);
}

void want_silence(int fd, int ms)
{
	struct kvm_memhook_event ev;

	if (!event_next(fd, &ev, ms))
		FAIL("event of type %u for action %llu, want none", ev.type, (unsigned long long)ev.cookie);
}

struct kvm_memhook_action action(uint32_t type, uint64_t cookie)
{
	return (struct kvm_memhook_action){ .type = type, .cookie = cookie, .dtb = G_PML4, .timeout_ms = 20000 };
}

int action_add(int fd, const struct kvm_memhook_action *a)
{
	return ioctl(fd, KVM_MEMHOOK_ADD_ACTION, a);
}

uint32_t action_cancel(int fd, uint64_t cookie)
{
	struct kvm_memhook_cancel c = { .cookie = cookie };

	WANT_EQ(ioctl(fd, KVM_MEMHOOK_CANCEL, &c), 0);
	return c.cancelled;
}
