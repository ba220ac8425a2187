package ntguest

import "fmt"

const (
	sys32 = `\Windows\System32`
	wow32 = `\Windows\SysWOW64`
)

// dlls that the guest has, in the order they get their addresses. Those it makes
// itself come first; the others are real files of Debian's libwine.
var (
	ownDLLs  = []string{"ntdll.dll", "kernel32.dll"}
	realDLLs = []string{"advapi32.dll", "sechost.dll", "ucrtbase.dll", "user32.dll", "gdi32.dll", "win32u.dll", "version.dll", "bcrypt.dll", "ws2_32.dll",
		"rpcrt4.dll"}
	realDLLs32 = []string{"libwinpthread-1.dll", "libgcc_s_dw2-1.dll", "libquadmath-0.dll", "libgomp-1.dll", "libatomic-1.dll"} // of mingw-w64
	wow64DLLs  = []string{"ntdll.dll", "kernel32.dll"}
	thunkDLLs  = []string{"wow64.dll", "wow64cpu.dll"}
)

// sentries are the service groups whose processes work and watch their context, with
// how many threads. The others wait for ever.
var sentries = map[string]int{"netsvcs -p -s Schedule": 3, "LocalSystemNetworkRestricted -p": 1, "netsvcs -p -s Winmgmt": 2,
	"LocalService -p -s EventSystem": 1, "NetworkService -p -s CryptSvc": 1}

// scenario is every process of the guest, in the order of their start.
func (b *builder) scenario() []processSpec {
	svc := func(group string, session int) processSpec {
		s := processSpec{name: "svchost.exe", file: "svchost.exe", dir: sys32, cmd: `C:\Windows\system32\svchost.exe -k ` + group,
			parent: "services.exe", session: session, threads: 3, runs: sentries[group] != 0}
		if n := sentries[group]; n != 0 {
			s.threads = n
		}
		return s
	}
	own := func(name, file, parent string, session int) processSpec {
		return processSpec{name: name, file: file, dir: sys32, parent: parent, session: session, threads: 2}
	}
	critical := func(s processSpec) processSpec { s.critical = true; return s }
	app := func(name, file string, threads int, runs bool) processSpec {
		return processSpec{name: name, file: file, dir: `\Program Files\Test`, parent: "explorer.exe", session: 1, threads: threads, runs: runs}
	}
	out := []processSpec{{name: "System", pid: 4, session: -1, threads: 12}}
	if b.build.Major >= 10 {
		out = append(out, processSpec{name: "Registry", parent: "System", session: -1, threads: 2})
	}
	out = append(out,
		critical(own("smss.exe", "service.exe", "System", -1)),
		critical(own("csrss.exe", "service.exe", "smss.exe", 0)),
		critical(own("wininit.exe", "service.exe", "smss.exe", 0)),
		critical(own("csrss.exe", "service.exe", "smss.exe", 1)),
		own("winlogon.exe", "service.exe", "smss.exe", 1),
		critical(own("services.exe", "services.exe", "wininit.exe", 0)),
		critical(own("lsass.exe", "service.exe", "wininit.exe", 0)),
	)
	for _, group := range []string{"DcomLaunch -p", "RPCSS -p", "DcomLaunch -p -s LSM", "netsvcs -p -s Schedule", "LocalServiceNetworkRestricted -p",
		"LocalService -p -s nsi", "netsvcs -p -s ProfSvc", "LocalSystemNetworkRestricted -p", "NetworkService -p -s Dnscache", "netsvcs -p -s Winmgmt",
		"LocalServiceNoNetwork -p", "netsvcs -p -s Themes", "LocalService -p -s EventSystem", "appmodel -p", "netsvcs -p -s UserManager",
		"NetworkService -p -s CryptSvc", "LocalServiceAndNoImpersonation -p", "utcsvc -p", "netsvcs -p -s wuauserv", "NetworkServiceNetworkRestricted -p"} {
		out = append(out, svc(group, 0))
	}
	out = append(out,
		processSpec{name: "spoolsv.exe", file: "spoolsv.exe", dir: sys32, parent: "services.exe", session: 0, threads: 2, runs: true},
		processSpec{name: "userinit.exe", file: "service.exe", dir: sys32, parent: "winlogon.exe", session: 1, exited: true},
		processSpec{name: "explorer.exe", file: "explorer.exe", dir: `\Windows`, parent: "userinit.exe", session: 1, threads: 6},
		processSpec{name: "conhost.exe", file: "conhost.exe", dir: sys32, parent: "csrss.exe", session: 1, threads: 2},
		processSpec{name: "notepad.exe", file: "notepad.exe", dir: sys32, parent: "explorer.exe", session: 1, threads: 1,
			cmd: `"C:\Windows\system32\notepad.exe" C:\Users\user\Desktop\Grüße.txt`},
		processSpec{name: "winver.exe", file: "winver.exe", dir: sys32, parent: "explorer.exe", session: 1, threads: 1},
		app("spin.exe", "spin.exe", 1, true),
		app("sleeper.exe", "sleeper.exe", 1, true),
		app("faulter.exe", "faulter.exe", 1, true),
		app("threads.exe", "threads.exe", 5, true),
		app("spawner.exe", "spawner.exe", 1, true),
		processSpec{name: "service.exe", file: "service.exe", dir: `\Program Files\Test`, parent: "services.exe", session: 0, threads: 1, runs: true},
		processSpec{name: "malware.exe", file: "malware.exe", dir: `\Users\user\AppData\Local\Temp`, parent: "explorer.exe", session: 1, threads: 1,
			runs: true},
		processSpec{name: "packed.exe", file: "packed.exe", dir: `\Users\user\Downloads`, parent: "explorer.exe", session: 1, threads: 1, runs: true},
		processSpec{name: "wowspin.exe", file: "spin.exe", dir: `\Program Files (x86)\Test`, parent: "explorer.exe", session: 1, threads: 1, runs: true,
			wow64: true},
		processSpec{name: "clam.exe", file: "clam.exe", dir: `\Users\user\Downloads`, parent: "explorer.exe", session: 1, threads: 1, wow64: true},
	)
	if b.x86() {
		return scenario32(out)
	}
	return out
}

// programs32 are the programs of a 32-bit guest that run a file of another name: those that
// a 64-bit one takes from packages that have none of 32 bits, or that are 64-bit code.
var programs32 = map[string]string{"services.exe": "service.exe", "svchost.exe": "service.exe", "spoolsv.exe": "service.exe",
	"explorer.exe": "sleeper.exe", "conhost.exe": "service.exe", "notepad.exe": "sleeper.exe", "winver.exe": "worker.exe",
	"notify.exe": "worker.exe", "update.exe": "worker.exe", "MsMpEng.exe": "service.exe"}

// dlls32 are what some processes have beside what they import.
var dlls32 = map[string][]string{"explorer.exe": {"libgomp-1.dll", "libgcc_s_dw2-1.dll", "libwinpthread-1.dll"},
	"svchost.exe": {"libatomic-1.dll"}, "notepad.exe": {"libquadmath-0.dll", "libgcc_s_dw2-1.dll"}}

// scenario32 is the scenario of a guest where all programs are 32-bit.
func scenario32(all []processSpec) []processSpec {
	var out []processSpec
	for _, s := range all {
		if s.wow64 && s.file != "clam.exe" || s.name == "packed.exe" || s.name == "syscheck.exe" {
			continue
		}
		s.wow64 = false
		if file := programs32[s.file]; file != "" {
			s.file = file
		}
		s.dlls = dlls32[s.name]
		out = append(out, s)
	}
	return out
}

// buildFiles gives every DLL of the guest its place.
func (b *builder) buildFiles(assets string) {
	fs := &files{b: b, assets: assets, parsed: map[string]*peFile{}, images: map[string]*image{}, byName: map[string]*image{}, unbound: map[string]int{}}
	b.files = fs
	fs.volume = b.newObject("Device", "HarddiskVolume2", 0x150, 0)
	b.live.nextDLL = 0x7ffff0000000 - b.rng.Uint64N(0x1000)<<16
	if b.build.Major < 10 {
		b.live.nextDLL = 0x7fefff00000 - b.rng.Uint64N(0x100)<<16
	}
	b.live.next32 = 0x77f00000 - b.rng.Uint64N(0x100)<<16
	if b.x86() {
		b.live.nextDLL = b.live.next32
		if b.opts.ThreeGB {
			b.live.next32 = 0xbff00000 - b.rng.Uint64N(0x100)<<16
		}
		for _, name := range append(append([]string(nil), ownDLLs...), realDLLs32...) {
			fs.open(name, sys32+`\`+name, false)
		}
		return
	}
	for _, name := range append(append(append([]string(nil), ownDLLs...), realDLLs...), thunkDLLs...) {
		fs.open(name, sys32+`\`+name, false)
	}
	for _, name := range wow64DLLs {
		fs.open(name, wow32+`\`+name, true)
	}
}

// hide takes a process off the list of active processes, as a rootkit does; the
// client id table still has it.
func (b *builder) hide(name string) error {
	for _, p := range b.procs {
		if p.spec.name == name {
			b.listRemove(b.kernel, b.at("_EPROCESS", p.eprocess).addr("ActiveProcessLinks"))
			b.truth.Hidden = append(b.truth.Hidden, p.pid)
			return nil
		}
	}
	return fmt.Errorf("no process %q to hide", name)
}
