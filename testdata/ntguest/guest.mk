# guest.mk - builds what the NT test guest is made of into bin/ntguest.d:
#
#   boot.bin rt.bin          the boot stub and the runtime kernel (rt/)
#   boot32.bin rt32.bin rt32pae.bin    the same for 32-bit guests (rt/ and rt32/)
#   *.dll *.exe              64-bit user programs (user/), true PE files
#   syswow64/*.dll *.exe     32-bit ones
#   x86/ntdll.dll            that of 32-bit guests, whose system calls are not WOW64's
#
# Needs gcc, binutils, gcc-mingw-w64-x86-64-win32, gcc-mingw-w64-i686-win32.

GUEST_SRC := testdata/ntguest
GUEST_OUT := bin/ntguest.d
GUEST_OBJ := build/ntguest

GUEST_CC64 := x86_64-w64-mingw32-gcc
GUEST_CC32 := i686-w64-mingw32-gcc
GUEST_TOOL64 := x86_64-w64-mingw32-dlltool
GUEST_TOOL32 := i686-w64-mingw32-dlltool

GUEST_RT_CFLAGS := -O2 -std=gnu11 -ffreestanding -fno-builtin -fpie -fvisibility=hidden \
	-mno-red-zone -mgeneral-regs-only -fno-stack-protector -fcf-protection=none \
	-fno-asynchronous-unwind-tables -Wall -Wextra -Werror
# nt_boot.h has the same layout in both widths.
GUEST_RT_CFLAGS32 := -m32 -march=i686 -malign-double
GUEST_USER_CFLAGS := -O1 -std=gnu11 -ffreestanding -fno-builtin -fno-stack-protector -mno-stack-arg-probe \
	-fno-asynchronous-unwind-tables -Wall -Wextra -Werror
GUEST_USER_LDFLAGS := -nostdlib -s -Wl,--dynamicbase -Wl,--nxcompat -Wl,--no-insert-timestamp

GUEST_RT_C := $(wildcard $(GUEST_SRC)/rt/*.c)
GUEST_RT_SRC := $(GUEST_RT_C) $(GUEST_SRC)/rt/entry.S
GUEST_RT_SRC32 := $(filter-out $(GUEST_SRC)/rt/arch.c,$(GUEST_RT_C)) $(wildcard $(GUEST_SRC)/rt32/*.c) $(GUEST_SRC)/rt32/entry.S
GUEST_RT_OBJ := $(GUEST_RT_SRC:$(GUEST_SRC)/%=$(GUEST_OBJ)/%.o)
GUEST_RT_OBJ32 := $(GUEST_RT_SRC32:$(GUEST_SRC)/%=$(GUEST_OBJ)/x86/%.o)
GUEST_RT_OBJ32PAE := $(GUEST_RT_SRC32:$(GUEST_SRC)/%=$(GUEST_OBJ)/pae/%.o)
GUEST_HEADERS := $(wildcard $(GUEST_SRC)/rt/*.h $(GUEST_SRC)/user/*.h)

# Programs by behaviour. A service waits for ever, a sleeper wakes up now and
# then, a worker ends by itself, a sentry works and watches its context.
GUEST_SERVICES := service smss csrss wininit winlogon services lsass lsm taskhost \
	taskhostw sihost dwm fontdrvhost SearchIndexer RuntimeBroker WmiPrvSE dllhost MsMpEng
GUEST_SLEEPERS := sleeper explorer notepad ctfmon cmd calc
GUEST_WORKERS := worker notify update
GUEST_SENTRIES := svchost spoolsv
GUEST_OTHERS := syscheck spin burn faulter thrash threads spawner malware packed
GUEST_PROGRAMS := $(GUEST_SERVICES) $(GUEST_SLEEPERS) $(GUEST_WORKERS) $(GUEST_SENTRIES) $(GUEST_OTHERS)
GUEST_PROGRAMS32 := spin burn sleeper service worker faulter thrash threads spawner malware
GUEST_DLLS := ntdll kernel32 wow64 wow64cpu
GUEST_DLLS32 := ntdll kernel32

GUEST_FILES := $(GUEST_OUT)/boot.bin $(GUEST_OUT)/rt.bin \
	$(GUEST_OUT)/boot32.bin $(GUEST_OUT)/rt32.bin $(GUEST_OUT)/rt32pae.bin $(GUEST_OUT)/x86/ntdll.dll \
	$(GUEST_DLLS:%=$(GUEST_OUT)/%.dll) $(GUEST_PROGRAMS:%=$(GUEST_OUT)/%.exe) \
	$(GUEST_DLLS32:%=$(GUEST_OUT)/syswow64/%.dll) $(GUEST_PROGRAMS32:%=$(GUEST_OUT)/syswow64/%.exe)

.PHONY: guest-assets
guest-assets: $(GUEST_FILES)

$(GUEST_OBJ)/rt/%.o: $(GUEST_SRC)/rt/% $(GUEST_HEADERS)
	@mkdir -p $(@D)
	@gcc -m64 $(GUEST_RT_CFLAGS) -c $< -o $@

$(GUEST_OBJ)/x86/%.o: $(GUEST_SRC)/% $(GUEST_HEADERS)
	@mkdir -p $(@D)
	@gcc $(GUEST_RT_CFLAGS32) $(GUEST_RT_CFLAGS) -c $< -o $@

$(GUEST_OBJ)/pae/%.o: $(GUEST_SRC)/% $(GUEST_HEADERS)
	@mkdir -p $(@D)
	@gcc $(GUEST_RT_CFLAGS32) -DPAE $(GUEST_RT_CFLAGS) -c $< -o $@

$(GUEST_OUT)/boot.bin: $(GUEST_SRC)/rt/stub.S
	@mkdir -p $(@D) $(GUEST_OBJ)/rt
	@gcc -m64 -c $< -o $(GUEST_OBJ)/rt/stub.o
	@ld -Ttext=0x100000 -e start -o $(GUEST_OBJ)/rt/stub.elf $(GUEST_OBJ)/rt/stub.o
	@objcopy -O binary $(GUEST_OBJ)/rt/stub.elf $@

$(GUEST_OUT)/boot32.bin: $(GUEST_SRC)/rt32/stub.S
	@mkdir -p $(@D) $(GUEST_OBJ)/rt32
	@gcc -m32 -c $< -o $(GUEST_OBJ)/rt32/stub.o
	@ld -m elf_i386 -Ttext=0x100000 -e start -o $(GUEST_OBJ)/rt32/stub.elf $(GUEST_OBJ)/rt32/stub.o
	@objcopy -O binary $(GUEST_OBJ)/rt32/stub.elf $@

# A runtime is loaded anywhere and nobody relocates it: no relocation may remain.
guest_rt = ld -m $(1) -static -pie --no-dynamic-linker -z norelro -z noexecstack --no-warn-rwx-segments \
	-T $(GUEST_SRC)/rt/rt.lds $(filter %.o,$^) -o $(2)/rt.elf && \
	{ ! readelf -rW $(2)/rt.elf | grep R_ || { echo "$(2)/rt.elf needs relocation"; exit 1; }; } && \
	objcopy -O binary -j .text -j .data $(2)/rt.elf $@

$(GUEST_OUT)/rt.bin: $(GUEST_RT_OBJ) $(GUEST_SRC)/rt/rt.lds
	@mkdir -p $(@D)
	@$(call guest_rt,elf_x86_64,$(GUEST_OBJ)/rt)

$(GUEST_OUT)/rt32.bin: $(GUEST_RT_OBJ32) $(GUEST_SRC)/rt/rt.lds
	@mkdir -p $(@D)
	@$(call guest_rt,elf_i386,$(GUEST_OBJ)/x86)

$(GUEST_OUT)/rt32pae.bin: $(GUEST_RT_OBJ32PAE) $(GUEST_SRC)/rt/rt.lds
	@mkdir -p $(@D)
	@$(call guest_rt,elf_i386,$(GUEST_OBJ)/pae)

$(GUEST_OBJ)/lib64/lib%.a: $(GUEST_SRC)/user/%.def
	@mkdir -p $(@D)
	@$(GUEST_TOOL64) -d $< -l $@

$(GUEST_OBJ)/lib32/lib%.a: $(GUEST_SRC)/user/%32.def
	@mkdir -p $(@D)
	@$(GUEST_TOOL32) -k -d $< -l $@

GUEST_BASE_ntdll := 0x180000000
GUEST_BASE_kernel32 := 0x180400000
GUEST_BASE_wow64 := 0x180800000
GUEST_BASE_wow64cpu := 0x78b00000
GUEST_LIBS_ntdll :=
GUEST_LIBS_kernel32 := $(GUEST_OBJ)/lib64/libntdll.a
GUEST_LIBS_wow64 := $(GUEST_OBJ)/lib64/libntdll.a
GUEST_LIBS_wow64cpu := $(GUEST_OBJ)/lib64/libwow64.a

.SECONDEXPANSION:
$(GUEST_DLLS:%=$(GUEST_OUT)/%.dll): $(GUEST_OUT)/%.dll: $(GUEST_SRC)/user/%.c $(GUEST_SRC)/user/%.def $(GUEST_HEADERS) $$(GUEST_LIBS_$$*)
	@mkdir -p $(@D)
	@$(GUEST_CC64) $(GUEST_USER_CFLAGS) $(GUEST_USER_LDFLAGS) -shared -Wl,-e,DllMain \
	  -Wl,--image-base,$(GUEST_BASE_$*) $< $(GUEST_SRC)/user/$*.def $(GUEST_LIBS_$*) -o $@

$(GUEST_DLLS32:%=$(GUEST_OUT)/syswow64/%.dll): $(GUEST_OUT)/syswow64/%.dll: $(GUEST_SRC)/user/%.c $(GUEST_SRC)/user/%32.def $(GUEST_HEADERS) $(GUEST_OBJ)/lib32/libntdll.a
	@mkdir -p $(@D)
	@$(GUEST_CC32) $(GUEST_USER_CFLAGS) $(GUEST_USER_LDFLAGS) -shared -Wl,-e,_DllMain@12 -Wl,--kill-at \
	  -Wl,--image-base,0x6b$(if $(filter ntdll,$*),0,1)00000 $< $(GUEST_SRC)/user/$*32.def \
	  $(if $(filter ntdll,$*),,$(GUEST_OBJ)/lib32/libntdll.a) -o $@

$(GUEST_OUT)/x86/ntdll.dll: $(GUEST_SRC)/user/ntdll.c $(GUEST_SRC)/user/ntdll32.def $(GUEST_HEADERS)
	@mkdir -p $(@D)
	@$(GUEST_CC32) -DNATIVE $(GUEST_USER_CFLAGS) $(GUEST_USER_LDFLAGS) -shared -Wl,-e,_DllMain@12 -Wl,--kill-at \
	  -Wl,--image-base,0x6b000000 $< $(GUEST_SRC)/user/ntdll32.def -o $@

guest_role = $(if $(filter $(1),$(GUEST_SERVICES)),service)$(if $(filter $(1),$(GUEST_SLEEPERS)),sleeper)$(if $(filter $(1),$(GUEST_WORKERS)),worker)$(if $(filter $(1),$(GUEST_SENTRIES)),sentry)
guest_source = $(GUEST_SRC)/user/$(or $(strip $(call guest_role,$(1))),$(1)).c

$(GUEST_PROGRAMS:%=$(GUEST_OUT)/%.exe): $(GUEST_OUT)/%.exe: $$(call guest_source,$$*) $(GUEST_HEADERS) $(GUEST_OBJ)/lib64/libkernel32.a $(GUEST_OBJ)/lib64/libntdll.a
	@mkdir -p $(@D)
	@$(GUEST_CC64) $(GUEST_USER_CFLAGS) $(GUEST_USER_LDFLAGS) -DPROGRAM='"$*.exe"' -Wl,-e,start \
	  -Wl,--high-entropy-va $< $(GUEST_OBJ)/lib64/libkernel32.a $(GUEST_OBJ)/lib64/libntdll.a -o $@

$(GUEST_PROGRAMS32:%=$(GUEST_OUT)/syswow64/%.exe): $(GUEST_OUT)/syswow64/%.exe: $$(call guest_source,$$*) $(GUEST_HEADERS) $(GUEST_OBJ)/lib32/libkernel32.a $(GUEST_OBJ)/lib32/libntdll.a
	@mkdir -p $(@D)
	@$(GUEST_CC32) $(GUEST_USER_CFLAGS) -msse2 $(GUEST_USER_LDFLAGS) -DPROGRAM='"$*.exe"' -Wl,-e,_start@4 \
	  $< $(GUEST_OBJ)/lib32/libkernel32.a $(GUEST_OBJ)/lib32/libntdll.a -o $@
