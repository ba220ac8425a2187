package introspect

import "encoding/binary"

// releases has the names that people know, by build number: of the client and of the server.
// An empty name means that there is no such edition. Windows' own names for service packs,
// versions and updates (Microsoft, "Windows release health" and "Product lifecycle").
var releases = map[uint32][2]string{
	2600:  {"Windows XP", ""},
	3790:  {"Windows XP x64", "Windows Server 2003"},
	6000:  {"Windows Vista", ""},
	6001:  {"Windows Vista SP1", "Windows Server 2008"},
	6002:  {"Windows Vista SP2", "Windows Server 2008 SP2"},
	7600:  {"Windows 7", "Windows Server 2008 R2"},
	7601:  {"Windows 7 SP1", "Windows Server 2008 R2 SP1"},
	9200:  {"Windows 8", "Windows Server 2012"},
	9600:  {"Windows 8.1", "Windows Server 2012 R2"},
	10240: {"Windows 10 1507", ""},
	10586: {"Windows 10 1511", ""},
	14393: {"Windows 10 1607", "Windows Server 2016"},
	15063: {"Windows 10 1703", ""},
	16299: {"Windows 10 1709", "Windows Server 1709"},
	17134: {"Windows 10 1803", "Windows Server 1803"},
	17763: {"Windows 10 1809", "Windows Server 2019"},
	18362: {"Windows 10 1903", "Windows Server 1903"},
	18363: {"Windows 10 1909", "Windows Server 1909"},
	19041: {"Windows 10 2004", "Windows Server 2004"},
	19042: {"Windows 10 20H2", "Windows Server 20H2"},
	19043: {"Windows 10 21H1", ""},
	19044: {"Windows 10 21H2", ""},
	19045: {"Windows 10 22H2", ""},
	20348: {"", "Windows Server 2022"},
	22000: {"Windows 11 21H2", ""},
	22621: {"Windows 11 22H2", ""},
	22631: {"Windows 11 23H2", ""},
	25398: {"", "Windows Server 23H2"},
	26100: {"Windows 11 24H2", "Windows Server 2025"},
	26200: {"Windows 11 25H2", ""},
	28000: {"Windows 11 26H1", ""},
}

// NtProductType of KUSER_SHARED_DATA (WDK, ntddk.h): a workstation, a domain controller or a
// server.
const (
	productWorkstation = 1
	productController  = 2
	productServer      = 3
)

// releaseName returns the name of a build in an edition, or "" if it is not known.
func releaseName(build, product uint32) string {
	names, ok := releases[build]
	switch {
	case !ok:
	case product == productWorkstation:
		return names[0]
	case product == productController || product == productServer:
		return names[1]
	}
	return ""
}

// release returns the name that people know the guest's Windows by, or "". An update that
// only enables features leaves the kernel's own build number as it was, and
// KUSER_SHARED_DATA has the new one. NtProductType is at 0x264 of it on every build.
func (g *Guest) release() string {
	var b [4]byte
	if g.as.Read(b[:], g.as.f.kuser+0x264) != nil {
		return ""
	}
	product := binary.LittleEndian.Uint32(b[:])
	if name := releaseName(g.buildShared(), product); name != "" {
		return name
	}
	return releaseName(g.kernel.Build, product)
}
