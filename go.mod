module vmav.dev/vmav

go 1.25.0

toolchain go1.26.8

require (
	github.com/coreos/go-systemd/v22 v22.5.0
	github.com/google/renameio/v2 v2.0.2
	github.com/klauspost/compress v1.18.0
	github.com/landlock-lsm/go-landlock v0.0.0-20250303204525-1544bccde3a3
	github.com/mattn/go-runewidth v0.0.16
	github.com/mattn/go-sqlite3 v1.14.53
	github.com/minio/highwayhash v1.0.3
	github.com/mitchellh/go-homedir v1.1.0
	github.com/pelletier/go-toml/v2 v2.2.4
	github.com/ulikunitz/xz v0.5.12
	github.com/urfave/cli/v2 v2.27.7
	golang.org/x/net v0.24.0
	golang.org/x/sys v0.30.0
	kernel.org/pub/linux/libs/security/libcap/psx v1.2.70
	libvirt.org/go/libvirt v1.11010.0
	www.velocidex.com/golang/vfilter v0.0.0-20231014062339-d62b5a5877d2
	www.velocidex.com/golang/vtypes v0.0.0-20250802153006-821cec8fd392
)

require (
	github.com/Velocidex/json v0.0.0-20220224052537-92f3c0326e5a // indirect
	github.com/Velocidex/ordereddict v0.0.0-20230909174157-2aa49cc5d11d // indirect
	github.com/Velocidex/yaml/v2 v2.2.8 // indirect
	github.com/alecthomas/participle v0.7.1 // indirect
	github.com/alecthomas/repr v0.3.0 // indirect
	github.com/cpuguy83/go-md2man/v2 v2.0.7 // indirect
	github.com/davecgh/go-spew v1.1.1 // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/rivo/uniseg v0.2.0 // indirect
	github.com/russross/blackfriday/v2 v2.1.0 // indirect
	github.com/xrash/smetrics v0.0.0-20240521201337-686a1a2994c1 // indirect
	golang.org/x/text v0.14.0 // indirect
)
