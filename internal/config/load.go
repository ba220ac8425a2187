package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"strings"
	"time"

	"vmav.dev/vmav/internal/tomlfile"
)

// Load reads the file at path. With path "" it reads the one of DefaultFile, which need
// not exist. The error names everything that is wrong with the file.
func Load(path string) (Config, error) {
	c, err := Default()
	if err != nil {
		return Config{}, err
	}
	asked := path != ""
	if !asked {
		if path, err = DefaultFile(); err != nil {
			return Config{}, err
		}
	}
	data, err := tomlfile.Read(path, tomlfile.MaxSize)
	if !asked && errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("configuration: %w", err)
	}
	c.File = path
	if err := parse(path, data, &c); err != nil {
		return Config{}, err
	}
	return c, nil
}

const (
	mebibyte = 1 << 20
	tebibyte = 1 << 40
	century  = 36500 * day
)

// parse sets in c what the text of a file sets.
func parse(name string, data []byte, c *Config) error {
	f, t, err := tomlfile.Parse(name, data)
	if err != nil {
		return err
	}
	t.String("uri", &c.URI, nil)
	t.String("source", &c.Source, tomlfile.OneOf("auto", "memhook", "qemu"))
	t.String("state_directory", &c.StateDirectory, tomlfile.AbsolutePath)
	t.String("runtime_directory", &c.RuntimeDirectory, tomlfile.AbsolutePath)
	t.String("policy", &c.Policy, tomlfile.AbsolutePath)
	c.PolicySet = t.Has("policy")
	t.Bool("dry_run", &c.DryRun)

	clamd := t.Table("clamd")
	clamd.String("socket", &c.Clamd.Socket, orEmpty(tomlfile.AbsolutePath))
	clamd.Strings("databases", &c.Clamd.Databases, tomlfile.AbsolutePath)
	clamd.Int("slots", &c.Clamd.Slots, 1, 64)

	watch := t.Table("watch")
	watch.Int("cpu_percent", &c.Watch.CPUPercent, 1, 6400)
	watch.Size("memory", &c.Watch.Memory, 64*mebibyte, tebibyte)
	watch.Duration("interval", &c.Watch.Interval, time.Minute, 365*day)
	watch.Duration("jitter", &c.Watch.Jitter, 0, 365*day)
	watch.Duration("poll", &c.Watch.Poll, time.Millisecond, time.Minute)
	if c.Watch.Jitter > c.Watch.Interval {
		key := "jitter"
		if !watch.Has(key) {
			key = "interval"
		}
		watch.Fail(key, "a jitter of %s is longer than the interval of %s", tomlfile.FormatDuration(c.Watch.Jitter), tomlfile.FormatDuration(c.Watch.Interval))
	}
	domains := watch.Table("domains")
	domains.Strings("include", &c.Watch.Domains.Include, notEmpty)
	domains.Strings("exclude", &c.Watch.Domains.Exclude, notEmpty)

	history := t.Table("history")
	history.Duration("keep", &c.History.Keep, time.Hour, century)
	history.Size("max_size", &c.History.MaxSize, mebibyte, 16*tebibyte)
	evidence := t.Table("evidence")
	evidence.Duration("keep", &c.Evidence.Keep, time.Hour, century)
	evidence.Size("max_size", &c.Evidence.MaxSize, mebibyte, 16*tebibyte)
	t.Table("cache").Size("max_size", &c.Cache.MaxSize, mebibyte, 16*tebibyte)

	parseReport(t.Table("report"), &c.Report)
	return f.Done()
}

func parseReport(t *tomlfile.Table, r *Report) {
	t.Bool("journal", &r.Journal)
	t.Bool("syslog", &r.Syslog)
	t.Strings("notify", &r.Notify, nil)
	if len(r.Notify) > 0 {
		if err := tomlfile.AbsolutePath(r.Notify[0]); err != nil {
			t.Fail("notify", "the command %w", err)
		}
	}
	t.String("metrics", &r.Metrics, orEmpty(tomlfile.AbsolutePath))
	hook := t.Table("webhook")
	hook.String("url", &r.Webhook.URL, orEmpty(webhookURL))
	hook.String("secret_file", &r.Webhook.SecretFile, orEmpty(tomlfile.AbsolutePath))
	if r.Webhook.SecretFile != "" && r.Webhook.URL == "" {
		hook.Fail("secret_file", "there is no url to send anything to")
	}
}

// orEmpty returns a check that also accepts "".
func orEmpty(check func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return check(s)
	}
}

func notEmpty(s string) error {
	if s == "" {
		return errors.New("an empty pattern matches nothing")
	}
	return nil
}

// webhookURL checks that others cannot read the connection to the server.
func webhookURL(s string) error {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return errors.New(strings.TrimPrefix(err.Error(), "parse "))
	case u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("%q is no address of a web server: https://HOST/PATH", s)
	case u.User != nil:
		return errors.New("it carries a password: sign with secret_file")
	case u.Scheme == "http" && !local(u.Hostname()):
		return fmt.Errorf("%q: http is for this host alone: others could read what was found where", s)
	}
	return nil
}

func local(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
