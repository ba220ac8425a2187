package config

import "time"

// Config is all that vmav.toml can set. The values that a key has without being set are
// those of Default, and are named here.
type Config struct {
	File string // that this was read from; "" where there is none

	URI    string // uri: of libvirt; "" for $LIBVIRT_DEFAULT_URI, then libvirt's own choice
	Source string // source: "auto", "memhook" or "qemu"; auto

	// state_directory: history, cache, evidence; /var/lib/vmav, or of an ordinary user
	// $XDG_STATE_HOME/vmav.
	StateDirectory string
	// runtime_directory: the service's socket, locks; /run/vmav, or of an ordinary user
	// $XDG_RUNTIME_DIR/vmav.
	RuntimeDirectory string

	// policy: the policy's file; policy.toml beside vmav.toml's default place, where
	// there is one. PolicySet tells that the file names it: then it must exist.
	Policy    string
	PolicySet bool
	DryRun    bool // dry_run: say what would be done, and touch no guest; false

	Clamd    Clamd
	Watch    Watch
	History  History
	Evidence Evidence
	Cache    Cache
	Report   Report
}

// Clamd is [clamd]: what scans.
type Clamd struct {
	Socket    string   // socket: "" for the host's own place
	Databases []string // databases: with any, a private clamd scans with these alone; none
	Slots     int      // slots: scans at once, over all domains, 1 to 64; 4
}

// Watch is [watch]: the service's budget and its times.
type Watch struct {
	CPUPercent int           // cpu_percent: of one processor, 1 to 6400; 50
	Memory     int64         // memory: in bytes, 64M to 1T; 1G
	Interval   time.Duration // interval: between deep sweeps of a domain, 1m to 365d; 1d
	Jitter     time.Duration // jitter: up to this is added to interval, 0s to interval; 1h
	Poll       time.Duration // poll: between looks at a guest's list of processes, 1ms to 1m; 5ms
	Domains    Domains
}

// Domains is [watch.domains]: patterns of names, with * and ?, case aside. A domain is
// watched that any of include matches and none of exclude.
type Domains struct {
	Include []string // include: ["*"]
	Exclude []string // exclude: []
}

// History is [history]: what is kept in the database.
type History struct {
	Keep    time.Duration // keep: 1h to 36500d; 365d
	MaxSize int64         // max_size: in bytes, 1M to 16T; 1G
}

// Evidence is [evidence]: what is kept of files and memory.
type Evidence struct {
	Keep    time.Duration // keep: 1h to 36500d; 90d
	MaxSize int64         // max_size: in bytes, 1M to 16T; 5G
}

// Cache is [cache]: results that need no second scan.
type Cache struct {
	MaxSize int64 // max_size: in bytes, 1M to 16T; 256M
}

// Report is [report]: who is told. Findings and what came of them go to the journal, syslog and
// the metrics; to the command and the webhook go those that the policy notifies of.
type Report struct {
	Journal bool     // journal: systemd's; true
	Syslog  bool     // syslog: false
	Notify  []string // notify: a command with its arguments, which gets JSON on its standard input; none
	Webhook Webhook
	Metrics string // metrics: the directory of node_exporter's textfile collector; ""
}

// Webhook is [report.webhook]: an HTTP server that is sent JSON.
type Webhook struct {
	// url: "" for none. It is https://, or http:// of this host alone, as what is sent
	// names what was found where.
	URL        string
	SecretFile string // secret_file: the key that signs what is sent; "" for none
}
