/*
 * nt_boot.h - what the layout builder tells the runtime, of either width.
 *
 * The builder (internal/ntguest) knows where every structure of the chosen
 * Windows build lies; the runtime knows none of it and works from this block
 * alone. All addresses named "va" are kernel virtual addresses that every
 * address space maps; "pa" are guest-physical; "pfn" is pa >> 12. Everything is
 * little-endian and naturally aligned, so that the Go mirror (boot.go) is a
 * plain list of fields. boot_test.go compares both by size and offset.
 *
 * The tables live in memory that is private to the runtime. The kernel
 * structures they point to are the guest's and look as that build's do.
 */
#ifndef NT_BOOT_H
#define NT_BOOT_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define NT_BOOT_MAGIC   0x544f4f424d41564eULL /* "NVAMBOOT" */
#define NT_BOOT_VERSION 5
#define NT_MAX_CPU      4
#define NT_NONE         0xffffffffu /* an offset or index that this build lacks */

/* A table: count elements of a fixed type at va. */
struct nt_table {
	u64 va;
	u64 count;
};

/* One virtual processor. GDT, IDT, TSS and KPCR are laid out by the builder. */
struct nt_cpu {
	u64 kpcr;          /* va, goes into KERNEL_GS_BASE */
	u64 gdt, idt;      /* va */
	u16 gdt_limit, idt_limit;
	u32 reserved;
	u64 tss;           /* va; selector 0x40; the runtime keeps RSP0 in it */
	u64 boot_stack;    /* top of the stack to boot on: the idle thread's */
	u64 shadow_stack;  /* KVA shadow: top of the transition stack, else 0 */
};

/* Structure offsets of the build, in bytes; NT_NONE where it lacks one. */
struct nt_off {
	u32 ep_dtb;               /* _EPROCESS.Pcb.DirectoryTableBase */
	u32 ep_user_dtb;          /* .Pcb.UserDirectoryTableBase */
	u32 kp_thread_list;       /* .Pcb.ThreadListHead */
	u32 ep_thread_list;       /* .ThreadListHead */
	u32 ep_create_time;
	u32 ep_exit_time;
	u32 ep_exit_status;       /* .ExitStatus, or .LastThreadExitStatus beside it */
	u32 ep_active_threads;
	u32 ep_flags;             /* u32 with ProcessExiting, ProcessDelete */
	u32 ep_flag_exiting;      /* masks in it */
	u32 ep_flag_delete;
	u32 ep_object_table;
	u32 ep_vad_root;          /* zeroed (8 bytes) when the address space goes */
	u32 ep_peb;
	u32 kt_state;             /* u8 _KTHREAD.State: 1 ready, 2 running, 4 ended, 5 waiting */
	u32 kt_wait_reason;       /* u8 */
	u32 kt_context_switches;  /* u32 */
	u32 kt_kernel_stack;      /* where the saved frame lies while not running */
	u32 kt_trap_frame;        /* unused by readers; NT_NONE if not wanted */
	u32 kt_thread_list_entry; /* in KPROCESS.ThreadListHead */
	u32 et_thread_list_entry; /* in EPROCESS.ThreadListHead */
	u32 et_exit_status;
	u32 et_exit_time;
	u32 ht_table_code;        /* _HANDLE_TABLE.TableCode */
	u32 oh_body;              /* _OBJECT_HEADER.Body */
	u32 oh_pointer_count;     /* u64 */
	u32 oh_handle_count;      /* u64 */
	u32 pcr_current_thread;   /* from the KPCR: Prcb.CurrentThread, 0x188 */
	u32 pcr_next_thread;
	u32 pcr_kernel_dtb;       /* Prcb.KernelDirectoryTableBase, KVA shadow */
	u32 pcr_rsp_shadow;       /* Prcb.RspBaseShadow */
	u32 pcr_user_rsp_shadow;  /* Prcb.UserRspShadow */
};

/*
 * A section's image or data: count pages, each with a prototype PTE (an array
 * of u64 at proto), a frame of the RAM disk that holds its file content (array of
 * u32 pfn at backing; 0 means a page of zeros), and what its prototype PTE is while
 * it is in the file alone (array of u64 at file).
 */
struct nt_segment {
	u64 proto;
	u64 backing;
	u64 count;
	u64 file;
};

/* Kinds of nt_region. */
#define NT_REGION_ZERO   1 /* private, demand-zero */
#define NT_REGION_INIT   2 /* private, first content copied from RAM disk frames */
#define NT_REGION_IMAGE  3 /* pages of a segment, through its prototype PTEs */
#define NT_REGION_SHARED 4 /* fixed frames (KUSER_SHARED_DATA) */
#define NT_REGION_NONE   5 /* reserved, no access; ALLOC takes from it below */
#define NT_REGION_ALLOC  6 /* private arena for NtAllocateVirtualMemory */

/*
 * A run of user pages with one protection: [start, end). prot is a PAGE_*
 * constant of Windows (PAGE_READONLY 2, READWRITE 4, WRITECOPY 8, EXECUTE 0x10,
 * EXECUTE_READ 0x20, EXECUTE_READWRITE 0x40, EXECUTE_WRITECOPY 0x80, NOACCESS 1,
 * GUARD 0x100). Sorted by start, no overlaps, within one process or template.
 * A PTE that is valid or in transition comes first; the region says what a page
 * without one is.
 */
struct nt_region {
	u64 start, end;
	u32 kind;
	u32 prot;
	u32 segment;    /* IMAGE: index into segments */
	u32 first_page; /* IMAGE: page of the segment that start maps */
	u64 backing;    /* INIT, SHARED: va of u32 pfn[], 0 = zeros */
};

#define NT_PROC_WOW64    1
#define NT_PROC_KERNEL   2 /* System, Registry: no user part, never exits */
#define NT_PROC_EXITED   4
#define NT_PROC_CRITICAL 8

/* A process of the moment that the image shows. */
struct nt_proc {
	u64 eprocess;
	u64 dtb, user_dtb;        /* pa; user_dtb 0 without KVA shadow */
	u64 peb, peb32;
	u64 create_time, exit_time;
	u32 exit_status;
	u32 pid, ppid;
	u32 session;
	u32 flags;
	u32 first_region, regions; /* into nt_boot.regions */
	u32 truth_len;
	u64 truth;                 /* va of a JSON fragment: members that do not
	                              change, `"name":"x.exe","path":...,"modules":[...]`,
	                              no braces, no trailing comma */
	u64 progress;              /* user va of the program's u32 counter, or 0 */
	u32 protection;            /* _EPROCESS.Protection.Level */
	u32 account;               /* last part of its user's SID; 18 is LocalSystem */
	char name[16];
};

#define NT_THREAD_READY   0 /* starts at rip in ring 3, CS 0x33 */
#define NT_THREAD_BLOCKED 1 /* waits for ever, has a user context */
#define NT_THREAD_KERNEL  2 /* system thread, waits for ever */
#define NT_THREAD_IDLE    3 /* idle thread of processor arg0 */
#define NT_THREAD_WOW64   0x100 /* flag: FS base is teb32 */

struct nt_thread {
	u64 ethread;
	u64 teb, teb32;
	u64 stack_top, stack_limit; /* kernel stack; top is InitialStack */
	u64 rip, rsp;
	u64 arg0, arg1;             /* rcx, rdx */
	u32 tid;
	u32 proc;                   /* index into procs */
	u32 state;                  /* NT_THREAD_*, low byte, and flags */
	u32 reserved;
};

/* Kinds of nt_fixup; "at" is the offset in the template's blob, a word as wide as
   the guest's pointers. */
#define NT_FIX_RELOC       1  /* word += delta of the blob */
#define NT_FIX_RELOC_CID   2  /* u64 += delta, shifted as a packed handle table entry has it */
#define NT_FIX_PID         3  /* word = pid + value */
#define NT_FIX_PPID        4  /* word = parent's pid */
#define NT_FIX_TID         5  /* word = tid of thread arg */
#define NT_FIX_DTB         6  /* word = dtb + value (flag bits) */
#define NT_FIX_USER_DTB    7
#define NT_FIX_NOW         8  /* u64 = system time */
#define NT_FIX_STACK_TOP   9  /* word = kernel stack top of thread arg, + value */
#define NT_FIX_STACK_LIMIT 10 /* word = its lowest address + value */
#define NT_FIX_LINK        11 /* LIST_ENTRY: append to the list whose head is at va value */
#define NT_FIX_CID_PROC    12 /* object body at `at` enters the CID table as pid */
#define NT_FIX_CID_THREAD  13 /* ... as tid of thread arg */
#define NT_FIX_TYPE_INDEX  14 /* u8 = type arg, encoded when ob_cookie is used;
                                 value = offset of the object header */
#define NT_FIX_INC32       15 /* u32 at va value += 1, -= 1 at deletion */
#define NT_FIX_INC64       16
#define NT_FIX_POOL_TAG    17 /* u32 = value, written last; 0 at deletion */
#define NT_FIX_PID32       18 /* u32 = pid + value */
#define NT_FIX_COUNTER64   19 /* u64 = process serial number (unique, ascending) */
#define NT_FIX_TID32       20 /* u32 = tid of thread arg */

/* For user fix-ups `at` is a user va; kinds PID, PPID, TID, PID32, TID32 only. */
struct nt_fixup {
	u64 at;
	u64 value;
	u32 kind;
	u32 arg;
};

struct nt_template_thread {
	u64 ethread;   /* offset in the blob */
	u64 teb, teb32;
	u64 rip, rsp, arg0, arg1;
	u32 flags;     /* NT_THREAD_READY or BLOCKED, | NT_THREAD_WOW64 */
	u32 reserved;
};

/* A program that can be started while the guest runs. */
struct nt_template {
	char name[32];         /* "notepad.exe", as NtCreateUserProcess is given it */
	u64 blob;              /* va of the template's kernel structures */
	u64 blob_size;         /* bytes, at most slots.size */
	u64 blob_base;         /* va that its pointers assume; page aligned */
	u64 eprocess;          /* offset in the blob */
	u64 peb, peb32;
	struct nt_table fixups;  /* nt_fixup */
	struct nt_table ufixups; /* nt_fixup */
	struct nt_table threads; /* nt_template_thread */
	struct nt_table regions; /* nt_region */
	struct nt_table touch;   /* u64 user va to make present; bit 0: by a write */
	u64 truth;
	u32 truth_len;
	u32 session;
	u32 flags;             /* NT_PROC_WOW64, CRITICAL */
	u32 protection;        /* as in nt_proc, and so are the next two */
	u64 progress;
	u32 account;
	u32 reserved;
};

/* Address space set aside for kernel parts of started processes and stacks. */
struct nt_arena {
	u64 va;      /* page aligned; page tables exist, PTEs are 0 or map frames */
	u64 stride;  /* bytes from slot to slot */
	u64 size;    /* bytes of a slot that are mapped when it is used */
	u64 count;   /* slots */
};

struct nt_range {
	u64 start, end; /* pfn, end exclusive */
};

#define NT_BOOT_KVA_SHADOW 1
#define NT_BOOT_OB_COOKIE  2 /* object types are encoded with ob_cookie */
#define NT_BOOT_LA57       8 /* 5-level paging */
#define NT_BOOT_CID_PACKED 4 /* CID entries are (object << 16) | 1, else object */
#define NT_BOOT_CID_57     16 /* with CID_PACKED: (object << 7) | 1 */

struct nt_boot {
	u64 magic;
	u32 version, size;
	u64 flags;
	u64 kernel_base;
	u64 system_dtb;        /* pa */
	u64 shadow_pml4;       /* pa of a user root whose kernel half new processes copy */
	u32 self_index;        /* root table's index of the self map */
	u32 ncpu;
	u64 invalid_pte_mask;  /* xor for the frame number of non-present PTEs, or 0 */
	u64 swizzle_bit;       /* mask: set in a PTE that is not inverted, or 0 */
	u64 user_end;          /* va that user addresses lie below */
	u64 syscall64, syscall32, syscall64_shadow; /* va for LSTAR, CSTAR; in a 32-bit guest
	                          for SYSENTER_EIP, 0, and user va that SYSEXIT goes to */
	u64 timer_vector;      /* vectors whose IDT entries go to the runtime */
	u64 ipi_vector;
	u64 hyper;             /* va of 64 pages for the runtime's own mappings, 256 KiB
	                          aligned; their page table exists */
	u64 heap, heap_size;   /* va, zeroed, mapped; at least 2 MiB */
	u64 kuser;             /* va of KUSER_SHARED_DATA, writable */
	u64 ob_cookie;
	u64 first_pid;         /* lowest id for new processes and threads */
	struct nt_table cid_pages; /* u64 va of each lowest-level page of PspCidTable */
	struct nt_table free;      /* nt_range */
	struct nt_table procs, threads, regions, segments, templates;
	struct nt_arena slots;     /* kernel blobs of started processes */
	struct nt_arena stacks;    /* kernel stacks of their threads */
	u64 truth;                 /* va of the document's unchanging members (JSON) */
	u64 truth_len;
	struct nt_off off;
	struct nt_cpu cpu[NT_MAX_CPU];
};

/* Header at offset 0 of rt.bin. Offsets are from its start. */
#define NT_RT_MAGIC 0x0031545247545645ULL
struct nt_rt_header {
	u64 magic;
	u32 text_size;      /* executable, page multiple, from 0 */
	u32 data_offset;    /* writable, page multiple */
	u32 image_size;     /* file size of rt.bin */
	u32 memory_size;    /* with zeroed tail, page multiple */
	u32 entry;          /* processor entry: rdi nt_boot va, rsi cpu number */
	u32 syscall64, syscall32, int2e;
	u32 vectors;        /* entry code of vector n: vectors + 16 * n */
	u32 kvas_start, kvas_end; /* part of the text that user tables map too */
	u32 shadow_syscall64, shadow_syscall32;
	u32 shadow_vectors; /* shadow_vectors + 16 * n */
	u32 patches;        /* u32 pairs: offset of a disp32, index into the KPCR
	                       offsets {0 kernel_dtb, 1 rsp_shadow, 2 user_rsp_shadow} */
	u32 patch_count;
};

/* Header at offset 0 of boot.bin, which is loaded at physical 1 MiB. */
#define NT_STUB_MAGIC 0x00425453564d4156ULL
struct nt_stub_header {
	u64 magic;
	u64 entry32;        /* pa of the PVH entry point */
	u64 size;           /* bytes, page multiple */
	u64 system_dtb;     /* the builder writes these five */
	u64 rt_entry;       /* va of rt.bin's entry */
	u64 nt_boot;        /* va */
	u64 wide;           /* 1: 5-level paging; in a 32-bit guest PAE */
	u64 stack[NT_MAX_CPU];
};

#endif
