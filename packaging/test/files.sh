# Sourced: files prints every file of the system, with type, mode, owner, and what /etc's
# hold. Left out are logs, what apt, dpkg and man-db note of any package, the keys that DKMS
# makes for itself when it builds for the first time, and what runs. In the lab, where a
# file takes milliseconds to look at, parts are left out that nobody but dpkg writes to.
files() {
	local others=()
	[ "$where" != lab ] || others=(-path /kernel -o -path '/usr/src/linux-headers-*' -o -path '/usr/share/man/??' -o
		-path /usr/share/locale -o -path /usr/share/lintian -o -path '/usr/share/perl*' -o)
	find / -xdev \( "${others[@]}" \
		-path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /test -o \
		-path /var/log -o -path /var/tmp -o -path /var/cache/apt -o -path /var/cache/man -o -path /var/cache/debconf -o \
		-path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/libvirt -o -path /var/lib/clamav -o \
		-path /var/lib/systemd -o -path '/var/lib/dkms/mok.*' -o -path /var/cache/libvirt -o -path /root \
		\) -prune -o -printf '%y %m %u:%g %p %l\n' | sort -k 4
	# Those of our own that could be in what is left out.
	find /var/lib/systemd /var/lib/dpkg/info /root /tmp /var/tmp /run /var/lib/libvirt -name '*vmav*' ! -path '*/systemd-private-*' | sort
	# Backups of the account files follow any change by one step.
	find /etc -type f ! -name 'passwd*' ! -name 'group*' ! -name 'shadow*' ! -name 'gshadow*' ! -name 'sub[ug]id*' ! -name ld.so.cache ! -name machine-id -exec sha256sum {} + | sort -k 2
}
