#!/bin/sh
# Arrows point one way: lib knows no daemon; the POP3 engine knows lib and itself and makes no system
# call; each outside library is seen by the files that exist for it, and by no other.
set -eu
cd "${TOP_SOURCE:-.}"
status=0

# refuse WHAT FILES...: none of the files may have a line that matches $pattern
refuse() {
	what=$1
	shift
	if found=$(grep -nE "$pattern" "$@"); then
		printf '%s:\n%s\n' "$what" "$found"
		status=1
	fi
}

# only NAME ALLOWED: the header pattern NAME is included by files that match ALLOWED only
only() {
	if found=$(grep -lE "^#include <$1" lib/*.[ch] daemon/*.[ch] | grep -vE "$2"); then
		printf 'may not include <%s>:\n%s\n' "$1" "$found"
		status=1
	fi
}

pattern='^#include "(daemon|tools)/'
refuse "lib includes a daemon or tool" lib/*.[ch]
pattern='^#include "daemon/'
refuse_engine() {
	if found=$(grep -nE '^#include "daemon/' daemon/pop3*.[ch] | grep -v '"daemon/pop3'); then
		printf 'the engine includes a role:\n%s\n' "$found"
		status=1
	fi
}
refuse_engine
pattern='^#include <(unistd|time|sys/(socket|epoll|stat|wait)|fcntl|syslog|signal)\.h>'
refuse "the engine includes system calls" daemon/pop3*.[ch]
pattern='\b(sprintf|strcpy|strcat|alloca|strtok|atoi|gets)\('
refuse "an unbounded function" lib/*.[ch] daemon/*.[ch]

only 'openssl/' '^(daemon/tls|daemon/signer_main|daemon/worker_main|lib/uidl|lib/expunge|daemon/pop3_authorization)'
only 'security/' '^daemon/auth_'
only 'systemd/' '^daemon/(main|master|listeners|logger|generation|spawn)'
only 'sys/capability' '^daemon/sandbox'
only 'seccomp' '^daemon/sandbox'
only 'crypt\.h' '^daemon/(auth|verifier)'

# what a process cannot call it cannot be made to call
if [ -n "${POPPER_BUILD-}" ]; then
	for pair in "qpopper-monitor libpam" "qpopper-monitor libssl" "qpopper-monitor libsystemd" \
		"qpopper-worker libpam" "qpopper-worker libcrypt.so" "qpopper-signer libpam" \
		"qpopper-auth libssl" "qpopper-verifier libpam" "popper libssl" "popper libpam"; do
		program=${pair% *}
		library=${pair#* }
		if ldd "$POPPER_BUILD/$program" | grep -qE "^[[:space:]]*$library"; then
			echo "$program is linked to $library"
			status=1
		fi
	done
fi
exit $status
