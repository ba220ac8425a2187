module vmav.dev/vmav

go 1.23.0

require (
	github.com/klauspost/compress v1.18.0
	github.com/mitchellh/go-homedir v1.1.0
	github.com/ulikunitz/xz v0.5.12
)
