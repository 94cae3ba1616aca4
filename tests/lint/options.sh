#!/bin/sh
# Prove that program and manual agree: every option that "popper --help" prints is described in
# popper.conf(5) with the same default, every flag and general option in popper(8), and neither page
# describes one that does not exist.
#
# Usage: options.sh [POPPER [DIRECTORY OF THE MANUAL PAGES]]
set -eu

popper=${1:-${POPPER_BUILD:-.}/popper}
pages=${2:-$(dirname "$0")/../../man}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
LC_ALL=C
export LC_ALL

# compare WHAT FILE-OF-THE-PROGRAM FILE-OF-THE-PAGE PAGE
compare()
{
	sort -u "$2" > "$work/program"
	sort -u "$3" > "$work/page"
	if ! [ -s "$work/program" ]; then
		echo "options.sh: no $1 found in the output of --help" >&2
		status=1
	fi
	comm -23 "$work/program" "$work/page" > "$work/missing"
	comm -13 "$work/program" "$work/page" > "$work/surplus"
	if [ -s "$work/missing" ]; then
		sed "s/^/options.sh: $4 lacks the $1 of the program: /" "$work/missing" >&2
		status=1
	fi
	if [ -s "$work/surplus" ]; then
		sed "s/^/options.sh: the program lacks the $1 of $4: /" "$work/surplus" >&2
		status=1
	fi
}

"$popper" --help > "$work/help"
sed -n '/^General:/,/^Settings:/p' "$work/help" > "$work/general"
sed -n '/^Settings:/,$p' "$work/help" > "$work/settings"

# ---- options ----

sed -n 's/^ *\(-[A-Za-z], \)\{0,1\}--\([A-Za-z0-9-]*\).*/\2/p' "$work/settings" > "$work/names"
sed -n 's/^\.It Cm \([A-Za-z0-9-]*\).*/\1/p' "$pages/popper.conf.5" > "$work/page_names"
compare option "$work/names" "$work/page_names" popper.conf.5

if [ "$(sort "$work/page_names" | uniq -d | wc -l)" -ne 0 ]; then
	echo "options.sh: described twice: $(sort "$work/page_names" | uniq -d | tr '\n' ' ')" >&2
	status=1
fi

# ---- defaults; those that configure chooses (paths, PAM) and texts with blanks are left out ----

awk '
	/^ *(-[A-Za-z], )?--/ { sub(/^ *(-[A-Za-z], )?--/, ""); sub(/[=[].*/, ""); name = $0 }
	/\(default: [A-Za-z0-9_]+\)$/ {
		sub(/.*\(default: /, ""); sub(/\)$/, "")
		if (name !~ /^(authentication|pam-service)$/) print name, $0
	}' "$work/settings" > "$work/defaults"
awk '
	/^\.It Cm / { name = $3 }
	/^Default: [A-Za-z0-9_]+\.$/ {
		sub(/^Default: /, ""); sub(/\.$/, "")
		if (name !~ /^(authentication|pam-service)$/) print name, $0
	}' "$pages/popper.conf.5" > "$work/page_defaults"
compare default "$work/defaults" "$work/page_defaults" popper.conf.5

# ---- flags and general options ----

sed -n 's/^ *-\([A-Za-z]\)[, ].*/\1/p' "$work/help" > "$work/flags"
sed -n 's/^\.It Fl \([A-Za-z]\)\( .*\)\{0,1\}$/\1/p' "$pages/popper.8" > "$work/page_flags"
compare flag "$work/flags" "$work/page_flags" popper.8

sed -n 's/^[^-]*\(-[A-Za-z], \)\{0,1\}--\([a-z-]*\).*/\2/p' "$work/general" > "$work/long"
sed -n 's/^\.It Fl \([A-Za-z] , Fl \)\{0,1\}-\([a-z-]*\)$/\2/p' "$pages/popper.8" > "$work/page_long"
compare "general option" "$work/long" "$work/page_long" popper.8

exit $status
