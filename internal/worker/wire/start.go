package wire

// How a worker is started: the program that starts it runs itself again.
const (
	// Marker is the command by which a program knows that it is a worker. Its arguments are
	// the number of lanes, the bytes of memory and the threads that it may have, and whether
	// guest memory is shared.
	Marker = "sandboxed-worker"
	// FirstLane is the descriptor of the first lane. Behind the last there is the window's,
	// and guest memory's where the source shares it.
	FirstLane = 3
)

// Exit statuses of a worker beside 0. Go's runtime has 2 for itself.
const (
	ExitFailed    = 1
	ExitNoSandbox = 3
)
