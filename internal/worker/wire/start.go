package wire

// How a worker is started: the program runs itself again.
const (
	// Marker is the command that tells a program that it is a worker. Its arguments are the
	// number of lanes, the bytes of memory and the number of threads that it may have, and
	// whether guest memory is shared.
	Marker = "sandboxed-worker"
	// FirstLane is the descriptor of the first lane. After the last lane comes the window's
	// descriptor, and then that of guest memory if the source shares it.
	FirstLane = 3
)

// Exit statuses of a worker besides 0. Go's runtime uses 2.
const (
	ExitFailed    = 1
	ExitNoSandbox = 3
)
