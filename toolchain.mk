# The Go toolchain that go.mod pins builds and tests everything. Where the installed Go is
# another one, it downloads the pinned one through the module proxy, once. That needs
# Go 1.21 or newer. Some installations, and some of Debian's packages, set
# GOTOOLCHAIN=local in their environment or go.env, which forbids that: so it is set here.
# `make GOTOOLCHAIN=local …` takes the installed Go, as far as go.mod's go line lets it.
export GOTOOLCHAIN := $(shell sed -n 's/^toolchain //p' go.mod)
