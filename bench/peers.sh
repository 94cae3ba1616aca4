#!/bin/sh
# The servers that bench/run compares: packages, users, configuration, start and stop.
#
#	peers.sh install DIRECTORY	packages of the peers; needs the network the first time
#	peers.sh prepare DIRECTORY	in a mount namespace of its own: users, PAM, certificate, maildrops
#	peers.sh start DIRECTORY NAME PORT TLS-PORT BUILD-DIRECTORY
#	peers.sh stop DIRECTORY NAME
#	peers.sh remove DIRECTORY	what install made outside of DIRECTORY, packages excepted
#
# NAME: popper-pam, popper-file, popa3d, dovecot-stock, dovecot-tuned. All processes of a server are
# in a control group of its own, by which they are found and ended.
set -eu

bench=$(cd "$(dirname "$0")" && pwd)
users=1000 # as many idle sessions at most
password=benchpw
first_uid=20000
virtual_uid=21500

fail() {
	echo "peers.sh: $*" >&2
	exit 1
}

# ---- packages ----

install_dovecot() {
	guard=/usr/sbin/policy-rc.d # keeps the package from starting its service
	[ ! -e "$guard" ] || guard=
	if [ -n "$guard" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$guard"
		chmod 755 "$guard"
	fi
	installed=true
	DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
		dovecot-pop3d >"$directory/apt.log" 2>&1 || installed=false
	[ -z "$guard" ] || rm -f "$guard"
	"$installed" || fail "cannot install dovecot-pop3d, see $directory/apt.log"
}

install() {
	mkdir -p "$directory"
	directory=$(cd "$directory" && pwd)
	[ -x /usr/lib/dovecot/pop3 ] || install_dovecot
	case $(dovecot --version) in
	2.3.*) ;;
	*) fail "the configuration below is for Dovecot 2.3, not $(dovecot --version)" ;;
	esac
	(cd "$directory" && apt-get download popa3d >>apt.log 2>&1) ||
		fail "cannot download popa3d, see $directory/apt.log"
	dpkg -x "$directory"/popa3d_*.deb "$directory/popa3d-package"
	# popa3d has this path built in, and confines itself there
	if mkdir /var/lib/popa3d 2>/dev/null; then
		: >"$directory/made-var-lib-popa3d"
	fi
}

remove() {
	[ ! -e "$directory/made-var-lib-popa3d" ] || rmdir /var/lib/popa3d
}

# ---- users, PAM, certificate ----

# Print user lines; $1 is the printf format for number and uid.
for_users() {
	number=0
	while [ "$number" -lt "$users" ]; do
		# shellcheck disable=SC2059 # the formats are ours
		printf "$1" "bench$number" "$((first_uid + number))"
		number=$((number + 1))
	done
	# shellcheck disable=SC2059
	printf "$1" benchbig0 "$((first_uid + users))"
}

# A copy of a system file, without users of our names, which covers it in this namespace.
cover() {
	grep -v '^bench[a-z0-9]*:' "$1" >"$directory/etc/${1##*/}" || true
	chmod --reference="$1" "$directory/etc/${1##*/}"
	chown --reference="$1" "$directory/etc/${1##*/}"
	mount --bind "$directory/etc/${1##*/}" "$1"
}

ensure_user() {
	grep -q "^$1:" /etc/passwd || printf '%s:x:%s:%s::/nonexistent:/usr/sbin/nologin\n' \
		"$1" "$2" "$2" >>/etc/passwd
	grep -q "^$1:" /etc/group || printf '%s:x:%s:\n' "$1" "$2" >>/etc/group
}

prepare_users() {
	mkdir -p "$directory/etc"
	cover /etc/passwd
	cover /etc/shadow
	cover /etc/group
	ensure_user _qpopper 21501
	ensure_user _qpopsign 21502
	ensure_user _qpopauth 21503
	ensure_user popa3d 21504
	ensure_user benchvmail "$virtual_uid"
	for_users "%s:x:%s:100::$directory/home/%1\$s:/bin/sh\n" 2>/dev/null >/dev/null || true
	for_users "%s:x:%s:100:::/bin/sh\n" >"$directory/etc/users"
	awk -F: -v OFS=: -v homes="$directory/home/" '{ $6 = homes $1; print }' \
		"$directory/etc/users" >>/etc/passwd
	for_users "%s:$hash:19000:0:99999:7:::\n" | cut -d: -f1-9 >"$directory/etc/hashes"
	cat "$directory/etc/hashes" >>/etc/shadow
}
