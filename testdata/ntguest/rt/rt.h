/*
 * rt.h - the runtime's own types and what its files offer each other. They are
 * compiled three times: for 64-bit guests, for 32-bit ones, and for those with PAE.
 *
 * The runtime is an event-driven kernel: it never blocks in the middle of
 * anything. A trap or system call takes the one big lock, does its work with
 * interrupts off, chooses a thread and returns that thread's frame. A thread
 * that waits is just a frame on its kernel stack.
 */
#ifndef RT_H
#define RT_H

#include "nt_boot.h"

#ifdef __x86_64__
typedef u64 usize;
#else
typedef u32 usize;
/* What is elsewhere is in the same image: no table of addresses to relocate. */
#pragma GCC visibility push(hidden)
#endif
#if defined(__x86_64__) || defined(PAE)
typedef u64 pte_t;
#else
typedef u32 pte_t;
#endif

#define NULL ((void *)0)
#define PTR(type, va) ((type *)(usize)(va))
#define PAGE 4096ULL
#define PAGE_MASK 4095ULL

#define MAX_PROCS 320
#define MAX_THREADS 640
#define MAX_ALLOCATIONS 16
#define TICK_HZ 64
#define TICK_100NS 156250 /* 10^7 / TICK_HZ */

#define VECTOR_SYSCALL 0x100

/* What entry.S pushes; the tail is the processor's own interrupt frame. */
struct frame {
#ifdef __x86_64__
	u64 r15, r14, r13, r12, r11, r10, r9, r8;
	u64 bp, di, si, dx, cx, bx, ax;
#else
	u32 gs, fs, es, ds;
	u32 di, si, bp, bx, dx, cx, ax;
#endif
	usize vector, error;
	usize ip, cs, flags, sp, ss;
};

enum thread_state { T_FREE = 0, T_READY = 1, T_RUNNING = 2, T_ENDED = 4, T_WAITING = 5 };
enum proc_state { P_FREE = 0, P_ALIVE, P_ENDING, P_EXITED };

struct proc;

struct thread {
	u8 fx[512] __attribute__((aligned(16)));
	struct proc *proc;
	struct frame *frame;
	u64 ethread, teb, teb32;
	u64 stack_top, stack_limit;
	u64 wake_tick;              /* 0: no timeout */
	struct proc *wait_proc;     /* process whose end is awaited */
	u64 ticks;                  /* timer ticks that found it in user mode */
	u32 tid;
	u8 state;
	u8 cpu;                     /* while running */
	u8 ending;                  /* must not see user mode again */
	u8 idle, wow64, queued;
	u8 parked;                  /* repeats its system call when churn is on again */
	u32 exit_status;
	u32 stack_slot;             /* in the stacks arena, or NT_NONE */
};

struct proc {
	struct nt_proc id;          /* builder's record, or made from a template */
	const struct nt_template *tmpl;
	const struct nt_region *regions;
	u32 state;
	u32 live_threads;
	u32 slot;                   /* in the slots arena, or NT_NONE */
	u32 handles;                /* open handles to it */
	u64 blob;                   /* va of its kernel structures, if from a template */
	u64 reap_tick;
	u32 allocations;            /* in the ALLOC arena, by address */
	struct { u64 va, size; } allocation[MAX_ALLOCATIONS];
	u64 faults, syscalls;
	u64 fault_at;               /* user va a page fault is asked for at, or 0 */
};

struct cpu {
	const struct nt_cpu *boot;
	struct thread *current, *idle;
	u32 number, lapic_id;
	u32 resched;
	volatile u32 flush;         /* another processor asks for a TLB flush */
	volatile u32 online;
	u64 cr3;
};

extern const struct nt_boot *boot;
extern struct cpu cpus[NT_MAX_CPU];
extern struct thread *threads;
extern struct proc *procs;
extern volatile u64 ticks;
extern u64 system_time;        /* 100 ns since 1601 */
extern u32 frozen, freeze_asked, churn_off;
extern u64 stat_switches, stat_faults, stat_syscalls;

/* cpu.c: processors, local APIC, lock, IPIs. */
void lapic_setup(struct cpu *c);
void lapic_eoi(void);
u32 lapic_id(void);
void lapic_start_others(void);
void lapic_calibrate(void);
void kernel_lock(struct cpu *c);
void kernel_unlock(void);
void flush_remote(const struct proc *p);
void poke(struct cpu *c);
_Noreturn void bugcheck(const char *what, u64 a, u64 b);

/* arch.c, one for each width: what the processor has of its own. */
struct cpu *this_cpu(void);
void cpu_setup(struct cpu *c);
void cpu_report(struct cpu *c); /* registers for a bugcheck, to the serial line */
void thread_setup(struct thread *t, u64 ip, u64 sp, u64 arg0, u64 arg1);
void thread_load(struct cpu *c, struct thread *t, u64 cr3); /* stack, TEB, page tables */
#ifdef __x86_64__
#define FXSAVE "fxsaveq"
#define FXRSTOR "fxrstorq"
#define KERNEL_PCID 2 /* with KVA shadow NT tags CR3 so; without CR4.PCIDE it has no effect */
#define USER_PCID 1
#else
#define FXSAVE "fxsave"
#define FXRSTOR "fxrstor"
#define KERNEL_PCID 0
#define USER_PCID 0
#endif

/* mm.c: frames, temporary mappings, page tables; space.c: address spaces. */
void mm_setup(void);
void *heap_alloc(u64 size);
u64 frame_alloc(void);          /* pfn of a zeroed frame; never fails, bugchecks */
void frame_free(u64 pfn);
u64 frames_free(void);
pte_t *self_pte(u64 va);
void *map_frame(u32 slot, u64 pfn); /* 0..4 and 7: page tables; 5 and 6: new ones */
pte_t *pte_of(u64 dtb, u64 va); /* NULL without a page table; valid till the next call */
pte_t *pte_make(const struct proc *p, u64 va);
pte_t *map_root(u64 dtb);
int root_level(void);           /* the lowest level of tables is 0 */
void kernel_map_new(u64 va, u64 size);
void address_space_new(struct proc *p);
void address_space_clear(struct proc *p);
void address_space_free(struct proc *p);
#define SLOT_SOURCE 8
#define SLOT_TARGET 9
#define SLOT_USER   10

/* pager.c: user pages. */
#define ACCESS_WRITE 2
#define ACCESS_EXEC 16
u32 page_in(struct proc *p, u64 va, u32 access); /* 0 or an NTSTATUS */
const struct nt_region *region_of(const struct proc *p, u64 va);
u64 pfn_of_proto(const struct nt_region *r, u64 va);
int user_read(struct proc *p, void *to, u64 va, u64 n);  /* 0, or -1 */
int user_write(struct proc *p, u64 va, const void *from, u64 n);
u32 user_protect(struct proc *p, u64 va, u64 size, u32 prot, u32 *old);
u32 user_alloc(struct proc *p, u64 *va, u64 *size, u32 prot);
u32 user_free(struct proc *p, u64 *va, u64 *size);
u64 trim(struct proc *p);
u64 evict(struct proc *p);
const char *page_state(struct proc *p, u64 va, u64 *pa);
int user_peek(struct proc *p, u64 va, u32 *value); /* without paging in; 0, or -1 */

/* sched.c */
struct frame *leave(struct cpu *c);
void thread_ready(struct thread *t);
void thread_wait(struct thread *t, u64 wake_tick);
void tick(struct cpu *c);
void sched_setup(void);

/* proc.c: life of processes and threads. */
void proc_import(void);
void put_event(const char *what, const struct proc *p);
void list_remove(u64 entry);
void proc_terminate(struct proc *p, u32 status);
void thread_terminate(struct thread *t, u32 status);
void proc_finish(void);
struct proc *proc_by_pid(u32 pid);
struct proc *proc_by_object(u64 eprocess);
u32 reap(int all);

/* template.c: processes made from templates. */
void template_setup(void);
struct proc *proc_start(const char *name, u32 ppid, u32 pid, u32 *status); /* pid 0: any */
void template_undo(struct proc *p);

/* handle.c: handle tables and PspCidTable. */
usize *cid_entry(u32 id);
u32 cid_shift(void);
void cid_set(u32 id, u64 object);
u32 cid_new(void);
u32 handle_open(struct proc *p, u64 object, u32 access, usize *handle);
u32 handle_object(struct proc *p, u64 handle, u64 *object, u32 *access);
u32 handle_close(struct proc *p, u64 handle);
void handle_close_all(struct proc *p);
u32 handle_count(struct proc *p);

/* object.c: handles to processes and the access they grant. */
#define CURRENT_PROCESS ((usize)-1)
u32 process_of(struct proc *self, u64 handle, u32 access, struct proc **out);
u32 open_process(struct proc *self, struct frame *f);

/* entry.S: let interrupts in, with and without waiting for one. */
void idle_wait(void);
void idle_breathe(void);

/* syscall.c, trap.c, serial.c, truth.c */
void syscall(struct cpu *c, struct frame *f);
usize arg(struct proc *p, struct frame *f, u32 n); /* of a system call, counted from 1 */
struct frame *trap_dispatch(struct frame *f);
void serial_setup(void);
void serial_drain(u32 budget);
int serial_pending(void);
void serial_poll(void);
void put_char(char c);
void put_str(const char *s);
void put_bytes(const char *s, u64 n);
void put_dec(u64 v);
void put_hex(u64 v);
u64 serial_room(void);
void truth(void);

/* Kernel memory of the guest, by address and offset. */
static inline u64 *at64(u64 va) { return PTR(u64, va); }
static inline u32 *at32(u64 va) { return PTR(u32, va); }
static inline u8 *at8(u64 va) { return PTR(u8, va); }
static inline usize *word_at(u64 va) { return PTR(usize, va); }
static inline void set_word(u64 va, u32 off, u64 v) { if (off != NT_NONE) *word_at(va + off) = (usize)v; }
static inline void set64(u64 va, u32 off, u64 v) { if (off != NT_NONE) *at64(va + off) = v; }
static inline void set32(u64 va, u32 off, u32 v) { if (off != NT_NONE) *at32(va + off) = v; }
static inline void set8(u64 va, u32 off, u8 v) { if (off != NT_NONE) *at8(va + off) = v; }

static inline void *memcpy(void *d, const void *s, usize n)
{
	void *r = d;
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
	return r;
}

static inline void *memset(void *d, int v, usize n)
{
	void *r = d;
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(v) : "memory");
	return r;
}

static inline void outb(u16 port, u8 v) { __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline void outsb(u16 port, const void *p, usize n)
{
	__asm__ volatile("rep outsb" : "+S"(p), "+c"(n) : "d"(port) : "memory");
}

static inline void wrmsr(u32 msr, u64 v)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}

static inline u64 rdmsr(u32 msr)
{
	u32 lo, hi;
	__asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
	return lo | (u64)hi << 32;
}

static inline void invlpg(u64 va) { __asm__ volatile("invlpg (%0)" : : "r"((usize)va) : "memory"); }
static inline u64 read_cr2(void) { usize v; __asm__ volatile("mov %%cr2, %0" : "=r"(v)); return v; }
static inline u64 read_cr3(void) { usize v; __asm__ volatile("mov %%cr3, %0" : "=r"(v) : : "memory"); return v; }
static inline void write_cr3(u64 v) { __asm__ volatile("mov %0, %%cr3" : : "r"((usize)v) : "memory"); }

/* Status values, as ntstatus.h has them. */
#define STATUS_SUCCESS 0
#define STATUS_TIMEOUT 0x102
#define STATUS_GUARD_PAGE_VIOLATION 0x80000001
#define STATUS_BREAKPOINT 0x80000003
#define STATUS_ACCESS_VIOLATION 0xC0000005
#define STATUS_INVALID_HANDLE 0xC0000008
#define STATUS_INVALID_CID 0xC000000B
#define STATUS_INVALID_PARAMETER 0xC000000D
#define STATUS_NO_MEMORY 0xC0000017
#define STATUS_CONFLICTING_ADDRESSES 0xC0000018
#define STATUS_INVALID_SYSTEM_SERVICE 0xC000001C
#define STATUS_ILLEGAL_INSTRUCTION 0xC000001D
#define STATUS_ACCESS_DENIED 0xC0000022
#define STATUS_INVALID_PARAMETER_MIX 0xC0000030
#define STATUS_OBJECT_TYPE_MISMATCH 0xC0000024
#define STATUS_OBJECT_NAME_NOT_FOUND 0xC0000034
#define STATUS_NOT_COMMITTED 0xC000002D
#define STATUS_INVALID_PAGE_PROTECTION 0xC0000045
#define STATUS_MEMORY_NOT_ALLOCATED 0xC00000A0
#define STATUS_INVALID_INFO_CLASS 0xC0000003
#define STATUS_INFO_LENGTH_MISMATCH 0xC0000004
#define STATUS_INTEGER_DIVIDE_BY_ZERO 0xC0000094
#define STATUS_PRIVILEGED_INSTRUCTION 0xC0000096
#define STATUS_INSUFFICIENT_RESOURCES 0xC000009A
#define STATUS_PROCESS_IS_TERMINATING 0xC000010A
#define STATUS_VIRUS_INFECTED 0xC0000906

#endif
