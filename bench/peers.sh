#!/bin/sh
# The servers that bench/run compares: packages, users, configuration, start and stop.
#
#	peers.sh install DIRECTORY	packages of the peers; needs the network
#	peers.sh remove DIRECTORY	what install made elsewhere, except the packages of Dovecot
#	peers.sh prepare DIRECTORY	users, PAM, certificate, maildrops: covers files in /etc and
#					/var/mail by mounts, so in a mount namespace of its own only
#	peers.sh prepare-large DIRECTORY FILE-SYSTEM BYTES
#					the same without maildrops, which then lie on an image of that
#					file system (ext4, xfs, btrfs; root: where DIRECTORY is)
#	peers.sh start DIRECTORY NAME PORT TLS-PORT BUILD-DIRECTORY
#	peers.sh stop DIRECTORY NAME
#
# NAME: popper-pam, popper-file, popa3d, dovecot-stock, dovecot-tuned (clear passwords), dovecot-hashed
# (the same with popper's hashes and the same maildrops). The processes of a server are in a control
# group of its own, by which they are found and ended.
set -eu

bench=$(cd "$(dirname "$0")" && pwd)
password=benchpw
users=1000 # as many as there are idle sessions at most; and one with a large maildrop
first_uid=20000
big_uid=21000
virtual_uid=21001
group=$(getent group mail | cut -d: -f3)

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
	"$installed" || fail "cannot install dovecot-pop3d: $(tail -n 3 "$directory/apt.log")"
}

install_peers() {
	[ -x /usr/lib/dovecot/pop3 ] || install_dovecot
	case $(dovecot --version) in
	2.3.*) ;;
	*) fail "the configuration in here is for Dovecot 2.3, not $(dovecot --version)" ;;
	esac
	(cd "$directory" && apt-get -q download popa3d >>apt.log 2>&1) ||
		fail "cannot download popa3d: $(tail -n 3 "$directory/apt.log")"
	dpkg -x "$directory"/popa3d_*.deb "$directory/popa3d-package"
	# popa3d has this path built in, and confines itself there
	if mkdir /var/lib/popa3d 2>/dev/null; then
		: >"$directory/made-var-lib-popa3d"
	fi
}

remove_peers() {
	[ ! -e "$directory/made-var-lib-popa3d" ] || rmdir /var/lib/popa3d
}

# ---- users, PAM, certificate ----

# A copy of /etc covers /etc in this namespace. The whole directory: mounts on single files end when
# somebody outside replaces the file.
prepare_etc() {
	cp -a /etc "$directory/etc"
	mount --bind "$directory/etc" /etc
	for file in passwd shadow group; do
		sed -i '/^bench[a-z]*[0-9]*:/d' "/etc/$file"
	done
}

system_user() {
	grep -q "^$1:" /etc/group || echo "$1:x:$2:" >>/etc/group
	grep -q "^$1:" /etc/passwd ||
		echo "$1:x:$2:$2::/nonexistent:/usr/sbin/nologin" >>/etc/passwd
}

# "NAME UID" of each user
list_users() {
	seq 0 $((users - 1)) | awk -v first="$first_uid" '{ print "bench" $1, first + $1 }'
	echo "benchbig0 $big_uid"
}

prepare_users() {
	system_user _qpopper 21002
	system_user _qpopsign 21003
	system_user _qpopauth 21004
	system_user popa3d 21005
	system_user benchvirtual "$virtual_uid"
	# the cheapest hash that is not broken: the password check shall not hide the servers
	hash=$(perl -e "print crypt('$password', '\$6\$rounds=1000\$qpopperbench')")
	list_users | while read -r name uid; do
		echo "$name:x:$uid:100::$directory/home/$name:/bin/sh" >>/etc/passwd
		echo "$name:$hash:20000:0:99999:7:::" >>/etc/shadow
		echo "$name:$hash:$uid:$group::::" >>"$directory/popper-users"
		echo "$name:{PLAIN}$password" >>"$directory/dovecot-tuned-users"
		echo "$name:{CRYPT}$hash" >>"$directory/dovecot-hashed-users"
		install -d -o "$uid" "$directory/home/$name"
	done
	chown _qpopauth "$directory/popper-users"
	chown dovecot "$directory"/dovecot-*-users
	chmod 400 "$directory"/*-users
}

# The same checks for all servers; popa3d has its service's name built in.
prepare_pam() {
	for service in qpopper-bench popa3d; do
		printf '%s required pam_unix.so\n' auth account >"/etc/pam.d/$service"
	done
}

prepare_certificate() {
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 7 \
		-subj /CN=localhost -keyout "$directory/key.pem" -out "$directory/cert.pem" \
		2>"$directory/openssl.log" || fail "no certificate, see $directory/openssl.log"
}

prepare_spool_directories() {
	for name in popper-pam popper-file popa3d dovecot-stock dovecot-tuned; do
		spool=$directory/mail/$name
		mkdir -p "$spool"
		chgrp mail "$spool"
		chmod 2775 "$spool"
	done
	chown "$virtual_uid" "$directory/mail/dovecot-tuned"
	install -d -o "$virtual_uid" "$directory/virtual/tuned" "$directory/virtual/hashed"
	mount --bind "$directory/mail/popa3d" /var/mail
}

prepare_maildrops() {
	for name in popper-pam popper-file popa3d dovecot-stock dovecot-tuned; do
		spool=$directory/mail/$name
		uid=$first_uid big=$big_uid owner=
		if [ "$name" = dovecot-tuned ]; then
			uid=$virtual_uid big=$virtual_uid owner=--one-owner
		fi
		# shellcheck disable=SC2086 # $owner is an option or nothing
		"$bench/make_spool.py" "$spool" bench "$users" 20 160000 --uid "$uid" \
			--gid "$group" $owner
		"$bench/make_spool.py" "$spool" benchbig 1 2000 60000000 --uid "$big" --gid "$group"
	done
}

# An image that ends with the last mount of it, and so with the namespace.
prepare_file_system() { # FILE-SYSTEM BYTES
	mkdir "$directory/mail"
	[ "$1" != root ] || return 0
	truncate -s "$2" "$directory/image"
	"mkfs.$1" "$directory/image" >"$directory/mkfs.log" 2>&1 ||
		fail "mkfs.$1: $(tail -n 3 "$directory/mkfs.log")"
	mount -o loop -t "$1" "$directory/image" "$directory/mail"
}

prepare_servers() {
	mkdir "$directory/cgroup"
	mount -t cgroup2 none "$directory/cgroup"
	[ ! -S /dev/log ] || mount --bind /dev/null /dev/log # popa3d's records are nobody's mail
	prepare_etc
	prepare_users
	prepare_pam
	prepare_certificate
	prepare_spool_directories
}

# ---- configurations ----

popper_settings() { # NAME PORT TLS-PORT BUILD-DIRECTORY
	cat <<END
set listen = 127.0.0.1:$2
set listen-tls = 127.0.0.1:$3
set tls-server-cert-file = $directory/cert.pem
set tls-private-key-file = $directory/key.pem
set clear-text-password = always
set spool-dir = $directory/mail/$1
set state-dir = $directory/$1/state
set helper-dir = $4
set max-connections-per-address = 5000
set max-unauthenticated = 5000
END
	if [ "$1" = popper-file ]; then
		echo "set passwd-file = $directory/popper-users"
	else
		echo "set pam-service = qpopper-bench"
	fi
}

# Debian's settings, but for paths, ports and limits that would end a run early.
dovecot_settings() { # NAME PORT TLS-PORT
	cat <<END
base_dir = $directory/$1/run
state_dir = $directory/$1/state
log_path = $directory/$1/log
protocols = pop3
listen = 127.0.0.1
ssl = yes
ssl_cert = <$directory/cert.pem
ssl_key = <$directory/key.pem
disable_plaintext_auth = no
mail_privileged_group = mail
mail_max_userip_connections = 0
first_valid_uid = 1000
default_client_limit = 8000
default_process_limit = 2000
service pop3-login {
  inet_listener pop3 {
    port = $2
  }
  inet_listener pop3s {
    port = $3
    ssl = yes
  }
  process_limit = 2000
}
service pop3 {
  process_limit = 2000
}
END
}

dovecot_stock_settings() {
	cat <<END
mail_location = mbox:~/mail:INBOX=$directory/mail/dovecot-stock/%u
passdb {
  driver = pam
  args = qpopper-bench
}
userdb {
  driver = passwd
}
END
}

# No PAM, one uid for all, processes that serve many logins and are there before them.
dovecot_passwd_file_settings() { # tuned or hashed
	cat <<END
mail_location = mbox:$directory/virtual/$1/%u:INBOX=$directory/mail/dovecot-tuned/%u
passdb {
  driver = passwd-file
  args = $directory/dovecot-$1-users
}
userdb {
  driver = static
  args = uid=benchvirtual gid=mail home=$directory/virtual/$1/%u
}
service pop3-login {
  service_count = 0
  process_min_avail = $(nproc)
  client_limit = 4000
}
service pop3 {
  service_count = 1000
  process_min_avail = 4
}
END
}

# ---- start and stop ----

run_server() { # NAME PORT TLS-PORT BUILD-DIRECTORY
	case $1 in
	popper-*)
		mkdir -p "$directory/$1/state"
		popper_settings "$@" >"$directory/$1/popper.conf"
		exec "$4/popper" --foreground -f "$directory/$1/popper.conf"
		;;
	dovecot-*)
		mkdir -p "$directory/$1/run" "$directory/$1/state"
		dovecot_settings "$@" >"$directory/$1/dovecot.conf"
		case $1 in
		dovecot-stock) dovecot_stock_settings ;;
		*) dovecot_passwd_file_settings "${1#*-}" ;;
		esac >>"$directory/$1/dovecot.conf"
		exec dovecot -F -c "$directory/$1/dovecot.conf"
		;;
	popa3d)
		export LISTEN_SHIM_PORT="$2" LD_PRELOAD="$directory/listen_shim.so"
		exec "$directory/popa3d-package/usr/sbin/popa3d" -D
		;;
	*)
		fail "no such server: $1"
		;;
	esac
}

start() { # NAME PORT TLS-PORT BUILD-DIRECTORY
	cgroup=$directory/cgroup/qpopper-bench-$1
	mkdir -p "$cgroup" "$directory/$1"
	sh -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' - "$cgroup" \
		"$0" run-server "$directory" "$@" </dev/null >>"$directory/$1/output" 2>&1 &
	tries=100
	until ss -Hltn "sport = :$2" | grep -q .; do
		tries=$((tries - 1))
		[ "$tries" -gt 0 ] || fail "$1 does not listen, see $directory/$1/output"
		sleep 0.1
	done
}

stop() { # NAME
	cgroup=$directory/cgroup/qpopper-bench-$1
	[ -d "$cgroup" ] || return 0
	# processes of another PID namespace have the number 0
	! grep -qx 0 "$cgroup/cgroup.procs" || fail "another run is going on: $1 is in use"
	tries=100
	while grep -q . "$cgroup/cgroup.procs"; do
		tries=$((tries - 1))
		# shellcheck disable=SC2046 # a list of numbers
		if [ "$tries" -le 0 ]; then
			echo 1 >"$cgroup/cgroup.kill"
		elif [ $((tries % 20)) -eq 19 ]; then
			kill $(cat "$cgroup/cgroup.procs") 2>/dev/null || true
		fi
		sleep 0.1
	done
	rmdir "$cgroup"
}

[ $# -ge 2 ] || fail "see the first lines of $0"
action=$1 directory=$2
shift 2
case $action in
install) install_peers ;;
remove) remove_peers ;;
prepare)
	prepare_servers
	prepare_maildrops
	;;
prepare-large)
	prepare_file_system "$@"
	prepare_servers
	;;
start) start "$@" ;;
stop) stop "$@" ;;
run-server) run_server "$@" ;;
*) fail "unknown action $action" ;;
esac
