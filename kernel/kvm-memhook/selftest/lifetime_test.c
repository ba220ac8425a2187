// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "harness.h"
#include "vmm.h"

static void refuses_others(void)
{
	struct kvm_memhook_attach a = { .api = KVM_MEMHOOK_API };
	int dev = memhook_device();
	struct vmm v;

	vmm_create(&v, -1);
	v.vcpu = ioctl(v.vm, KVM_CREATE_VCPU, 0);
	WANT(v.vcpu >= 0);
	WANT_ERRNO(memhook_attach(-1), EBADF);
	WANT_ERRNO(memhook_attach(open("/dev/null", O_RDWR)), EINVAL);
	WANT_ERRNO(memhook_attach(v.kvm), EINVAL);
	WANT_ERRNO(memhook_attach(v.vcpu), EINVAL);
	WANT_ERRNO(memhook_attach(eventfd(0, 0)), EINVAL);
	WANT_ERRNO(memhook_attach(memfd_create("kvm-vm", 0)), EINVAL);
	WANT_ERRNO(memhook_attach(dev), EINVAL);

	a.vm_fd = v.vm;
	a.api = KVM_MEMHOOK_API + (1 << 16);
	WANT_ERRNO(ioctl(dev, KVM_MEMHOOK_ATTACH, &a), EPROTO);
	a.api = KVM_MEMHOOK_API + 1;
	WANT_ERRNO(ioctl(dev, KVM_MEMHOOK_ATTACH, &a), EPROTO);
	a.api = KVM_MEMHOOK_API;
	a.flags = 1;
	WANT_ERRNO(ioctl(dev, KVM_MEMHOOK_ATTACH, &a), EINVAL);
	WANT_ERRNO(ioctl(dev, KVM_MEMHOOK_ATTACH, NULL), EFAULT);
	WANT_EQ(ioctl(dev, KVM_MEMHOOK_GET_API), KVM_MEMHOOK_API);
}

static void unprivileged(void)
{
	WANT_EQ(setgid(65534), 0);
	WANT_EQ(setuid(65534), 0);
	WANT_ERRNO(open(KVM_MEMHOOK_DEVICE, O_RDWR), EACCES);
}

static void no_unload_while_attached(void)
{
	struct vmm v;
	int fd;

	vmm_create(&v, -1);
	fd = memhook_attach(v.vm);
	WANT(fd >= 0);
	WANT_ERRNO(syscall(SYS_delete_module, "kvm_memhook", O_NONBLOCK), EAGAIN);
}

/* The VM's process dies: reads, faults and new attachments say so. */
static void vm_gone(void)
{
	struct kvm_memhook_info info;
	int vm, fd, status;
	uint64_t w;
	pid_t pid = vmm_spawn(&vm);

	fd = memhook_attach(vm);
	WANT(fd >= 0);
	WANT_EQ(memhook_read(fd, 0x1000, &w, 8), 0);
	WANT_EQ(w, pattern(0x1000));
	kill(pid, SIGKILL);
	WANT_EQ(waitpid(pid, &status, 0), pid);
	WANT_EQ(memhook_read(fd, 0x1000, &w, 8), -ESRCH);
	WANT_EQ(ioctl(fd, KVM_MEMHOOK_GET_INFO, &info), 0);
	WANT_EQ(info.state, KVM_MEMHOOK_STATE_GONE);
	WANT_ERRNO(memhook_attach(vm), ESRCH);
	WANT_EQ(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED, 1);
}

static sigjmp_buf on_bus;

static void bus(int sig)
{
	siglongjmp(on_bus, sig);
}

static void mapping_of_gone(void)
{
	struct sigaction sa = { .sa_handler = bus };
	volatile uint8_t *m;
	int vm, fd, status;
	pid_t pid = vmm_spawn(&vm);

	fd = memhook_attach(vm);
	m = mmap(NULL, LOW_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	WANT(m != MAP_FAILED);
	close(fd);
	close(vm);
	/* The mapping alone keeps the attachment. */
	WANT_EQ(*(volatile uint64_t *)(m + 0x5000), pattern(0x5000));
	kill(pid, SIGKILL);
	WANT_EQ(waitpid(pid, &status, 0), pid);
	sigaction(SIGBUS, &sa, NULL);
	if (!sigsetjmp(on_bus, 1)) {
		(void)*(volatile uint8_t *)(m + 0x5000);
		FAIL("memory of a dead VM can still be read");
	}
}

/* A descriptor is passed on, and the process that attached ends: it goes on with its holder. */
static void passed_on(void)
{
	union {
		struct cmsghdr h;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {};
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	int pair[2], vm, fd, status;
	struct kvm_memhook_info info;
	struct pollfd p;
	uint64_t w;
	pid_t vmm = vmm_spawn(&vm), pid;

	WANT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	pid = fork();
	WANT(pid >= 0);
	if (!pid) {
		fd = memhook_attach(vm);
		WANT(fd >= 0);
		control.h = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.h), &fd, sizeof(fd));
		WANT_EQ(sendmsg(pair[1], &m, 0), 1);
		_exit(0);
	}
	close(vm);
	WANT_EQ(recvmsg(pair[0], &m, 0), 1);
	WANT_EQ(waitpid(pid, &status, 0), pid);
	WANT_EQ(status, 0);
	memcpy(&fd, CMSG_DATA(&control.h), sizeof(fd));
	WANT_EQ(memhook_read(fd, 0x1000, &w, 8), 0);
	WANT_EQ(w, pattern(0x1000));
	WANT_EQ(ioctl(fd, KVM_MEMHOOK_GET_INFO, &info), 0);
	WANT_EQ(info.state, 0);
	kill(vmm, SIGKILL);
	p = (struct pollfd){ .fd = fd, .events = POLLIN };
	WANT_EQ(poll(&p, 1, 60000), 1);
	WANT_EQ(waitpid(vmm, &status, 0), vmm);
	WANT_EQ(memhook_read(fd, 0x1000, &w, 8), -ESRCH);
}

/* Every order of closing the three descriptors and the mapping. */
static void close_in_any_order(void)
{
	for (int order = 0; order < 24; order++) {
		int rest[4] = { 0, 1, 2, 3 }, k = order;
		struct vmm v;
		void *m;
		int fd;

		vmm_create(&v, -1);
		vmm_fill(&v);
		fd = memhook_attach(v.vm);
		WANT(fd >= 0);
		m = mmap(NULL, LOW_SIZE, PROT_READ, MAP_SHARED, fd, 0);
		WANT_EQ(*(volatile uint64_t *)((uint8_t *)m + 0x1000), pattern(0x1000));
		for (int n = 4; n; k /= n, n--) {
			int pick = k % n;

			switch (rest[pick]) {
			case 0: close(v.vm); break;
			case 1: close(fd); break;
			case 2: munmap(m, LOW_SIZE); break;
			case 3: munmap(v.low, LOW_SIZE); break;
			}
			rest[pick] = rest[n - 1];
		}
		munmap(v.high, HIGH_SIZE);
		munmap(v.rom, ROM_SIZE);
		close(v.kvm);
	}
}

static void many_attachments(void)
{
	struct vmm v;
	uint64_t w;

	vmm_create(&v, -1);
	vmm_fill(&v);
	for (int i = 0; i < 10000; i++) {
		int fd = memhook_attach(v.vm);

		WANT(fd >= 0);
		if (i % 100 == 0)
			WANT_EQ(memhook_read(fd, 0x1000, &w, 8), 0);
		close(fd);
	}
}

/* Clients are killed at random points while they use everything. */
static void killed_clients(void)
{
	int vm, status;
	pid_t vmm = vmm_spawn(&vm);

	srand(1);
	for (int i = 0; i < 100; i++) {
		pid_t pid = fork();

		if (!pid) {
			static uint8_t buf[1 << 20];

			for (;;) {
				int fd = memhook_attach(vm);
				volatile uint8_t *m = mmap(NULL, LOW_SIZE, PROT_READ, MAP_SHARED, fd, 0);

				for (uint64_t a = 0; a < LOW_SIZE; a += 65536)
					(void)m[a];
				memhook_read(fd, 0, buf, sizeof(buf));
				munmap((void *)m, LOW_SIZE);
				close(fd);
			}
		}
		usleep(rand() % 20000);
		kill(pid, SIGKILL);
		WANT_EQ(waitpid(pid, &status, 0), pid);
		WANT_EQ(WTERMSIG(status), SIGKILL);
	}
	kill(vmm, SIGKILL);
}

/* Attach while the VM's process is being killed. */
static void attach_to_dying(void)
{
	for (int i = 0; i < 50; i++) {
		int vm, fd, status;
		uint64_t w;
		pid_t pid = vmm_spawn(&vm);

		kill(pid, SIGKILL);
		do {
			fd = memhook_attach(vm);
			if (fd >= 0) {
				memhook_read(fd, 0x1000, &w, 8);
				close(fd);
			} else {
				WANT_EQ(errno, ESRCH);
			}
		} while (fd >= 0);
		close(vm);
		WANT_EQ(waitpid(pid, &status, 0), pid);
	}
}

/* A fixed number of rounds of malformed calls: errors, never harm. */
static void malformed(void)
{
	static const unsigned nr[] = {
		0x00, 0x01, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x7f,
	};
	static uint8_t page[8192];
	struct vmm v;
	int fd[2];

	vmm_create(&v, -1);
	fd[0] = memhook_attach(v.vm);
	fd[1] = memhook_device();
	srand(7);
	for (int i = 0; i < 200000; i++) {
		unsigned long cmd = _IOC(rand() % 4, KVM_MEMHOOK_IOC, nr[rand() % 13], rand() % 256);
		void *arg = page;

		/* Half of them with the right size, so that the body is looked at. */
		switch (rand() % 16) {
		case 0: cmd = KVM_MEMHOOK_READ; break;
		case 1: cmd = KVM_MEMHOOK_GET_SLOTS; break;
		case 2: cmd = KVM_MEMHOOK_GET_REGS; break;
		case 3: cmd = KVM_MEMHOOK_SET_HOOKS; break;
		case 4: cmd = KVM_MEMHOOK_ADD_ACTION; break;
		case 5: cmd = KVM_MEMHOOK_CANCEL; break;
		case 6: cmd = KVM_MEMHOOK_ATTACH; break;
		case 7: cmd = KVM_MEMHOOK_WRITE; break;
		}
		for (size_t j = 0; j < 256; j++)
			page[j] = rand() % 4 ? 0 : rand();
		switch (rand() % 8) {
		case 0: arg = NULL; break;
		case 1: arg = (void *)~0xfffUL; break;
		case 2: /* a pointer that leads back here */
			*(uint64_t *)page = (uintptr_t)page;
			break;
		}
		if (cmd == KVM_MEMHOOK_GET_REGS)
			*(uint32_t *)(page + 4) %= 3;
		{
			int r = ioctl(fd[rand() % 2], cmd, arg);

			if (r > 2 && r != KVM_MEMHOOK_API)
				close(r);
		}
	}
	WANT_EQ(memhook_read(fd[0], 0, page, 8), 0);
}

const struct test lifetime_tests[] = {
	{ "lifetime/refuses-others", refuses_others },
	{ "lifetime/unprivileged", unprivileged },
	{ "lifetime/no-unload-while-attached", no_unload_while_attached },
	{ "lifetime/vm-gone", vm_gone },
	{ "lifetime/mapping-of-gone", mapping_of_gone },
	{ "lifetime/passed-on", passed_on },
	{ "lifetime/close-in-any-order", close_in_any_order },
	{ "lifetime/many-attachments", many_attachments },
	{ "lifetime/killed-clients", killed_clients },
	{ "lifetime/attach-to-dying", attach_to_dying },
	{ "lifetime/malformed", malformed },
	{ 0 },
};
