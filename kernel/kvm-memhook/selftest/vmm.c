// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "harness.h"
#include "vmm.h"

uint64_t pattern(uint64_t gpa)
{
	return gpa * 0x9e3779b97f4a7c15ULL ^ 0x5bd1e9955bd1e995ULL;
}

static void *memory(uint64_t size, int memfd, uint64_t off)
{
	void *p;

	if (memfd >= 0)
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, off);
	else
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	WANT(p != MAP_FAILED);
	return p;
}

void vmm_slot(struct vmm *v, unsigned id, uint64_t gpa, uint64_t size, void *mem, unsigned flags)
{
	struct kvm_userspace_memory_region r = {
		.slot = id, .flags = flags, .guest_phys_addr = gpa,
		.memory_size = size, .userspace_addr = (uintptr_t)mem,
	};

	WANT_EQ(ioctl(v->vm, KVM_SET_USER_MEMORY_REGION, &r), 0);
}

void vmm_create(struct vmm *v, int memfd)
{
	memset(v, 0, sizeof(*v));
	v->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	WANT(v->kvm >= 0);
	v->vm = ioctl(v->kvm, KVM_CREATE_VM, 0);
	WANT(v->vm >= 0);
	v->vcpu = -1;
	if (memfd >= 0)
		WANT_EQ(ftruncate(memfd, LOW_SIZE + HIGH_SIZE), 0);
	v->low = memory(LOW_SIZE, memfd, 0);
	v->high = memory(HIGH_SIZE, memfd, LOW_SIZE);
	v->rom = memory(ROM_SIZE, -1, 0);
	vmm_slot(v, 0, LOW_GPA, LOW_SIZE, v->low, 0);
	vmm_slot(v, 1, ROM_GPA, ROM_SIZE, v->rom, KVM_MEM_READONLY);
	vmm_slot(v, 2, HIGH_GPA, HIGH_SIZE, v->high, 0);
}

static void fill(uint8_t *mem, uint64_t gpa, uint64_t size)
{
	for (uint64_t i = 0; i < size; i += 8) {
		uint64_t w = pattern(gpa + i);

		memcpy(mem + i, &w, 8);
	}
}

void vmm_fill(struct vmm *v)
{
	fill(v->low, LOW_GPA, LOW_SIZE);
	fill(v->rom, ROM_GPA, ROM_SIZE);
	fill(v->high, HIGH_GPA, HIGH_SIZE);
}

pid_t vmm_spawn(int *vm_fd)
{
	int ready[2], fd, pidfd;
	pid_t pid;

	WANT_EQ(pipe(ready), 0);
	pid = fork();
	WANT(pid >= 0);
	if (!pid) {
		struct vmm v;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		vmm_create(&v, -1);
		vmm_fill(&v);
		WANT_EQ(write(ready[1], &v.vm, sizeof(v.vm)), sizeof(v.vm));
		for (;;)
			pause();
	}
	WANT_EQ(read(ready[0], &fd, sizeof(fd)), sizeof(fd));
	close(ready[0]);
	close(ready[1]);
	pidfd = syscall(SYS_pidfd_open, pid, 0);
	WANT(pidfd >= 0);
	*vm_fd = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	WANT(*vm_fd >= 0);
	close(pidfd);
	return pid;
}

int memhook_device(void)
{
	int fd = open(KVM_MEMHOOK_DEVICE, O_RDWR | O_CLOEXEC);

	WANT(fd >= 0);
	return fd;
}

int memhook_attach(int vm_fd)
{
	struct kvm_memhook_attach a = { .api = KVM_MEMHOOK_API, .vm_fd = vm_fd };
	int dev = memhook_device();
	int fd = ioctl(dev, KVM_MEMHOOK_ATTACH, &a);
	int e = errno;

	close(dev);
	errno = e;
	return fd;
}

static int transfer(int fd, unsigned long cmd, uint64_t gpa, const void *buf, uint32_t len)
{
	struct kvm_memhook_range r = { .gpa = gpa, .buf = (uintptr_t)buf, .len = len, .error = 1 };
	struct kvm_memhook_rw rw = { .ranges = (uintptr_t)&r, .count = 1 };

	if (ioctl(fd, cmd, &rw))
		return -errno;
	WANT_EQ(rw.failed, r.error != 0);
	return r.error;
}

int memhook_read(int fd, uint64_t gpa, void *buf, uint32_t len)
{
	return transfer(fd, KVM_MEMHOOK_READ, gpa, buf, len);
}

int memhook_write(int fd, uint64_t gpa, const void *buf, uint32_t len)
{
	return transfer(fd, KVM_MEMHOOK_WRITE, gpa, buf, len);
}
