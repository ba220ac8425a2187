package config

import "time"

// Config is everything that vmav.toml can set. The comments name each key and its
// default.
type Config struct {
	File string // path of the file that was read; "" if there is none

	URI    string // uri: of libvirt; "" for $LIBVIRT_DEFAULT_URI, then libvirt's own choice
	Source string // source: "auto", "memhook" or "qemu"; auto

	// state_directory: history, cache, evidence; /var/lib/vmav, for an ordinary user
	// $XDG_STATE_HOME/vmav.
	StateDirectory string
	// runtime_directory: the service's socket, locks; /run/vmav, for an ordinary user
	// $XDG_RUNTIME_DIR/vmav.
	RuntimeDirectory string

	// policy: the policy's file; policy.toml in the default directory of vmav.toml, if
	// it exists. PolicySet says that vmav.toml names the file, so it must exist.
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

// Clamd is [clamd]: the engine.
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

// Domains is [watch.domains]: patterns for names, with * and ?; upper and lower case are
// equal. A domain is watched if one of include matches and none of exclude does.
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

// Report is [report]: who is told. The journal, syslog and the metrics get every finding
// with its outcome. The command and the webhook get the findings that the policy
// notifies of.
type Report struct {
	Journal bool     // journal: systemd's; true
	Syslog  bool     // syslog: false
	Notify  []string // notify: a command with its arguments, which gets JSON on its standard input; none
	Webhook Webhook
	Metrics string // metrics: the directory of node_exporter's textfile collector; ""
}

// Webhook is [report.webhook]: an HTTP server that is sent JSON.
type Webhook struct {
	// url: "" for none. It must be https://, or http:// on this host, because what is
	// sent says what was found where.
	URL        string
	SecretFile string // secret_file: the key that signs what is sent; "" for none
}
